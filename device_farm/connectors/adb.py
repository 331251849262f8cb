"""Android phones, by ADB: a program on the phone runs the model, this host times nothing."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from device_farm.adb.addresses import ADDRESS, find_phones, make_link
from device_farm.adb.environment import (
    Identity,
    condition,
    identify,
    measuring_mode,
    wait_until_cool,
)
from device_farm.adb.keys import default_key_path
from device_farm.adb.link import Link
from device_farm.adb.runners import AnyRunner, Runner, RunPlan
from device_farm.adb.server import DEFAULT_SERVER
from device_farm.adb.shell import CommandFailed, Shell
from device_farm.connector import Connector, DeviceInfo, digest
from device_farm.control import control_workload
from device_farm.failures import DeviceError, DeviceLost, ModelError
from device_farm.measurement import Measurement
from device_farm.protocol import ProtocolSettings, baseline_ms, time_candidate
from device_farm.workload import Workload

__all__ = ["AdbConnector", "AdbSettings", "PhoneModel"]

_FOLDER = "/data/local/tmp/device-farm"
_MODELS_KEPT = 20
_CANNOT_RUN = (126, 127)
"""A shell's status if a program is not there, or not for this processor."""
_BASELINE_BLOCKS = 12
"""Each block is a process of its own here, so its figures are nearly independent."""


class AdbSettings(ProtocolSettings):
    """The protocol's settings, the way to the phone, and how it measures.

    How the phone is reached is no part of the settings' identity: phones of one model that are
    set alike are interchangeable.
    """

    interleave: bool = False
    address: str = Field(pattern=ADDRESS, exclude=True)
    """`HOST:PORT`, `usb:SERIAL` or `server:SERIAL`."""
    server: str = Field(default=DEFAULT_SERVER, pattern=r"^[^:\s]+:\d{1,5}$", exclude=True)
    """The adb server of a `server:` address."""
    key: Path | None = Field(default=None, exclude=True)
    """This host's private key; by default that of the user's `adb`, or one that is made."""
    auth_timeout_s: float = Field(default=10.0, gt=0, exclude=True)
    """Seconds to wait for a person to allow this host."""
    command_timeout_s: float = Field(default=120.0, gt=0, exclude=True)
    """Seconds that one block of runs may take, loading the model included."""
    runner: AnyRunner | None = None
    """The program that measures; without one the phone can be probed only."""
    threads: int = Field(default=1, ge=1)
    cores: tuple[int, ...] | None = None
    """Cores that the program is bound to, by taskset; by default the phone's scheduler decides."""
    max_thermal_status: int = Field(default=0, ge=0, le=6)
    """Of Android's scale: 0 is none, 1 light throttling."""
    cool_down_s: float = Field(default=0.0, ge=0, exclude=True)
    """Seconds to wait for a hot phone before it counts as throttled; a farm waits by itself."""
    screen: Literal["leave", "on", "off"] = "leave"
    fixed_performance: bool = False
    """Android's fixed performance mode: steadier, and slower. Android 11 and newer."""


@dataclass(frozen=True)
class PhoneModel:
    """A model on the phone."""

    digest: str
    path: str


