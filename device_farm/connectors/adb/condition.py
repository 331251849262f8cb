"""A phone's condition: what it is, how hot it may be, and what is set while it measures."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from device_farm.connectors.adb.shell import CommandFailed, Shell
from device_farm.failures import DeviceError, Throttled

__all__ = [
    "Identity",
    "check_cores",
    "check_power_saving",
    "condition",
    "cores_on",
    "end_measuring_mode",
    "identify",
    "measuring_mode",
    "power_saving",
    "temperatures",
    "wait_until_cool",
]

_POLL_S = 2.0
_OLDEST_API = 26
_PROPERTIES = (
    "ro.product.manufacturer",
    "ro.product.model",
    "ro.build.version.release",
    "ro.build.version.sdk",
    "ro.serialno",
    "ro.build.fingerprint",
)
_SERVICES = ("thermalservice", "battery", "power")
_MARK = "--end-of-answer--"
_CPUFREQ = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_{}_freq"
_STATUS = re.compile(r"Thermal Status: (\d+)")
_TEMPERATURE = re.compile(r"\bTemperature\{mValue=(-?[0-9.]+), mType=(-?\d+), mName=([^,]+),")
_CURRENT = "Current temperatures from HAL:"
_STAY_ON = "stay_on_while_plugged_in"
_FIXED_PERFORMANCE = ("cmd", "power", "set-fixed-performance-mode-enabled")
_NO_TEMPERATURES = {"6", "7", "8"}
"""Of android.os.Temperature: the battery's voltage, current and charge."""


@dataclass(frozen=True)
class Identity:
    """Who a phone is."""

    serial: str
    model: str
    """Maker, model and Android's version: equal for interchangeable phones."""
    build: str | None
    """Fingerprint of the system: another one after every update."""


def identify(shell: Shell) -> Identity:
    """Asks the phone who it is.

    Raises:
        DeviceError: It is no Android device, is too old, or cannot be reached.
    """
    maker, model, release, version, serial, build = _answers(shell, "getprop", _PROPERTIES)
    if not model or not serial:
        raise DeviceError(
            f"phone {shell.phone!r} must tell its model and serial number by getprop, but does "
            "not: is it an Android device?"
        )
    if version and version.isdecimal() and int(version) < _OLDEST_API:
        raise DeviceError(
            f"phone {shell.phone!r} must run Android 8 or newer, whose sha256sum tells that files "
            f"arrived whole, but {maker} {model} runs {release}: update it, or use another one"
        )
    return Identity(serial, f"{maker} {model} (Android {release})", build)


def check_cores(shell: Shell, mask: str) -> None:
    """Makes sure that taskset binds a program to just these cores.

    Args:
        mask: The cores as taskset takes them, in hex.

    Raises:
        DeviceError: It does not.
    """
    try:
        printed = shell.run(["taskset", mask, "grep", "Cpus_allowed:", "/proc/self/status"])
    except CommandFailed as error:
        printed, reason = "", error.words
    else:
        reason = printed.strip()
    found = re.search(r"Cpus_allowed:\s*([0-9a-f,]+)", printed)
    if not found or int(found[1].replace(",", ""), 16) != int(mask, 16):
        raise DeviceError(
            f"`cores` must be cores that phone {shell.phone!r} has and that are not shut off, but "
            f"taskset with their mask {mask} fails or binds to others ({reason}): name others, or "
            "none"
        )


def power_saving(shell: Shell) -> bool:
    """Whether Android's battery saver is on."""
    return (shell.ask("settings", "get", "global", "low_power") or "").strip() == "1"


def check_power_saving(shell: Shell) -> None:
    """Refuses to measure with the battery saver on: it holds the clocks down.

    Raises:
        Throttled: it is on.
    """
    if power_saving(shell):
        raise Throttled(
            f"the battery saver of phone {shell.phone!r} must be off, for it holds the clocks "
            "down, but is on: turn it off, and charge the phone"
        )


def temperatures(thermal: str) -> dict[str, float]:
    """Degrees Celsius by sensor, out of `dumpsys thermalservice`.

    The sensors' own values are taken where they are printed, for the cached ones may be old.
    """
    cached, has_current, current = thermal.partition(_CURRENT)
    found = _TEMPERATURE.findall(current if has_current else cached)
    return {name: float(value) for value, kind, name in found if kind not in _NO_TEMPERATURES}


