"""A third party's connector: a device that does what files tell it to, one line a measurement.

`folder/NAME.script` holds the failures to come, `folder/NAME.log` what the device did.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from device_farm import failures
from device_farm.connector import Connector
from device_farm.identity import DeviceInfo, digest
from device_farm.timing.measurement import Measurement
from device_farm.timing.protocol import ProtocolSettings
from device_farm.workload import Workload


class ScriptedSettings(ProtocolSettings):
    folder: Path
    cores: tuple[int, ...] = ()
    interleave: bool = False
    seconds: float = 0.0


class ScriptedConnector(Connector[str]):
    name: ClassVar[str] = "scripted"
    settings_type: ClassVar[type[ProtocolSettings]] = ScriptedSettings
    settings: ScriptedSettings

    @classmethod
    def discover(cls, places: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        return {}

    def actor_options(self) -> dict[str, Any]:
        return {"num_cpus": 0}

    def probe(self) -> DeviceInfo:
        if (self.settings.folder / f"{self.device}.away").exists():
            raise failures.Busy("close the other program")
        settings = self.settings.model_dump(mode="json")
        return DeviceInfo(
            self.device,
            "a script",
            "scripted",
            "1",
            "here",
            self.settings.cores,
            digest(settings),
            "none",
        )

    def health(self) -> dict[str, Any]:
        return {}

    def prepare(self, workload: Workload) -> str:
        return workload.digest

    def calibrate(self) -> float:
        raise failures.DeviceError("a script has no control model: set interleave to false")

    def measure(
        self,
        handle: str,
        settings: ProtocolSettings,
        control_baseline_ms: float | None = None,
    ) -> Measurement:
        act = self._next_act()
        with (self.settings.folder / f"{self.device}.log").open("a") as log:
            log.write(f"{act}\n")
        time.sleep(self.settings.seconds)
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif act == "hang":
            time.sleep(600)
        elif act == "bug":
            raise ZeroDivisionError("a bug in the connector")
        elif act not in ("measure", "slow"):
            raise getattr(failures, act)(f"{self.device} says {act}")
        return Measurement(
            4.0 if act == "slow" else 2.0,
            1.0,
            3.0,
            1,
            0.0,
            "a script",
            "scripted",
            settings.model_dump(mode="json"),
            {},
            True,
        )

    def close(self) -> None:
        pass

    def _next_act(self) -> str:
        script = self.settings.folder / f"{self.device}.script"
        acts = script.read_text().split() if script.exists() else []
        script.write_text("\n".join(acts[1:]))
        return acts[0] if acts else "measure"
