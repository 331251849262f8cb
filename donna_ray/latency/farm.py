"""The way to a device, through a farm or a record: candidates are measured on it."""

import sqlite3
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ray

from device_farm import DeviceLost, DeviceTimeout, Farm, FarmLost, ModelError
from device_farm.ending import explained
from donna_ray.errors import DonnaError
from donna_ray.latency.figures import Latency, memory_not_told
from donna_ray.latency.recorded import Record

__all__ = ["LatencyFarm", "RecordedFarm", "Unmeasured"]


@dataclass(frozen=True)
class Unmeasured:
    """Why a model could not be measured, and whether it is the model's own fault."""

    reason: str
    of_model: bool

    def outcome(self) -> dict[str, Any]:
        """As a search takes it."""
        return {"failure": self.reason, "of_model": self.of_model}


class LatencyFarm:
    """Measures candidates on one device. Picklable: give it to Ray's workers as it is.

    Attributes:
        repeats: a model that is measured again is another measurement.
    """

    repeats = True

    def __init__(self, farm: Farm, device: str, *, is_ours: bool) -> None:
        self._farm, self._device, self._is_ours = farm, device, is_ours
        self._asked: set[Any] = set()
        self.at_end = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        """A copy gives up only what it asked for itself, and ends nothing else."""
        return {**self.__dict__, "_asked": set(), "at_end": ExitStack()}

    def submit(self, model: bytes, repeat: int = 0) -> Any:
        """Queue an ONNX model for the device; a reference for ``wait``.

        Args:
            model: serialized.
            repeat: asks for a measurement of its own, beside those of other numbers.
        """
        reference = self._farm.submit(bytes(model), self._device, repeat)
        self._asked.add(reference)
        return reference

    def wait(self, references: Sequence[Any]) -> list[Latency]:
        """The measurements of submitted models, in order.

        Raises:
            DonnaError: a model could not be measured, and the farm's policy gave up on it.
        """
        try:
            latencies = ray.get(list(references))
        except ray.exceptions.RayTaskError as error:
            why = error.cause
            words = explained(why) if isinstance(why, sqlite3.Error) else why
            raise DonnaError(f"A candidate could not be measured: {words}") from error
        except ray.exceptions.RayError as error:
            is_lost = isinstance(error, ray.exceptions.ActorUnschedulableError)
            why = FarmLost() if is_lost else error
            raise DonnaError(f"The device farm stopped while it measured: {why}") from error
        self._asked.difference_update(references)
        return latencies

    def settle(self, references: Sequence[Any]) -> list["Latency | Unmeasured"]:
        """Like ``wait``, but why a model could not be measured in place of its measurement.

        Raises:
            DonnaError: no device can measure, or the farm cannot keep what it measures, whatever
                the model.
        """
        ray.wait(list(references), num_returns=len(references))
        self._asked.difference_update(references)
        return [self._settled(reference) for reference in references]

    def with_memory(self, model: bytes, latency: "Latency | Unmeasured") -> "Latency | Unmeasured":
        """A measurement of a model with the memory that it takes.

        Where it lacks that, for the process that tells it was ended say, the model is measured once
        more, and only the memory taken of that: the farm keeps the first measurement.

        Raises:
            DonnaError: no device can measure, whatever the model.
        """
        if isinstance(latency, Unmeasured) or latency.get("peak_memory_mb") is not None:
            return latency
        [again] = self.settle([self.submit(model, time.time_ns())])
        if isinstance(again, Unmeasured):
            return again
        if again.get("peak_memory_mb") is None:
            reason = f"its memory must be told, but {memory_not_told(again)}"
            return Unmeasured(reason, of_model=False)
        return {**latency, "peak_memory_mb": again["peak_memory_mb"]}

    def _settled(self, reference: Any) -> "Latency | Unmeasured":
        try:
            return self.wait([reference])[0]
        except DonnaError as error:
            cause = getattr(error.__cause__, "cause", None)
            if isinstance(cause, sqlite3.Error):  # of the farm's cache: its disk is full, say
                raise
            is_of_one = isinstance(cause, ModelError | DeviceLost | DeviceTimeout)
            # Anything else, such as a bug of a connector, is of this model as far as one can tell.
            if is_of_one or (cause is not None and self.devices()):
                reason = f"{type(cause).__name__}: {cause}"
                return Unmeasured(reason, of_model=isinstance(cause, ModelError))
            raise

    def devices(self) -> int:
        """How many devices measure for this one's name or model now; 0 where the farm is gone."""
        try:
            rows = self._farm.status()
        except ray.exceptions.RayError:  # measuring will say so
            return 0
        known = [row for row in rows if self._device in (row["device"], row["model"])]
        return sum(row["state"] in ("ready", "leased", "cooling") for row in known)

    def close(self) -> None:
        """Stop the farm's actors; a served farm goes on, without what was not waited for."""
        with self.at_end:
            if self._is_ours:
                self._farm.close()
                return
            for reference in self._asked:
                ray.cancel(reference)


class RecordedFarm(LatencyFarm):
    """Answers from a record, at once: the references are the answers."""

    repeats = False

    def __init__(self, record: Record) -> None:
        self._record, self.at_end = record, ExitStack()

    def submit(self, model: bytes, repeat: int = 0) -> "Latency | Unmeasured":
        """What is recorded of an ONNX model, or of its network."""
        network = getattr(model, "network", None)
        found = self._record.latency(model, network, repeat)
        if found is not None:
            return found
        path = self._record.path
        if network is None:
            remedy = "give it as device.settings.reference_ms"
            return Unmeasured(f"the reference is not in the record {path}: {remedy}", of_model=True)
        return Unmeasured(f"{network} is not in the record {path}", of_model=True)

    def wait(self, references: Sequence[Any]) -> list[Latency]:
        """See ``LatencyFarm``."""
        for each in references:
            if isinstance(each, Unmeasured):
                raise DonnaError(f"A network must be recorded, but {each.reason}.")
        return list(references)

    def settle(self, references: Sequence[Any]) -> list["Latency | Unmeasured"]:
        """See ``LatencyFarm``."""
        return list(references)

    def devices(self) -> int:
        """One: that of the record."""
        return 1

    def close(self) -> None:
        """There is nothing to stop."""
        self.at_end.close()
