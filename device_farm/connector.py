"""The contract between the farm and a kind of device, and the registry of the kinds.

A third party adds a kind of device by subclassing `Connector`, running
`device_farm.testing.ConnectorConformance` on it, and declaring an entry point:

    [project.entry-points."device_farm.connectors"]
    my_board = "my_package:MyBoardConnector"

docs/device-farm.md has a whole one, which passes that suite.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from device_farm.failures import DeviceLost, Throttled
from device_farm.identity import DeviceInfo, device_info
from device_farm.plugins import plugin, plugin_names
from device_farm.timing.measurement import Measurement
from device_farm.timing.protocol import ProtocolSettings, Runs, time_candidate
from device_farm.timing.sustained import SustainedSettings, time_sustained
from device_farm.workload import Workload

__all__ = [
    "Connector",
    "check_settings",
    "connector_names",
    "connector_type",
    "faults_in_words",
    "make_connector",
]

HandleT = TypeVar("HandleT")
_FIGURES = "median_ms", "blocks_p20_ms", "blocks_p90_ms", "p90_ms", "p99_ms", "n", "ci_percent"

_ENTRY_POINTS = "device_farm.connectors"
_BUILT_IN = {
    "adb": "device_farm.connectors.adb.connector:AdbConnector",
    "cuda": "device_farm.connectors.cuda.connector:CudaConnector",
    "onnxruntime": "device_farm.connectors.onnxruntime:OnnxRuntimeConnector",
    "simulated": "device_farm.connectors.simulated:SimulatedConnector",
}


class Connector(ABC, Generic[HandleT]):
    """One device and the way to it.

    Ownership: whoever makes a connector owns it, closes it, and is alone in using the device.
    Thread safety: none but that of `stage`. One thread at a time calls a connector, and `measure`
    runs the model in the thread that calls it.
    Failures: every method raises a `DeviceError` of the kind that fits, with a message that says
    what to do, and nothing else. After one the connector stays usable: the next call reconnects
    if need be. No method blocks for ever: what a device does not answer is a `DeviceTimeout`.
    """

    name: ClassVar[str]
    """The kind's name, under which it is registered."""
    settings_type: ClassVar[type[ProtocolSettings]] = ProtocolSettings
    """The protocol's settings, extended by the kind's own."""

    def __init__(self, device: str, settings: Mapping[str, Any]) -> None:
        """Validates the settings. Touches no device, so it works on a host that lacks it.

        Raises:
            ValueError: A setting is unknown, of the wrong type or out of its range.
        """
        self.device = device
        try:
            self.settings = self.settings_type.model_validate(dict(settings))
        except ValidationError as error:
            raise _unusable(f"device {device!r}", self.settings_type, error.errors()) from error
        self._closed = False

    @classmethod
    @abstractmethod
    def discover(cls, places: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """The devices of this kind that this host can reach: name to the settings that reach it.

        Takes a second at most, for the farm calls it again and again, and disturbs no device.

        Args:
            places: Where to look, in the kind's own words; by default what the host itself has.

        Raises:
            ValueError: A place is no place of this kind.
        """

    @abstractmethod
    def actor_options(self) -> dict[str, Any]:
        """What a scheduler reserves for the device, as options of a Ray actor."""

    @abstractmethod
    def probe(self) -> DeviceInfo:
        """Connects and says what the device is. Idempotent, takes seconds at most."""

    def clear_remains(self) -> None:
        """Removes what an owner that was killed may have left on the device.

        A farm calls it at the first probe of each process that it starts for the device. By default
        nothing.

        Raises:
            Busy: Another program uses the device. Then nothing is removed.
        """

    @abstractmethod
    def health(self) -> dict[str, Any]:
        """Facts on the device's condition now, JSON values; raises if it cannot measure now."""

    def condition(self) -> dict[str, Any]:
        """The same facts, clocks and temperatures among them, also of a device that is too hot.

        By default `health`, and what that says of the heat as `throttled`.
        """
        try:
            return self.health()
        except Throttled as error:
            return {"throttled": str(error)}

    @abstractmethod
    def prepare(self, workload: Workload) -> HandleT:
        """Brings a model onto the device.

        Idempotent and addressed by `workload.digest`: what is there already is not brought again.
        The handle is valid until `close`, unless the device has let go of the model since: then
        `measure` raises `DeviceLost`, and `prepare` brings it again.

        Raises:
            ModelError: The runtime refuses the model.
        """

    def stage(self, workload: Workload) -> None:
        """Does ahead of `prepare` what of it does not disturb a measurement, a conversion say.

        Nothing reaches the device: taking a file costs it CPU seconds, which a run would show. The
        only method that another thread may call while `measure` runs. By default nothing.
        """

    @abstractmethod
    def calibrate(self) -> float:
        """Measures the control model's baseline, in milliseconds, which takes seconds.

        That is `timing.protocol.baseline_ms` of runs of `timing.control.control_workload`.
        The owner does this once for each (`DeviceInfo.model`, `DeviceInfo.control_digest`), keeps
        the result and gives it to every `measure`.
        """

    @abstractmethod
    def measure(
        self,
        handle: HandleT,
        settings: ProtocolSettings,
        control_baseline_ms: float | None = None,
    ) -> Measurement:
        """Measures a prepared model by `device_farm.timing.protocol`.

        Args:
            handle: What `prepare` returned.
            settings: How much to run; `self.settings` by the farm. `SustainedSettings` ask for
                runs without pause, which `_timed` does and tells in the environment.
            control_baseline_ms: What `calibrate` returned; needed if `settings.interleave`.

        Raises:
            ModelError: The model fails at run time.
            ValueError: `settings.interleave` without a baseline.
        """

    @property
    def tells_memory(self) -> bool:
        """Whether measurements with these settings have `Measurement.peak_memory_mb`."""
        return False

    def input_shapes(self, workload: Workload) -> dict[str, list[int]]:
        """The shapes that a run of the model takes here, by the input's name."""
        return {spec.name: list(spec.shape) for spec in workload.inputs}

    @abstractmethod
    def close(self) -> None:
        """Releases the device. Idempotent; any other method then raises `DeviceLost`."""

    def _check_open(self) -> None:
        """Raises DeviceLost after `close`."""
        if self._closed:
            raise DeviceLost(f"device {self.device!r} is closed: make a new connector")

    def _info(self, *facts: Any, **more: Any) -> DeviceInfo:
        """What `probe` returns: `device_info` of this device and its settings, and these facts."""
        settings = self.settings.model_dump(mode="json")
        return device_info(self.device, self.name, settings, *facts, **more)

    def _timed(
        self,
        candidate: Runs,
        control: Runs | None,
        control_baseline_ms: float | None,
        settings: ProtocolSettings,
        within: AbstractContextManager[object] | None = None,
        simulated: bool = False,
    ) -> Measurement:
        """What `measure` returns; the connector adds its own facts to the environment.

        Args:
            candidate: Of what runs the model so many times: the seconds of each run. See `Runs`.
            control: Likewise of the control model; needed if `settings.interleave`.
            control_baseline_ms: As of `measure`.
            settings: Likewise.
            within: Entered while the runs are timed, but not while health is asked for.
        """
        if isinstance(settings, SustainedSettings):
            return self._sustained(candidate, settings, within, simulated)
        before = self.health()
        with within or nullcontext():
            timing = time_candidate(candidate, control, control_baseline_ms, settings)
        control_facts = timing.control_facts(control_baseline_ms)
        facts = {"before": before, "after": self.health(), **control_facts}
        figures = {name: getattr(timing, name) for name in _FIGURES}
        return self._measured(figures, facts, settings, simulated)

    def _sustained(
        self,
        candidate: Runs,
        settings: SustainedSettings,
        within: AbstractContextManager[object] | None,
        simulated: bool,
    ) -> Measurement:
        """`_timed` of runs without pause: what makes a device rest is asked before, never within.

        The environment has them as `sustained`; the measurement's figures are of all blocks.
        """
        self.health()
        before = self.condition()
        with within or nullcontext():
            told = time_sustained(candidate, settings)
        after = self.condition()  # at once, for clocks and heat fall
        facts = {"before": before, "after": after, "sustained": told.to_json()}
        return self._measured(told.figures(), facts, settings, simulated)

    def _measured(
        self,
        figures: Mapping[str, Any],
        facts: Mapping[str, Any],
        settings: ProtocolSettings,
        simulated: bool,
    ) -> Measurement:
        """The record of what is timed, by figures and facts for the environment."""
        info = self.probe()  # afterwards: if it is another device now, the record says so
        return Measurement(
            **figures,
            device=info.model,
            connector=self.name,
            settings={**self.settings.model_dump(mode="json"), **settings.model_dump(mode="json")},
            environment={**facts, "runtime": info.runtime},
            simulated=simulated,
        )


def connector_names() -> list[str]:
    """The kinds of device known here: built in, or registered by an entry point."""
    return sorted(_BUILT_IN.keys() | set(plugin_names(_ENTRY_POINTS)))


def connector_type(name: str) -> type[Connector[Any]]:
    """Finds a kind of device by its name; a built-in one goes before an entry point.

    Raises:
        ValueError: No such kind is known, several packages register it, or its cannot be imported.
    """
    kind: type[Connector[Any]]
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        kind = getattr(importlib.import_module(module), attribute)
    elif found := plugin(_ENTRY_POINTS, name):
        kind = found
    else:
        raise ValueError(
            f"a connector must be one of {', '.join(connector_names())}, but got {name!r}: "
            f"correct the name, or install the package that registers it as {_ENTRY_POINTS}"
        )
    return kind


def make_connector(name: str, device: str, settings: Mapping[str, Any]) -> Connector[Any]:
    """Makes the connector of one device; see `Connector.__init__`.

    Raises:
        ValueError: No such kind of device is known, or the settings are unusable.
    """
    return connector_type(name)(device, settings)


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuses settings that no device of a kind could have, however it is reached.

    Raises:
        ValueError: No such kind of device is known, or a setting is unusable.
    """
    settings_type = connector_type(name).settings_type
    try:
        settings_type.model_validate(dict(settings))
    except ValidationError as error:
        if faults := [fault for fault in error.errors() if fault["type"] != "missing"]:
            raise _unusable(f"{name!r} devices", settings_type, faults) from error


def faults_in_words(faults: Sequence[ErrorDetails]) -> str:
    """What pydantic refuses, each with its key and the value."""
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'settings'}: {fault['msg']}, "
        f"but got {fault['input']!r}"
        for fault in faults
    )


def _unusable(
    whose: str, settings_type: type[ProtocolSettings], faults: Sequence[ErrorDetails]
) -> ValueError:
    known = ", ".join(settings_type.model_fields)
    return ValueError(f"settings of {whose}: {faults_in_words(faults)}. Known: {known}")
