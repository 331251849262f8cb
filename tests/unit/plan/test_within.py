"""Lengths with which a run ends in a given time."""

from __future__ import annotations

from pathlib import Path

import pytest

from donna_ray.config import load_config, starting_config, with_lengths
from donna_ray.errors import ConfigError
from donna_ray.plan import within as module
from donna_ray.plan.within import Speed, within
from tests.command_line import donna_here

SPEED = Speed(read=0.0005, forward=0.0005, train=0.003)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_speed", lambda config: SPEED)
    written = tmp_path / "search.yaml"
    written.write_text(text())
    return written


def text() -> str:
    return starting_config("try", "digits", "donna_digits", "train", "onnxruntime", "0.8x", 2)


def test_less_time_is_fewer_epochs_samples_and_candidates(file: Path) -> None:
    (long, long_s), (short, short_s) = within(file, 3600), within(file, 420)
    assert short_s <= 420
    assert short_s < long_s <= 3600
    assert long["finetune.epochs"] == 15  # as the file has it: no more than that
    for name in ("reference.training.epochs", "library.epochs", "finetune.epochs"):
        assert 1 <= short[name] < long[name], name
    assert 8 <= short["predictor.samples"] < long["predictor.samples"]
    assert 64 <= short["search.evaluations"] < long["search.evaluations"]


def test_what_is_found_can_be_written_and_read(file: Path) -> None:
    settings, _ = within(file, 420)
    file.write_text(with_lengths(text(), settings))
    config = load_config(file)
    assert config.library.epochs == settings["library.epochs"]
    assert config.finetune.epochs == settings["finetune.epochs"]
    assert config.predictor.samples == settings["predictor.samples"]
    assert config.search.evaluations == settings["search.evaluations"]
    assert config.device.settings == {"max_seconds": settings["device.settings.max_seconds"]}
    assert config.reference.training is not None
    assert config.reference.training.epochs == settings["reference.training.epochs"]
    assert config.reference.training.workers_per_network == 2


def test_too_little_time_is_refused_with_what_it_takes(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"within 1 min, but .* about \d+ min here"):
        within(file, 60)


def measured_briefly(text: str) -> tuple[float, float, float]:
    """In a process that is started for it, so that no other has the shorter time."""
    module._MEASURED_S = 0.5
    return module._measured(text)


def test_init_measures_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_measured", measured_briefly)
    file = tmp_path / "it.yaml"
    answers = "--model donna_digits --data digits --device onnxruntime --latency-limit 0.8x"
    done = donna_here("init", str(file), *answers.split(), "--within", "3h")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("About ")
    assert load_config(file).finetune.epochs == 15


def test_time_is_in_minutes_or_hours(tmp_path: Path) -> None:
    done = donna_here("init", str(tmp_path / "it.yaml"), "--within", "15")
    assert done.returncode == 2
    assert "15m or 8h" in done.stderr
    assert not (tmp_path / "it.yaml").exists()


def test_init_that_is_stopped_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(file: Path, seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "within", stopped)
    file = tmp_path / "it.yaml"
    answers = "--model donna_digits --data digits --device onnxruntime --latency-limit 0.8x"
    assert donna_here("init", str(file), *answers.split(), "--within", "3h").returncode == 130
    assert not file.exists()
