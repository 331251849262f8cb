"""Documents say what is there: command lines, public names, options, scripts."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import device_farm
import donna_ray
from device_farm.cli import app as farm_app
from donna_ray import config
from donna_ray.cli.main import app
from donna_ray.config.values import Section

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS: dict[str, Any] = {
    "donna": typer.main.get_command(app),
    "device-farm": typer.main.get_command(farm_app),
}
INDENTED = re.compile(r"^    ((?:donna|device-farm) .*)$", re.MULTILINE)
INLINE = re.compile(r"`((?:donna|device-farm) [^`]*)`")
HARDWARE = re.compile(
    r"gpus_per_worker=[1-9]|--device (?:cuda|adb)|device-farm phone|clusters/submit\.sh|"
    r"ray (?:up|start|down)\b"
)
NEED = re.compile(r"# needs (?:a|an|two) [\w ,]*(?:GPU|phone|cluster)")


def lines() -> set[str]:
    found: set[str] = set()
    for path in DOCUMENTS:
        text = path.read_text().replace("\\\n", " ")
        found |= {each.partition(" #")[0].strip() for each in INDENTED.findall(text)}
        found |= {" ".join(each.split()) for each in INLINE.findall(text)}
    return found


def fault(line: str) -> str:
    """What is wrong with a command line; empty if nothing is."""
    words = shlex.split(line)
    command = PROGRAMS[words[0]]
    known = {option for each in command.params for option in each.opts}
    rest = [word for word in words[1:] if not re.fullmatch(r"[A-Z_\[\]…|.]+", word)]
    while hasattr(command, "commands"):
        name = next((word for word in rest if not word.startswith("-")), None)
        if name is None:
            break
        if name not in command.commands:
            if "networks" in command.commands:  # donna finetune RUN ARCH
                command = command.commands["networks"]
                break
            return f"{line}: there is no {name}"
        rest.remove(name)
        command = command.commands[name]
    known |= {option for each in command.params for option in each.opts} | {"-h", "--help"}
    options = (word.strip("[]").partition("=")[0] for word in rest if word.startswith(("-", "[-")))
    unknown = [each for each in options if each not in known]
    return f"{line}: there is no {unknown[0]}" if unknown else ""


def test_commands_of_the_documents_are_there() -> None:
    found = lines()
    assert len(found) > 60
    assert not [each for each in map(fault, sorted(found)) if each]


@pytest.mark.parametrize(
    "line", ["donna fly", "donna run x.yaml --fast", "donna library fly", "device-farm bench -z"]
)
def test_what_is_not_there_is_found(line: str) -> None:
    assert fault(line)


def unmarked(text: str) -> list[str]:
    """Blocks of commands that need hardware, and no line of which says which."""
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return [each for each in blocks if HARDWARE.search(each) and not NEED.search(each)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_need_hardware_say_so(path: Path) -> None:
    assert not unmarked(path.read_text())


def test_command_without_its_mark_is_found() -> None:
    assert unmarked("    donna run x.yaml --set cluster.gpus_per_worker=1\n")
    assert not unmarked("    device-farm bench x.onnx --device cuda   # needs a GPU\n")


def test_readme_of_the_package_has_no_link_into_the_repository(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, str] = {}
    monkeypatch.setattr("setuptools.setup", lambda **words: given.update(words))
    runpy.run_path(str(ROOT / "setup.py"))
    links = re.findall(r"\]\(([^)]*)\)", given["long_description"])
    assert links
    assert all(each.startswith("https://") for each in links)
    assert "(`docs/first-hour.md`)" in given["long_description"]


def told(page: str) -> list[str]:
    """The paths of what mkdocstrings writes into a page."""
    return re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)


def names_in(paths: list[str], package: ModuleType) -> list[str]:
    own = (each for each in paths if each.startswith(f"{package.__name__}."))
    return [each.rpartition(".")[2] for each in own]


@pytest.mark.parametrize("package", [donna_ray, device_farm], ids=lambda package: package.__name__)
def test_public_names_are_documented_once(package: ModuleType) -> None:
    others = names_in(told("configuration.md"), package)
    public = [name for name in others if name in package.__all__]
    assert sorted(names_in(told("api.md"), package) + public) == package.__all__


SECTIONS = [
    each for each in map(vars(config).get, config.__all__) if isinstance(each, type(Section))
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_sections_of_the_configuration_say_what_each_option_is(section: type[Section]) -> None:
    assert f"donna_ray.config.{section.__name__}" in told("configuration.md")
    kinds = [kind for kind in section.__mro__ if issubclass(kind, Section)]
    text = " ".join(kind.__doc__ or "" for kind in kinds)
    assert not [option for option in section.model_fields if f"`{option}`" not in text]


def test_scripts_are_named() -> None:
    """In a document, or by another script, which imports or calls it."""
    scripts = {path.stem: path.read_text() for path in (ROOT / "scripts").glob("*.*")}
    text = " ".join(path.read_text() for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"])
    assert "image_folder" in scripts

    def is_named(name: str) -> bool:
        others = [code for other, code in scripts.items() if other != name]
        use = re.compile(rf"^(?:from|import) (?:scripts\.)?{name}\b|scripts/{name}\.", re.MULTILINE)
        return f"scripts/{name}." in text or any(map(use.search, others))

    assert not [name for name in scripts if not is_named(name)]
