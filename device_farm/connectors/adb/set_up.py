"""`device-farm phone`: from a phone on the desk to an entry of farm.yaml that measures."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from device_farm.connectors.adb.advice import (
    Advice,
    abi_of,
    advice,
    check_program,
    where_programs_are,
)
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.failures import DeviceError

__all__ = ["set_up_phone"]

_PROBED = "so far it can be probed only"


def set_up_phone(
    name: str,
    settings: dict[str, Any],
    binary: Path | None,
    kind: str | None,
    sha256: str | None,
    convert: str,
) -> None:
    """Probe a phone, bring it a program, measure the control model, and say what to change.

    Args:
        name: of the phone.
        settings: its way, and what farm.yaml says of it.
        binary: the program, on this host; None for that of the settings.
        kind: of runner; None for that of the settings.
        sha256: what the program's must be; None for any.
        convert: the command that converts ONNX for it, as one line; empty for none.

    Raises:
        ValueError: the program is not the one that is asked for, or for another processor.
        DeviceError: the phone cannot be reached, has no program, or cannot run it.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    with contextlib.closing(AdbConnector(name, {**settings, "runner": None})) as probed:
        found, shell = probed.probe(), probed.shell()
        abi, own = abi_of(shell), probed.settings
        console.print(f"{found.model}, serial {found.serial}, processor {abi or 'not told'}")
        _print_advice(console, advice(shell, own.screen, own.fixed_performance))
    runner = _runner(settings.get("runner") or {}, binary, kind, convert)
    if "binary" not in runner:
        raise DeviceError("\n".join([f"phone {name!r}: {_PROBED}.", *where_programs_are(abi)]))
    program = Path(runner["binary"]).expanduser()
    digest = check_program(program, abi, sha256)
    console.print(f"{program}: SHA-256 {digest}" + ("" if sha256 else ", which nobody vouched for"))
    entry = {**settings, "runner": runner}
    with contextlib.closing(AdbConnector(name, entry)) as connector:
        console.print(f"The control model takes {connector.calibrate():.3f} ms.")
    console.print("For farm.yaml, with which `device-farm serve farm.yaml` has this phone:\n")
    devices = {"devices": [{"name": name, "connector": "adb", "settings": _plain(entry)}]}
    console.print(yaml.safe_dump(devices, sort_keys=False), end="")


def _runner(
    known: dict[str, Any], binary: Path | None, kind: str | None, convert: str
) -> dict[str, Any]:
    """What farm.yaml says of the program, and what is given in place of it; with whole paths."""
    given: dict[str, Any] = {}
    if binary is not None:
        given = {"kind": known.get("kind", "benchmark_model"), "binary": str(binary.resolve())}
    if kind is not None:
        given["kind"] = kind
    if convert:
        words = shlex.split(convert)
        given["convert"] = [
            str(Path(each).resolve()) if Path(each).is_file() else each for each in words
        ]
    return {**known, **given}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in settings.items()
    }


def _print_advice(console: Console, found: Iterable[Advice]) -> None:
    table = Table("as it is", "what to do", "why")  # of what the phone tells
    for each in found:
        table.add_row(each.seen, each.change, each.reason)
    if table.row_count:
        console.print(table)
    else:
        console.print("Nothing of what the phone tells is to be changed.")
