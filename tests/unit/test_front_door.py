"""What `import donna_ray` offers, and how little it loads."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import donna_ray

HEAVY = "{'ray', 'torch', 'timm', 'optuna'}"


def outcome(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).strip()


def test_names_are_sorted_there_and_documented() -> None:
    assert donna_ray.__all__ == sorted(donna_ray.__all__)
    for name in donna_ray.__all__:
        value = getattr(donna_ray, name)
        assert value.__name__ == name
        text = inspect.getdoc(value) or ""
        assert len(text) > 20, name
        assert not text.startswith(f"{name}("), f"{name} has only what dataclass writes"
    with pytest.raises(AttributeError, match="nothing"):
        donna_ray.nothing  # noqa: B018


def test_editors_see_the_same_names() -> None:
    tree = ast.parse(Path(donna_ray.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted(homes) == donna_ray.__all__
    for name, module in homes.items():
        assert getattr(donna_ray, name) is getattr(sys.modules[str(module)], name)


def test_import_is_light() -> None:
    code = f"import sys, donna_ray; print(*{HEAVY} & sys.modules.keys())"
    assert outcome("-c", code) == (0, "")


def test_what_only_looks_is_light(tmp_path: Path) -> None:
    library = [["library", what, str(tmp_path)] for what in ("ls", "verify")]
    commands = [["--help"], *library, ["config", "show"]]
    code = (
        "import sys; from donna_ray.cli.main import app\n"
        f"for words in {commands}:\n"
        "    app(words, standalone_mode=False)\n"
        f"    print('loaded by', words, *{HEAVY} & sys.modules.keys())\n"
    )
    status, text = outcome("-c", code)
    assert status == 0, text
    loaded = [line for line in text.splitlines() if line.startswith("loaded by")]
    assert loaded == [f"loaded by {words}" for words in commands]
    assert "predictor" in text.partition("loaded by")[0]  # of the help


def test_an_actor_of_tune_loads_neither_torch_nor_timm() -> None:
    code = "import sys, donna_ray.search.trainable; print(*{'torch', 'timm'} & sys.modules.keys())"
    assert outcome("-c", code) == (0, "")


def test_module_is_the_command() -> None:
    status, text = outcome("-m", "donna_ray", "config", "show", "demo")
    assert status == 0
    assert text == donna_ray.shipped_config("demo").read_text().strip()
    status, text = outcome("-m", "donna_ray", "run", "missing.yaml")
    assert (status, text[:6]) == (2, "donna:")