def wait_until_cool(
    shell: Shell, phone: str, cores: Sequence[int], max_status: int, cool_down_s: float
) -> dict[str, Any]:
    """Waits until the phone's thermal status is low enough; returns its condition then.

    A phone that tells no status, as before Android 10, is not waited for.

    Returns:
        JSON values, the seconds waited among them; None for what this phone does not tell.

    Raises:
        Throttled: It stayed hot for `cool_down_s` seconds.
    """
    started = time.monotonic()
    while True:
        found = condition(shell, cores)
        waited = time.monotonic() - started
        status = found["thermal_status"]
        if status is None or status <= max_status:
            return {"cool_down_s": round(waited, 1), **found}
        if waited >= cool_down_s:
            raise Throttled(
                f"the thermal status of phone {phone!r} must be {max_status} at most, but is "
                f"{status}: let it cool down, away from the sun and out of its case"
            )
        time.sleep(min(_POLL_S, cool_down_s - waited))


def cores_on(shell: Shell) -> list[int]:
    """The cores that the phone tells a clock of."""
    told = shell.ask("sh", "-c", "ls -d /sys/devices/system/cpu/cpu[0-9]*/cpufreq") or ""
    return sorted(map(int, re.findall(r"/cpu(\d+)/cpufreq", told)))


def condition(shell: Shell, cores: Sequence[int]) -> dict[str, Any]:
    """Facts as JSON values, hot or not; None for what this phone does not tell."""
    thermal, battery, power = _answers(shell, "dumpsys", _SERVICES)
    status = _STATUS.search(thermal)
    return {
        "thermal_status": int(status[1]) if status else None,
        "temperatures_c": temperatures(thermal),
        "battery_percent": _number(battery, r"^ *level: (\d+)"),
        "battery_temperature_c": _number(battery, r"^ *temperature: (-?\d+)", 10),
        "screen": wake[1] if (wake := re.search(r"mWakefulness=(\w+)", power)) else None,
        "frequency_khz": {
            str(core): [
                _integer(shell.ask("cat", _CPUFREQ.format(core, which))) for which in ("cur", "max")
            ]
            for core in cores
        },
    }


@contextmanager
def measuring_mode(
    shell: Shell, screen: str, fixed_performance: bool, mark: str, is_anothers: Callable[[], bool]
) -> Iterator[None]:
    """Has screen and performance mode as the settings say while it lasts, and as before then.

    Args:
        mark: A file on the phone, which is there while its screen is kept on: see
            `end_measuring_mode`.
        is_anothers: Whether another program has the phone at the end, and its mode.

    Raises:
        DeviceError: The phone does not know the mode, or `mark` cannot be written.
    """
    end_measuring_mode(shell, mark)
    try:
        if screen != "leave":
            key = "KEYCODE_WAKEUP" if screen == "on" else "KEYCODE_SLEEP"
            shell.run(["input", "keyevent", key])
        if screen == "on":
            shell.put((shell.ask("settings", "get", "global", _STAY_ON) or "").encode(), mark)
            shell.run(["svc", "power", "stayon", "true"])
        if fixed_performance:
            _fix_performance(shell)
        yield
    finally:
        if screen == "on" or fixed_performance:
            with suppress(DeviceError):  # it may be what ended the measurement
                if not is_anothers():
                    end_measuring_mode(shell, mark)


def end_measuring_mode(shell: Shell, mark: str) -> None:
    """Has the phone neither in fixed performance mode nor kept awake, whoever left it so.

    A process that is killed, or loses the phone, cannot undo what it set: the next one does.

    Args:
        mark: A file on the phone with the setting that keeps it awake, as it was before.
    """
    shell.ask(*_FIXED_PERFORMANCE, "false")
    before = shell.ask("cat", mark)
    if before is not None:
        before = before if before.isdecimal() else "0"
        if shell.ask("settings", "put", "global", _STAY_ON, before) is not None:
            shell.ask("rm", "-f", mark)


def _fix_performance(shell: Shell) -> None:
    try:
        shell.run([*_FIXED_PERFORMANCE, "true"])
    except CommandFailed as error:
        raise DeviceError(
            "`fixed_performance` needs Android 11 or newer and a phone that has this mode, "
            f"but phone {shell.phone!r} refuses it ({error.words}): set it to false"
        ) from error


def _answers(shell: Shell, tool: str, names: Sequence[str]) -> list[str]:
    """What a tool prints about each name; all in one command, for each costs a round trip."""
    loop = f'for name; do {tool} "$name"; echo {_MARK}; done'
    printed = shell.run(["sh", "-c", loop, "sh", *names], errors=False)
    return [each.strip() for each in printed.split(_MARK)[: len(names)]]


def _number(text: str, pattern: str, divisor: int = 1) -> float | None:
    found = re.search(pattern, text, re.MULTILINE)
    return int(found[1]) / divisor if found else None


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