class AdbConnector(Connector[PhoneModel]):
    """Runs a program on an Android phone, once a block of runs.

    Each call of the program loads the model anew, and its warm-up runs are left out. Files on the
    phone are in /data/local/tmp/device-farm, named by their hashes; the newest models stay.
    """

    name: ClassVar[str] = "adb"
    settings_type: ClassVar[type[ProtocolSettings]] = AdbSettings
    settings: AdbSettings

    def __init__(self, device: str, settings: Mapping[str, Any]) -> None:
        super().__init__(device, settings)
        self._link: Link | None = None
        self._stager: Link | None = None
        self._identity: Identity | None = None
        self._binary: str | None = None
        self._prepared: dict[str, PhoneModel] = {}
        self._closed = False

    @classmethod
    def discover(cls, places: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        return {name: dict(settings) for name, settings in find_phones(places).items()}

    def actor_options(self) -> dict[str, Any]:
        return {"num_cpus": 0}

    def probe(self) -> DeviceInfo:
        found = identify(self._shell())
        if self._identity and found != self._identity:
            self._prepared.clear()
            self._binary = None
        self._identity = found
        runner = self.settings.runner
        identity = {"connector": self.name, "runtime": runner.identity if runner else "none"}
        settings = self.settings.model_dump(mode="json")
        control = {**identity, **settings, "control": control_workload().digest}
        return DeviceInfo(
            name=self.device,
            model=found.model,
            host=found.serial,
            cores=(),
            settings_digest=digest({**identity, **settings}),
            control_digest=digest(control),
            serial=found.serial,
            **identity,
        )

    def health(self) -> dict[str, Any]:
        shell = self._shell()
        waited = wait_until_cool(
            shell, self.device, self.settings.max_thermal_status, self.settings.cool_down_s
        )
        return {"cool_down_s": round(waited, 1), **condition(shell, self.settings.cores or ())}

    def stage(self, workload: Workload) -> None:
        """Pushes the model over a connection of its own; over USB there is only one."""
        if self._closed or self.settings.address.startswith("usb:"):
            return
        self._stager = self._stager or self._make_link()
        self._bring(Shell(self._stager), workload)

    def prepare(self, workload: Workload) -> PhoneModel:
        """Also runs the model once, so that one which the program refuses is found out here."""
        shell = self._shell()
        if workload.digest not in self._prepared:
            model = PhoneModel(workload.digest, self._bring(shell, workload))
            self._run(model, 1)
            self._prepared[workload.digest] = model
            self._remove_old_models(shell)
        return self._prepared[workload.digest]

    def calibrate(self) -> float:
        control = self.prepare(control_workload())
        return baseline_ms(partial(self._run, control), self._protocol(), _BASELINE_BLOCKS)

    def measure(
        self,
        handle: PhoneModel,
        settings: ProtocolSettings,
        control_baseline_ms: float | None = None,
    ) -> Measurement:
        if settings.interleave and control_baseline_ms is not None:
            control = partial(self._run, self.prepare(control_workload()))
        else:
            control = None
        before = self.health()
        mode = (self.settings.screen, self.settings.fixed_performance)
        with measuring_mode(self._shell(), *mode) as done:
            timing = time_candidate(
                partial(self._run, handle), control, control_baseline_ms, self._protocol(settings)
            )
        info = self.probe()
        environment = {
            "before": before,
            "after": self.health(),
            "serial": info.host,
            "address": self.settings.address,
            "runtime": info.runtime,
            "affinity": self._mask(),
            **done,
            **timing.control_facts(control_baseline_ms),
        }
        return self._measurement(timing, settings, info.model, environment)

    def close(self) -> None:
        self._closed = True
        for link in filter(None, (self._link, self._stager)):
            link.close()

    def _protocol(self, settings: ProtocolSettings | None = None) -> ProtocolSettings:
        """Without warm-up: each call of the program does its own."""
        return (settings or self.settings).model_copy(update={"warmup_runs": 0})

    def _shell(self) -> Shell:
        if self._closed:
            raise DeviceLost(f"device {self.device!r} is closed: make a new connector")
        self._link = self._link or self._make_link()
        return Shell(self._link)

    def _make_link(self) -> Link:
        settings = self.settings
        return make_link(
            self.device,
            settings.address,
            settings.server,
            settings.key or default_key_path(),
            settings.auth_timeout_s,
        )

    def _runner(self) -> Runner:
        if self.settings.runner is None:
            raise DeviceError(
                f"phone {self.device!r} needs a program that measures, but has none: "
                "set `runner`, with its kind and the path of its binary"
            )
        return self.settings.runner

    def _bring(self, shell: Shell, workload: Workload) -> str:
        """Brings a model onto the phone; returns its path there."""
        runner = self._runner()
        key = digest({"model": workload.digest, "convert": runner.convert})
        if not runner.convert:
            path = f"{_FOLDER}/models/{workload.digest}{runner.suffix}"
            shell.put(workload.model, path)
            return path
        path = f"{_FOLDER}/models/{key}{runner.suffix}"
        if shell.ask("test", "-f", path) is None:
            shell.put(runner.converted(workload.model), path)
        return path

    def _bring_binary(self, shell: Shell) -> str:
        if self._binary is None:
            runner = self._runner()
            key = hashlib.sha256(runner.identity.encode()).hexdigest()[:16]
            folder = f"{_FOLDER}/bin/{key}"
            for file in (*runner.libraries, runner.binary):
                shell.put(file.read_bytes(), f"{folder}/{file.name}", executable=True)
            self._binary = f"{folder}/{runner.binary.name}"
        return self._binary

    def _run(self, model: PhoneModel, count: int) -> list[float]:
        """One call of the program: the seconds of `count` runs.

        Raises:
            ModelError: The program fails on the model.
        """
        runner, shell = self._runner(), self._shell()
        binary = self._bring_binary(shell)
        results = f"{_FOLDER}/results.{secrets.token_hex(4)}"
        plan = RunPlan(
            binary, model.path, results, self.settings.warmup_runs, count, self.settings.threads
        )
        libraries = f"LD_LIBRARY_PATH={binary.rpartition('/')[0]}"
        bound = ["taskset", mask] if (mask := self._mask()) else []
        try:
            output = shell.run(
                ["env", libraries, *bound, *runner.command(plan)], self.settings.command_timeout_s
            )
        except CommandFailed as error:
            if error.status in _CANNOT_RUN:
                self._binary = None
                raise DeviceError(
                    f"phone {self.device!r} cannot run {runner.binary}: build it for the phone's "
                    f"processor, with its libraries in `libraries` ({error})"
                ) from error
            raise ModelError(
                f"{runner.binary.name} on phone {self.device!r} cannot run the model: {error}"
            ) from error
        written = shell.ask("cat", results) or ""
        shell.ask("rm", "-f", results)
        return runner.seconds(output, written, plan)

    def _mask(self) -> str | None:
        """The cores as taskset takes them: a mask in hex."""
        cores = self.settings.cores
        return f"{sum(1 << core for core in set(cores)):x}" if cores else None

    def _remove_old_models(self, shell: Shell) -> None:
        """Keeps the newest models on the phone."""
        names = (shell.ask("ls", "-t", f"{_FOLDER}/models") or "").split()
        old = {f"{_FOLDER}/models/{name}" for name in names[_MODELS_KEPT:]}
        if old:
            shell.ask("rm", "-f", *old)
            kept = {key: model for key, model in self._prepared.items() if model.path not in old}
            self._prepared = kept
