"""Android phones, by ADB: a program on the phone runs the model, this host times nothing."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from device_farm.connector import Connector
from device_farm.connectors.adb.addresses import (
    Address,
    ServerAddress,
    find_phones,
    make_link,
)
from device_farm.connectors.adb.condition import (
    Identity,
    check_cores,
    check_power_saving,
    condition,
    cores_on,
    end_measuring_mode,
    identify,
    measuring_mode,
    wait_until_cool,
)
from device_farm.connectors.adb.keys import default_key_path
from device_farm.connectors.adb.link import Link
from device_farm.connectors.adb.models import ModelFolder, PhoneModel
from device_farm.connectors.adb.owner import Owner
from device_farm.connectors.adb.paths import HostPath
from device_farm.connectors.adb.programs import ProgramFolder
from device_farm.connectors.adb.runners import AnyRunner, Runner, RunPlan
from device_farm.connectors.adb.runners.base import was_ended
from device_farm.connectors.adb.server import DEFAULT_SERVER
from device_farm.connectors.adb.shell import CommandFailed, Shell
from device_farm.failures import DeviceError, DeviceLost, ModelError
from device_farm.identity import DeviceInfo
from device_farm.timing.control import control_workload
from device_farm.timing.measurement import Measurement
from device_farm.timing.protocol import ProtocolSettings, Runs, Timed, baseline_ms, warmup_of_a_call
from device_farm.workload import Workload

__all__ = ["AdbConnector", "AdbSettings", "PhoneModel"]

_FOLDER = "/data/local/tmp/device-farm"
_STAYS_ON = f"{_FOLDER}/stays-on"
"""A file that is there while the screen is kept on."""
_CANNOT_RUN = (126, 127, 128 + signal.SIGILL)
"""A shell's status if a program is not there, or not for this processor."""
_CANNOT_LINK = "CANNOT LINK EXECUTABLE"
"""What Android's linker says if a library is missing or does not fit."""
_CLEAR = """\
cd "$1" 2>/dev/null || exit 0
rm -f results.* *.part models/*.part bin/*/*.part
for old in bin/*; do [ "$old" = "bin/$2" ] || rm -rf "$old"; done"""
_SLOWED = 2
"""Times what a run took before, that it may take."""
_BASELINE_BLOCKS = 3  # a round
"""Each block is a process of its own here, so its figures are nearly independent."""


