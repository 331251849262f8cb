"""Python files that a run names: told, and executed only where they are the user's or trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from donna_ray.config import load_config
from donna_ray.run.ownership import Forgotten
from donna_ray.run.run import Run
from tests.command_line import donna_here

ANY_WEIGHTS = "--set=reference.weights=train"
CODE = """
import pathlib
pathlib.Path(__file__).with_suffix(".ran").touch()
"""


def make_run(folder: Path, module: Path) -> Path:
    folder.mkdir(exist_ok=True)
    text = f"space: {{preset: micro, modules: [{module}]}}\nreference: {{weights: /gone.pth}}\n"
    (folder / "config.yaml").write_text(text)
    return folder


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "blocks.py"
    path.write_text(CODE)
    return path


COMMANDS = (
    ["run", "RUN"],
    ["library", "build", "RUN"],
    ["space", "show", "RUN"],
    ["config", "check", "RUN"],
    ["export", "RUN", "abc", "--to", "OUT"],
    ["finetune", "RUN", "abc"],
    ["predictor", "suggest", "RUN"],
)


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("whose", ["another's", "everybody's", "of the folder"])
def test_files_that_are_not_the_users_are_not_executed(
    tmp_path: Path, module: Path, words: list[str], whose: str
) -> None:
    if whose == "another's":
        os.chown(module, 65534, -1)
    elif whose == "everybody's":
        module.chmod(0o666)
    else:
        (tmp_path / "run").mkdir()
        module = module.rename(tmp_path / "run" / module.name)
    run = make_run(tmp_path / "run", module)
    places = {"RUN": str(run), "OUT": str(tmp_path / "out")}
    ended = donna_here(*(places.get(word, word) for word in words))
    assert ended.returncode == 2
    assert f"space.modules {module}" in ended.stderr
    assert "--trust" in ended.stderr
    assert not module.with_suffix(".ran").exists()


@pytest.mark.parametrize("whose", ["mine", "trusted"])
def test_files_that_are_executed_are_told(tmp_path: Path, module: Path, whose: str) -> None:
    words = ["space", "show", str(make_run(tmp_path / "run", module)), ANY_WEIGHTS]
    if whose == "trusted":
        module.chmod(0o666)
        words.append("--trust")
    assert f"executes {module}" in donna_here(*words).stderr
    assert module.with_suffix(".ran").exists()


def test_a_file_that_one_names_needs_no_trust(tmp_path: Path, module: Path) -> None:
    module.chmod(0o666)
    file = make_run(tmp_path / "run", module) / "config.yaml"
    assert "--trust" not in donna_here("space", "show", str(file), ANY_WEIGHTS).stderr
    assert module.with_suffix(".ran").exists()


def test_files_go_with_the_run(tmp_path: Path, module: Path) -> None:
    """Those of a Ray job are gone after it, and a run at a URL is for any host."""
    settings = make_run(tmp_path / "settings", module) / "config.yaml"
    config = load_config(settings, ["reference.weights=train"])
    with Run(config, tmp_path / "run") as run:
        run.write_config()
    module.unlink()
    elsewhere = (tmp_path / "run").rename(tmp_path / "elsewhere")
    ended = donna_here("config", "check", str(elsewhere))
    assert "give --trust" in ended.stderr
    kept = elsewhere / "modules" / "0" / module.name
    assert load_config(elsewhere / "config.yaml").space.modules == [str(kept)]
    donna_here("config", "check", str(elsewhere), "--trust")
    assert kept.with_suffix(".ran").exists()
    with Run(load_config(elsewhere / "config.yaml"), elsewhere) as run:
        run.write_config()
    assert load_config(elsewhere / "config.yaml").space.modules == [str(kept)]


def test_a_fresh_start_keeps_the_only_copy(tmp_path: Path, module: Path) -> None:
    settings = make_run(tmp_path / "settings", module) / "config.yaml"
    with Run(load_config(settings, ["reference.weights=train"]), tmp_path / "run") as run:
        run.write_config()
    module.unlink()
    config = load_config(tmp_path / "run" / "config.yaml")
    forgotten = Forgotten(tmp_path / "run")
    forgotten.move()
    with Run(config, tmp_path / "run") as run:
        run.write_config()
        forgotten.remove()
    assert Path(config.space.modules[0]).read_text() == CODE
