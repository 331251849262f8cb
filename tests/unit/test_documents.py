"""Every command line in the documents is one that the programs take: its name and its options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from device_farm.cli import app as farm_app
from donna_ray.cli.main import app

ROOT = Path(__file__).parents[2]
PROGRAMS: dict[str, Any] = {
    "donna": typer.main.get_command(app),
    "device-farm": typer.main.get_command(farm_app),
}
INDENTED = re.compile(r"^    ((?:donna|device-farm) .*)$", re.MULTILINE)
INLINE = re.compile(r"`((?:donna|device-farm) [^`]*)`")
NO_PLACES = ("RUN ARCH", "-h", "predictor build")


def lines() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
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
