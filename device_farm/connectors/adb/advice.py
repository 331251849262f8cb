"""What a person should change on a phone, so that it measures well, and what program it needs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from device_farm.connectors.adb.condition import power_saving
from device_farm.connectors.adb.shell import Shell

__all__ = ["Advice", "abi_of", "advice", "check_program", "where_programs_are"]

_LITERT = "https://storage.googleapis.com/litert/binaries/latest/android_arm64/benchmark_model"
"""Of https://ai.google.dev/edge/litert: built every night, so there is no hash that stays."""
_MACHINES = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a"}
"""Of ELF's e_machine, as Android names them."""
_ENOUGH_PERCENT = 30
_FIXED_PERFORMANCE_API = 30  # Android 11


@dataclass(frozen=True)
class Advice:
    """One thing to change, and why."""

    seen: str
    change: str
    reason: str


def abi_of(shell: Shell) -> str:
    """The processor that programs must be built for, such as `arm64-v8a`."""
    return (shell.ask("getprop", "ro.product.cpu.abi") or "").strip()


def where_programs_are(abi: str) -> list[str]:
    """Lines that say which program to fetch or build for a processor."""
    lines = ["A program that measures must run on the phone. Either of these:"]
    if abi == "arm64-v8a":
        lines.append(
            f"- LiteRT's benchmark_model, ready made: {_LITERT} (on this host: "
            "pip install 'donna-ray[litert]', which converts models for it)"
        )
    lines.append(
        "- onnxruntime_perf_test, built of ONNX Runtime's source: `./build.sh --android "
        f"--android_abi {abi or 'ABI'} --config Release` with Android's NDK"
    )
    return lines


def check_program(program: Path, abi: str, sha256: str | None) -> str:
    """The SHA-256 of a program that is to run on a phone.

    Args:
        program: on this host.
        abi: the phone's processor, as Android names it; empty if it is not known.
        sha256: what the program's must be; None for any.

    Raises:
        ValueError: it is not there, is another one, or is built for another processor.
    """
    if not program.is_file():
        raise ValueError(f"--binary must be a file, but there is none at {program}")
    content = program.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ValueError(
            f"{program} must have the SHA-256 {sha256}, but has {found}: fetch it again, and do "
            "not run it until the two are equal"
        )
    if content[:4] == b"\x7fELF" and abi:
        number = int.from_bytes(content[18:20], "little")
        built = _MACHINES.get(number, f"another processor (ELF machine {number})")
        if built != abi:
            raise ValueError(
                f"{program} must be built for the phone's processor, {abi}, but is for {built}: "
                "fetch or build the other one"
            )
    return found


def advice(shell: Shell, screen: str, fixed_performance: bool) -> list[Advice]:
    """What to change on a phone, the most important first; nothing where it is ready.

    Args:
        shell: of the phone.
        screen: as its settings have it.
        fixed_performance: likewise.
    """
    return [*_of_power(shell), *_of_settings(shell, screen, fixed_performance)]


def _of_power(shell: Shell) -> Iterator[Advice]:
    battery = shell.ask("dumpsys", "battery") or ""
    if not battery or not _airplane_mode(shell):
        yield Advice(
            "the phone does not tell its battery or its settings",
            "see by hand: charger in, battery saver off, airplane mode on",
            "each of them changes the clocks, or what else runs",
        )
    if power_saving(shell):
        yield Advice("battery saver is on", "turn it off", "it holds the processor's clocks down")
    if "powered: " in battery and "powered: true" not in battery:
        yield Advice(
            "no charger",
            "plug one in, and let the phone charge before long runs",
            "a battery that runs down changes the clocks, and at last ends the run",
        )
    level = re.search(r"^ *level: (\d+)", battery, re.MULTILINE)
    if level and int(level[1]) < _ENOUGH_PERCENT:
        yield Advice(
            f"battery at {level[1]}%",
            f"charge it to {_ENOUGH_PERCENT}% or more",
            "phones hold their clocks down when the battery is low",
        )


def _of_settings(shell: Shell, screen: str, fixed_performance: bool) -> Iterator[Advice]:
    if _airplane_mode(shell) == "0":
        yield Advice(
            "airplane mode is off",
            "turn it on (and Wi-Fi on again, if ADB goes through it)",
            "radio, synchronisation and updates take the processor now and then",
        )
    if screen == "leave":
        yield Advice(
            "the screen is left as it is",
            "set `screen: on` (as an app is used), or `off`, and keep to it",
            "with the screen off many phones bind programs to their small cores",
        )
    if not fixed_performance and _has_fixed_performance(shell):
        yield Advice(
            "fixed performance mode may be there, and is not used",
            "set `fixed_performance: true` where steady figures count more than the fastest",
            "clocks then stay where the phone can hold them without growing hot",
        )


def _airplane_mode(shell: Shell) -> str:
    return (shell.ask("settings", "get", "global", "airplane_mode_on") or "").strip()


def _has_fixed_performance(shell: Shell) -> bool:
    """By its version: to try the mode would end one that somebody else has set."""
    version = (shell.ask("getprop", "ro.build.version.sdk") or "").strip()
    return version.isdecimal() and int(version) >= _FIXED_PERFORMANCE_API
