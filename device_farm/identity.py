"""Which devices are alike: of one model and one digest of all that a latency depends on.

Pools, the cache and the control's baseline go by these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from device_farm.timing.control import control_workload
from device_farm.timing.protocol import PROTOCOL

__all__ = ["DeviceInfo", "changes", "device_info", "digest"]

_LONGEST = 80


@dataclass(frozen=True)
class DeviceInfo:
    """What a device says of itself."""

    name: str
    """The name that the farm's operator gave it."""
    model: str
    """Equal for devices that are interchangeable, such as the name of the CPU."""
    connector: str
    runtime: str
    """What runs the model there, with its version."""
    host: str
    """The machine that the device belongs to."""
    cores: tuple[int, ...]
    """Cores of the host that a measurement occupies: no other device may use them."""
    settings_digest: str
    """Digest of all that a measurement depends on but for the model: the connector, its runtime,
    the hardware with its driver, all settings, and the version of the protocol."""
    control_digest: str
    """Digest of what the control model's latency depends on: the key of the baseline."""
    serial: str = ""
    """Of the thing itself, if it has one: a farm refuses a second way to the same thing."""
    hardware: dict[str, Any] = field(default_factory=dict, compare=False)
    """What else of device and driver is in the digests, for messages."""


def device_info(
    device: str,
    connector: str,
    settings: Mapping[str, Any],
    model: str,
    runtime: str,
    host: str,
    cores: tuple[int, ...] = (),
    serial: str = "",
    control_settings: Sequence[str] | None = None,
    hardware: Mapping[str, Any] | None = None,
) -> DeviceInfo:
    """What a device says of itself, with the digests.

    Args:
        device: Its name. This, and what is not named here, is as in `DeviceInfo`.
        connector: The name of its kind.
        settings: All of them, as plain JSON.
        control_settings: The settings that the control's latency depends on; by default all.
        hardware: What else of device and driver a latency depends on, as plain JSON. It is in both
            digests, so devices that differ in it are not interchangeable.
    """
    known: dict[str, Any] = {"connector": connector, "runtime": runtime}
    known |= {"hardware": dict(hardware or {}), "protocol": PROTOCOL}
    control = {key: settings[key] for key in control_settings or settings}
    return DeviceInfo(
        name=device,
        model=model,
        connector=connector,
        runtime=runtime,
        host=host,
        cores=cores,
        settings_digest=digest({**known, **settings}),
        control_digest=digest({**known, **control, "control": control_workload().digest}),
        serial=serial,
        hardware=dict(hardware or {}),
    )


def changes(before: DeviceInfo, now: DeviceInfo) -> str:
    """What a device is now and was not before, in words, of what a latency depends on."""
    facts = [
        {"model": each.model, "runtime": each.runtime, **each.hardware} for each in (before, now)
    ]
    names = [name for name in {**facts[0], **facts[1]} if facts[0].get(name) != facts[1].get(name)]
    told = [
        f"{name} was {_brief(facts[0], name)} and is {_brief(facts[1], name)}" for name in names
    ]
    return ", ".join(told) or "its settings, or the measuring protocol, are others"


def _brief(facts: Mapping[str, Any], name: str) -> str:
    text = str(facts.get(name))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 in hex of JSON facts, whatever the order of their keys."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