class AdbSettings(ProtocolSettings):
    """The protocol's settings, the way to the phone, and how it measures.

    How the phone is reached is no part of the settings' identity: phones of one model that are
    set alike are interchangeable.
    """

    interleave: bool = False
    address: Address = Field(exclude=True)
    """`HOST:PORT`, `usb:SERIAL` or `server:SERIAL`."""
    server: ServerAddress = Field(default=DEFAULT_SERVER, exclude=True)
    """The adb server of a `server:` address, `HOST:PORT`."""
    key: HostPath | None = Field(default=None, exclude=True)
    """This host's private key; by default that of the user's `adb`, or one that is made."""
    auth_timeout_s: float = Field(default=10.0, gt=0, exclude=True)
    """Seconds to wait for a person to allow this host."""
    command_timeout_s: float = Field(default=120.0, gt=0, exclude=True)
    """Seconds that a call of the program may take to load the model and run it; to these comes
    twice what its runs took before."""
    runner: AnyRunner | None = None
    """The program that measures; without one the phone can be probed only."""
    threads: int = Field(default=1, ge=1)
    """Of the program."""
    cores: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Cores that the program is bound to, by taskset; by default the phone's scheduler decides."""
    max_thermal_status: int = Field(default=0, ge=0, le=6)
    """Of Android's scale: 0 is none, 1 light throttling."""
    cool_down_s: float = Field(default=0.0, ge=0, exclude=True)
    """Seconds to wait for a hot phone before it counts as throttled; a farm waits by itself."""
    screen: Literal["leave", "on", "off"] = "leave"
    """What it is while the phone is measured."""
    fixed_performance: bool = False
    """Android's fixed performance mode: steadier, and slower. Android 11 and newer. Where false, a
    phone that is in this mode is taken out of it."""


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
        self._identity: Identity | None = None
        self._bound: list[str] | None = None
        self._owner = Owner(f"{_FOLDER}/owner")
        self._programs = ProgramFolder(f"{_FOLDER}/bin")
        self._models = ModelFolder(f"{_FOLDER}/models")
        self._prepared: dict[str, PhoneModel] = {}
        self._converted: dict[str, bytes] = {}

    @classmethod
    def discover(cls, places: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        return {name: dict(settings) for name, settings in find_phones(places).items()}

    @property
    def tells_memory(self) -> bool:
        runner = self.settings.runner
        return runner is not None and "peak_memory_mb" in runner.cost_readings

    def actor_options(self) -> dict[str, Any]:
        return {"num_cpus": 0}

    def probe(self) -> DeviceInfo:
        shell = self.shell()
        found = identify(shell)
        if self._identity and found != self._identity:
            self._prepared.clear()
            self._programs.forget()
            self._bound = None
        self._identity = found
        self._binding(shell)
        runner = self.settings.runner
        if runner:
            shell.check_writable(_FOLDER, self._models.path)
        runtime = runner.identity if runner else "none"
        hardware = {"build": found.build, "converter": runner and runner.converter}
        return self._info(
            found.model, runtime, found.serial, serial=found.serial, hardware=hardware
        )

    def clear_remains(self) -> None:
        """The mode that it was measured in, files that did not arrive whole, results that nobody
        read, and runners of before; not while another program measures, which is `Busy`."""
        if runner := self.settings.runner:
            shell = self.shell()
            self._owner.take(shell)
            end_measuring_mode(shell, _STAYS_ON)
            shell.ask("sh", "-c", _CLEAR, "sh", _FOLDER, self._programs.key(runner))

    def health(self) -> dict[str, Any]:
        own = self.settings
        check_power_saving(self.shell())
        return wait_until_cool(
            self.shell(), self.device, own.cores or (), own.max_thermal_status, own.cool_down_s
        )

    def condition(self) -> dict[str, Any]:
        """Now and without a wait; clocks of all cores that are used."""
        return condition(self.shell(), self.settings.cores or cores_on(self.shell()))

    def stage(self, workload: Workload) -> None:
        """Converts the model, on this host; it is pushed when the phone measures nothing."""
        self._converted = {workload.digest: self._runner().converted(workload.model)}

    def prepare(self, workload: Workload) -> PhoneModel:
        """Also runs the model once, so that one which the program refuses is found out here."""
        shell, runner = self.shell(), self._runner()
        known = self._prepared.get(workload.digest)
        if known and self._models.renew(shell, known.path):
            return known
        self._prepared.pop(workload.digest, None)
        converted = self._converted.pop(workload.digest, None)
        model = self._models.bring(shell, workload, runner, converted, self._pushing)
        try:
            first = self._run(model, 0, 1)
        finally:
            with suppress(DeviceError):  # it may be what ended the run
                control = self._models.path_of(control_workload(), runner)
                self._models.clean(shell, (model.path, control))
        model = replace(model, first_run_s=first.seconds[0])
        self._prepared[workload.digest] = model
        return model

    def calibrate(self) -> float:
        control = self.prepare(control_workload())
        self.health()
        with self._measuring_mode():
            runs = self._runs(control, self.settings)
            return baseline_ms(runs, self._without_warmup(self.settings), _BASELINE_BLOCKS)

    def measure(
        self,
        handle: PhoneModel,
        settings: ProtocolSettings,
        control_baseline_ms: float | None = None,
    ) -> Measurement:
        if settings.interleave and control_baseline_ms is not None:
            control = self._runs(self.prepare(control_workload()), settings)
        else:
            control = None
        costs: list[dict[str, float]] = []
        measurement = self._timed(
            self._runs(handle, settings, costs),
            control,
            control_baseline_ms,
            self._without_warmup(settings),
            self._measuring_mode(),
        )
        assert self._identity is not None
        measurement.settings.update(
            warmup_runs=settings.warmup_runs, warmup_seconds=settings.warmup_seconds
        )
        measurement.environment.update(
            serial=self._identity.serial,
            address=self.settings.address,
            affinity=self._mask(),
            screen_set=self.settings.screen,
            fixed_performance=self.settings.fixed_performance,
        )
        typical: dict[str, Any] = {
            name: median(each[name] for each in costs if name in each)
            for name in {name for each in costs for name in each}
        }
        return replace(measurement, **typical)

    def close(self) -> None:
        self._closed = True
        if self._link:
            self._owner.release(Shell(self._link))
            self._link.close()

    @staticmethod
    def _without_warmup(settings: ProtocolSettings) -> ProtocolSettings:
        """Each call of the program does its own."""
        return settings.model_copy(update={"warmup_runs": 0, "warmup_seconds": 0.0})

    @contextmanager
    def _measuring_mode(self) -> Iterator[None]:
        shell, settings = self.shell(), self.settings
        modes = settings.screen, settings.fixed_performance
        self._owner.take(shell)
        with measuring_mode(shell, *modes, _STAYS_ON, partial(self._owner.is_anothers, shell)):
            yield

    def _pushing(self, size: int) -> AbstractContextManager[None]:
        """Sees that no other program measures, and none begins while so many bytes are pushed."""
        return self._owner.pushing(self.shell(), size)

    def shell(self) -> Shell:
        """Commands on the phone."""
        self._check_open()
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

    def _runs(
        self,
        model: PhoneModel,
        settings: ProtocolSettings,
        costs: list[dict[str, float]] | None = None,
    ) -> Runs:
        """Calls of the program, each with as much warm-up as fits, by what a run took last."""
        seconds_a_run = model.first_run_s

        def run(count: int) -> Timed:
            nonlocal seconds_a_run
            warmup = warmup_of_a_call(settings, seconds_a_run)
            timed = self._run(model, warmup, count, seconds_a_run, costs)
            seconds_a_run = median(timed.seconds)
            return timed

        return run

    def _run(
        self,
        model: PhoneModel,
        warmup: int,
        count: int,
        seconds_a_run: float = 0.0,
        costs: list[dict[str, float]] | None = None,
    ) -> Timed:
        """One call of the program: the seconds of `count` runs.

        Args:
            seconds_a_run: What a run took before, if that is known.
            costs: To which is added what else the call tells.

        Raises:
            ModelError: The program fails on the model.
            Busy: It cannot write its results, or another program measures.
        """
        runner, shell = self._runner(), self.shell()
        bound, binary = self._binding(shell), self._programs.bring(shell, runner, self._pushing)
        results = f"{_FOLDER}/results.{secrets.token_hex(4)}"
        plan = RunPlan(binary, model.path, results, warmup, count, self.settings.threads)
        libraries = f"LD_LIBRARY_PATH={binary.rpartition('/')[0]}"
        silent = "ORT_DISABLE_TELEMETRY=1"
        anew = ["sh", "-c", 'rm -f "$0"; exec "$@"', results]  # for a program may add to a file
        command = ["env", libraries, silent, *bound, *runner.command(plan)]
        limit_s = self.settings.command_timeout_s + _SLOWED * (warmup + count) * seconds_a_run
        try:
            output = shell.run(self._owner.around([*anew, *command], limit_s), limit_s)
        except CommandFailed as error:
            shell.ask("rm", "-f", results)
            if fault := self._owner.fault(shell, error):
                raise fault from error
            own = CommandFailed(shell.phone, command, error.status, error.output)
            raise self._failure(shell, model, own) from error
        try:
            written = shell.ask("cat", results) or ""
            shell.ask("rm", "-f", results)
            if costs is not None:
                costs.append(runner.costs(output, written))
            return runner.seconds(output, written, plan)
        except DeviceError as error:
            shell.check_writable(_FOLDER)
            raise DeviceError(f"phone {self.device!r}: {error}") from error

    def _failure(self, shell: Shell, model: PhoneModel, error: CommandFailed) -> DeviceError:
        """What made the program fail: a file that is gone or damaged, the program, or the model."""
        for path, sha256 in ((model.path, model.sha256), *self._programs.brought.items()):
            if not shell.has(path, sha256):
                self._prepared.clear()
                self._programs.forget()
                return DeviceLost(
                    f"{path} vanished from phone {self.device!r} or is damaged, and will be "
                    "brought again: see what removes files there, or whether its power was lost"
                )
        runner = self._runner()
        if error.status in _CANNOT_RUN or _CANNOT_LINK in error.output:
            self._programs.forget()
            return DeviceError(
                f"phone {self.device!r} cannot run {runner.binary}: build it for the phone's "
                f"processor, with its libraries in `libraries` ({error.words})"
            )
        shell.check_writable(_FOLDER)
        if was_ended(error.status):
            return DeviceError(
                f"{runner.binary.name} must run to its end, but was ended on phone "
                f"{self.device!r}: see whether the phone lacks memory, or what ends programs there "
                f"({error.words})"
            )
        return ModelError(
            f"{runner.binary.name} on phone {self.device!r} cannot run the model: {error.words}"
        )

    def _binding(self, shell: Shell) -> list[str]:
        """The words that bind a program to the cores, tried once."""
        if self._bound is None:
            mask = self._mask()
            if mask:
                check_cores(shell, mask)
            self._bound = ["taskset", mask] if mask else []
        return self._bound

    def _mask(self) -> str | None:
        """The cores as taskset takes them: a mask in hex."""
        cores = self.settings.cores
        return f"{sum(1 << core for core in set(cores)):x}" if cores else None
