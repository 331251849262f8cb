"""Images are prepared as for the weights: as told beside or in their file, or by `data`."""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from donna_ray.config import DataConfig, ReferenceConfig, RunConfig
from donna_ray.config.data import PREPARATION
from donna_ray.errors import ConfigError
from donna_ray.reference.build import build_reference
from donna_ray.reference.preparation import preparation_beside
from donna_ray.reference.step import reference_inputs
from donna_ray.reference.timm_models import create_timm_model, preprocessing_of

SMALL = "test_resnet"
TOLD = {
    "mean": (0.1, 0.2, 0.3),
    "std": (1.0, 1.0, 0.5),
    "input_size": (3, 96, 96),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
}


def saved(folder: Path, model: str = SMALL, **told: Any) -> str:
    """A folder as timm makes it for Hugging Face; the file of its weights."""
    sized = {"img_size": told["input_size"][-1]} if "vit" in model else {}
    network = timm.create_model(model, num_classes=3, pretrained_cfg_overlay=told, **sized)
    timm.models.save_for_hf(network, str(folder), safe_serialization=True)
    return str(folder / "model.safetensors")


def a_run(weights: str, model: str = SMALL, **data: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"source": "hfds/photos", **data},
            "reference": {"model": model, "weights": weights},
            "space": {"preset": "compress"},
        }
    )


def prepared(config: RunConfig, **how: Any) -> dict[str, Any]:
    return build_reference(config, classes=3, **how)[1]


def test_settings_beside_the_weights_are_used_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = saved(tmp_path, **TOLD)
    model = create_timm_model(ReferenceConfig(model=SMALL, weights=weights), classes=3)
    assert preprocessing_of(model, None, None) == {**TOLD, "crop_mode": "center"}
    assert f"{tmp_path}/config.json says: mean 0.1 0.2 0.3, std 1.0 1.0 0.5" in caplog.text


def test_settings_of_data_go_before_those_beside(tmp_path: Path) -> None:
    given = {"mean": [0.4], "crop_pct": 0.5, "image_size": 64, "crop_mode": "squash"}
    used = prepared(a_run(saved(tmp_path, **TOLD), **given))
    assert used == {
        **TOLD,
        "input_size": (3, 64, 64),
        "mean": (0.4, 0.4, 0.4),
        "crop_pct": 0.5,
        "crop_mode": "squash",
    }


@pytest.mark.parametrize("model", [SMALL, "test_vit"])
def test_workers_that_lack_the_file_build_the_same(tmp_path: Path, model: str) -> None:
    config = a_run(saved(tmp_path, model, **TOLD), model)
    reference, used = build_reference(config, classes=3)
    for path in tmp_path.iterdir():
        path.unlink()
    known = json.loads(json.dumps(used))  # as it is in an artifact
    other, _ = build_reference(config, classes=3, load_weights=False, preprocessing=known)
    assert other.input_shape == reference.input_shape == (3, 96, 96)
    other.load_state_dict(reference.state_dict())


def test_size_of_a_finished_reference_stays(tmp_path: Path) -> None:
    config = a_run(saved(tmp_path, "test_vit", **TOLD), "test_vit")
    known = {"input_size": [3, 160, 160]}  # made before the file beside was read
    network, _ = build_reference(config, classes=3, load_weights=False, preprocessing=known)
    assert network.input_shape == (3, 160, 160)


def test_settings_of_another_model_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ReferenceConfig(model="test_vit", weights=saved(tmp_path, **TOLD))
    assert preparation_beside(config) == {}
    assert f"is of the model {SMALL}" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "must be JSON"),
        ({"mean": [0.1, 0.2]}, r"mean must .*\[0.1, 0.2\].*one for all"),
        ({"std": [0, 1, 1]}, "std must"),
        ({"input_size": [96]}, "input_size must"),
        ({"input_size": 96}, "input_size must"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: Any, words: str) -> None:
    if not isinstance(text, str):
        text = json.dumps({"architecture": SMALL, "pretrained_cfg": text})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        preparation_beside(ReferenceConfig(model=SMALL, weights=str(tmp_path / "a.safetensors")))


def test_key_has_what_is_told_and_only_then(tmp_path: Path) -> None:
    same = timm.get_pretrained_cfg(SMALL).to_dict()
    assert preparation_beside(ReferenceConfig(model=SMALL, weights=saved(tmp_path, **same))) == {}
    config = a_run(saved(tmp_path, **TOLD))
    told = preparation_beside(config.reference)
    assert reference_inputs(config, "sha", told, {})["preparation"] == told
    plain = reference_inputs(config, "sha", {}, {})
    assert "preparation" not in plain
    assert {"mean", "std", "crop_pct"}.isdisjoint(plain["data"])


def test_arguments_of_timms_training_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = timm.create_model(SMALL, num_classes=3).state_dict()
    args = argparse.Namespace(mean=[0.1], std=None, img_size=96, lr=1.0, output=Path("x"))
    torch.save({"state_dict": state, "args": args}, tmp_path / "last.pth")
    weights = str(tmp_path / "last.pth")
    used = prepared(a_run(weights))
    assert (used["mean"], used["std"]) == ((0.1,) * 3, (0.5,) * 3)
    assert used["input_size"] == (3, 160, 160)
    words = "images of 96 x 96: set data.image_size"
    assert words in caplog.text
    caplog.clear()
    assert prepared(a_run(weights, image_size=96))["input_size"] == (3, 96, 96)
    assert words not in caplog.text  # for it is that
    assert logging.getLevelName(caplog.records[0].levelno) == "WARNING"


@pytest.mark.parametrize(
    ("args", "used", "words"),
    [
        (argparse.Namespace(interpolation="", crop_pct=None, mean=None), {}, ""),
        (
            {"mean": [0.1, 0.2, 0.3], "crop_pct": 1.15},
            {"mean": (0.1, 0.2, 0.3), "crop_pct": 1.15},
            "",
        ),
        (argparse.Namespace(input_size=96), {}, "images of 96 x 96: set data.image_size"),
        (argparse.Namespace(mean=0.5, std=[0.2]), {"std": (0.2,) * 3}, "not used.* mean must"),
        (argparse.Namespace(mean=[0.1] * 4), {}, "not used.* mean must"),
        (argparse.Namespace(input_size="large"), {}, "not used.* input_size must"),
    ],
)
def test_arguments_of_any_training_are_but_hints(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, args: Any, used: dict[str, Any], words: str
) -> None:
    state = timm.create_model(SMALL, num_classes=3).state_dict()
    torch.save({"state_dict": state, "args": args}, tmp_path / "last.pth")
    own = prepared(a_run("train"))
    assert prepared(a_run(str(tmp_path / "last.pth"))) == own | used
    assert re.search(words, caplog.text)


def test_what_timm_says_of_its_weights_can_be() -> None:
    for name in timm.list_pretrained():
        told = timm.get_pretrained_cfg(name).to_dict()
        values = {each: told[each] for each in PREPARATION if each in told}
        DataConfig.model_validate({"source": "hfds/photos", **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mean": [0.1, 0.2]}, "one number for each of the 3 channels"),
        ({"mean": [124, 116, 104]}, "less than or equal to 1"),
        ({"std": [0]}, "greater than 0"),
        ({"source": "digits", "std": [0.5]}, "std is given .*source is 'digits'"),
    ],
)
def test_settings_of_data_are_checked(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DataConfig.model_validate({"source": "hfds/photos", **values})
