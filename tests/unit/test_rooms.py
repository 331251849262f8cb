"""Which folder may import which: only those on the floors below it, so there are no circles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REST = "the rest"
FILE = re.compile(r"`([\w/]+\.py)`")
FLOORS = {  # from the lowest to the highest; rooms of one floor do not import each other
    "donna_ray": "credentials, errors, onnx_half, onnx_symbolics, versions | "
    "complexity | config, onnx_export, storage | block_spec | clusters, data, run, space | "
    "workers | training | reference | distill, latency | library | finetune | export, predictor | "
    "report, search | overview, pipeline, plan, study | cli | __init__, __main__",
    "donna_ray.search": f"exact | surrogate | study | strategies | {REST}",
    "device_farm": "foreign, patching, stopping | "
    "common_options, device_spec, ending, failures, plugins, reading, version | "
    "inputs, torch_export | workload | litert, timing | identity | connector, cache | "
    "alone, connectors, farm, testing | cli | __init__, __main__",
}


def imports_of(file: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a file of the package imports, in functions as well."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(root: Path, package: str, floors: str) -> list[str]:
    """A message for each import in the package that leads to a room that is not below."""
    height = {
        room: number
        for number, floor in enumerate(floors.split(" | "))
        for room in floor.split(", ")
    }

    def room_of(name: str) -> str:
        room = name.removeprefix(f"{package}.").partition(".")[0]
        return room if room in height or REST not in height else REST

    found = []
    for file in sorted((root / package.replace(".", "/")).rglob("*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts)
        own = room_of(module)
        if own not in height:
            found.append(f"{file}:1: {own!r} is on no floor of {package}: {floors}")
            continue
        for line, name in imports_of(file, module.rpartition(".")[0]):
            room = room_of(name) if f"{name}.".startswith(f"{package}.") else own
            if room != own and not height.get(room, len(height)) < height[own]:
                rule = f"{own!r} of {package} must import only from floors below its own: {floors}"
                found.append(f"{file}:{line}: imports {name}, but {rule}")
    return found


@pytest.mark.parametrize("package", FLOORS)
def test_imports_lead_down(package: str) -> None:
    assert not (found := violations(ROOT, package, FLOORS[package])), "\n".join(found)


def test_farm_does_not_know_the_method() -> None:
    for file in (ROOT / "device_farm").rglob("*.py"):
        package = ".".join(file.relative_to(ROOT).parent.parts)
        for line, name in imports_of(file, package):
            assert name.partition(".")[0] != "donna_ray", f"{file}:{line}: imports {name}"


def test_every_folder_says_what_is_in_it() -> None:
    for package in ("donna_ray", "device_farm"):
        for folder in {file.parent for file in (ROOT / package).rglob("*.py")}:
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
            assert text, f"{folder / '__init__.py'} needs a docstring: what is in the folder"
            gone = [name for name in FILE.findall(text) if not (folder / name).is_file()]
            assert not gone, f"{folder / '__init__.py'} names {gone}, which are not there"
            files = {file.stem for file in folder.glob("*.py")} - {"__init__", "__main__"}
            untold = sorted(files - {Path(name).stem for name in re.findall(r"`([\w/.]+)`", text)})
            if folder.name not in (package, "blocks"):  # a family of blocks a file
                assert not untold, f"{folder / '__init__.py'} must say what {untold} are for"


def test_documents_name_files_that_exist() -> None:
    folders = ("donna_ray", "device_farm", "scripts", "tests")
    files = [str(file) for folder in folders for file in (ROOT / folder).rglob("*.py")]
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    named = {(name, doc.name) for doc in documents for name in FILE.findall(doc.read_text())}
    assert ("distill/racing.py", "ARCHITECTURE.md") in named
    for name, document in named:
        assert any(file.endswith(f"/{name}") for file in files), f"{document} names {name}"


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("low/a.py", "import os\nimport house.high.b", 2),
        ("low/a.py", "def late():\n    from house.high import b", 2),
        ("low/a.py", "from house import high", 1),
        ("low/a.py", "from ..high.b import something", 1),
        ("low/a.py", "if TYPE_CHECKING:\n    from house.high.b import B", 2),
        ("high/b.py", "from house.twin import c", 1),  # on the same floor
        ("high/b.py", "from house import Name", 1),  # of the package itself
        ("high/b.py", "import house", 1),
        ("unknown/d.py", "", 1),
    ],
)
def test_rule_can_be_broken(tmp_path: Path, file: str, text: str, line: int) -> None:
    sound = {"low/a.py": "import os", "high/b.py": "from house.low import a", "twin/c.py": ""}
    for name, words in {**sound, file: text}.items():
        (tmp_path / "house" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "house" / name).write_text(words)
    (message,) = violations(tmp_path, "house", "low | high, twin")
    assert message.startswith(f"{tmp_path / 'house' / file}:{line}: ")
    assert message.endswith("low | high, twin")


def test_rest_is_one_room(tmp_path: Path) -> None:
    (tmp_path / "house" / "low").mkdir(parents=True)
    (tmp_path / "house" / "step.py").write_text("from house.helper import x\nimport house.low.a")
    (tmp_path / "house" / "helper.py").write_text("from house import step")
    assert not violations(tmp_path, "house", f"low | {REST}")
    (tmp_path / "house" / "low" / "a.py").write_text("from house import helper")
    (message,) = violations(tmp_path, "house", f"low | {REST}")
    assert "low/a.py:1: imports house.helper" in message
