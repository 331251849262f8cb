"""What all runners share: their files, and how they are called and read."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from device_farm.connectors.adb.paths import HostPath
from device_farm.failures import DeviceError, ModelError
from device_farm.timing.protocol import Timed

__all__ = ["RunPlan", "Runner", "Unit", "file_digest", "was_ended"]

Unit = Literal["s", "ms", "us", "ns"]
_SECONDS: Mapping[Unit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_SENT = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
_ENDED = {
    status for each in (*_SENT, signal.SIGXCPU, signal.SIGXFSZ) for status in (-each, 128 + each)
}
"""By a signal that others send, or for a limit that is no model's."""
_CONVERSION_LIMIT_S = 600
_ABANDONED_S = 3600
_FOLDERS = "device-farm-conversion-"
_VERSION_LIMIT_S = 60


@dataclass(frozen=True)
class RunPlan:
    """One call of a runner: paths on the phone, and how much to run."""

    binary: str
    model: str
    results: str
    """A file that the program may write; it is read after the call, and removed."""
    warmup: int
    runs: int
    threads: int


class Runner(BaseModel, ABC):
    """A program on the phone, and how it is called and read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    binary: HostPath = Field(exclude=True)
    """The program, built for the phone, on the host that has that: pushed once, and known by its
    hash."""
    libraries: tuple[HostPath, ...] = Field(default=(), exclude=True)
    """Shared libraries that it needs, likewise."""
    arguments: tuple[str, ...] = ()
    """More arguments of the program."""
    convert: tuple[str, ...] = ()
    """A command of this host, a word an item, that makes the model's file for the program out of
    {onnx}, as {output}; empty if the program reads ONNX."""

    @property
    def identity(self) -> str:
        """The program's name, and the start of the SHA-256 of it and its libraries.

        Raises:
            DeviceError: One of them is not there. Only who has the phone needs to have them.
        """
        files = (self.binary, *self.libraries)
        for path in files:
            if not path.is_file():
                raise DeviceError(
                    f"the program that measures and its libraries must be on {socket.gethostname()}"
                    f", which has the phone, but there is no file {path}: build it for the phone, "
                    "or correct `runner`"
                )
        hashes = "".join(map(file_digest, files))
        return f"{self.binary.name} {hashlib.sha256(hashes.encode()).hexdigest()[:12]}"

    @property
    def conversion(self) -> tuple[str, ...]:
        """`convert`, or the command that is taken where it is empty; empty if none is."""
        return self.convert

    @property
    def converter(self) -> str | None:
        """What converts: the files among its words by their SHA-256, and what `--version` prints.

        Of `python -m mine -i {onnx} …` it is asked of `python -m mine`. None without one.
        """
        return _converter(self.convert, _stamps(self.convert)) if self.convert else None

    @property
    def suffix(self) -> str:
        """The file name extension of models."""
        return ".onnx"

    @abstractmethod
    def command(self, plan: RunPlan) -> list[str]:
        """The words of one call."""

    @property
    @abstractmethod
    def readings(self) -> list[tuple[str, Unit]]:
        """Regular expressions whose one group is a latency, with its unit; the best is the last."""

    @property
    def cost_readings(self) -> dict[str, tuple[str, float]]:
        """By cost of `Measurement`: a regular expression whose one group is it, and its unit."""
        return {}

    def costs(self, output: str, results: str) -> dict[str, float]:
        """What else was printed or written: the most of each cost."""
        text, found = f"{output}\n{results}", {}
        for name, (pattern, unit) in self.cost_readings.items():
            with suppress(ValueError):  # not there, or no number
                figures = map(float, re.findall(pattern, text, re.MULTILINE))
                found[name] = max(figures) * unit
        return found

    def seconds(self, output: str, results: str, plan: RunPlan) -> Timed:
        """Seconds of each of `plan.runs` runs, out of what was printed and written.

        The first of `readings` that has a figure for each run, warm-up first or left out, counts.
        Else it is the last of them that is found, and its last figure, a statistic of the runs
        say, counts for each run: then, unless there is one run, nothing is known of single runs.

        Raises:
            DeviceError: There are no figures.
        """
        statistic: Timed | None = None
        for pattern, unit in self.readings:
            found = re.findall(pattern, f"{output}\n{results}", re.MULTILINE)
            try:
                figures = [float(each) * _SECONDS[unit] for each in found]
                resolution = min(map(_last_place, found), default=0.0) * _SECONDS[unit]
            except ValueError:
                continue
            if len(figures) in (plan.runs, plan.warmup + plan.runs):
                return Timed(figures[-plan.runs :], figures[-plan.runs :], resolution)
            if 1 <= len(figures) <= 2:  # of the warm-up, too; more are runs, and some are missing
                single = figures[-1:] if plan.runs == 1 else None
                statistic = Timed(figures[-1:] * plan.runs, single, resolution)
        if statistic:
            return statistic
        tail = " ".join(output.split())[-400:]
        raise DeviceError(
            f"{self.binary.name} printed no latency that runner {self.kind!r} can read: "
            f"check the kind of runner and the program's version; it printed: {tail!r}"
        )

    def converted(self, onnx: bytes) -> bytes:
        """The model as the program reads it.

        Raises:
            ModelError: The converter refuses the model.
            DeviceError: It does not start, writes nothing, or ends by another fault.
        """
        if not self.conversion:
            return onnx
        try:
            with _working_folder() as folder:
                source, target = Path(folder, "model.onnx"), Path(folder, f"output{self.suffix}")
                source.write_bytes(onnx)
                places = {"onnx": source, "output": target}
                words = [filled(word, places) for word in self.conversion]
                return _convert(words, target, self.refuses)
        except OSError as error:
            raise DeviceError(
                f"the folder of temporary files must take the model, {len(onnx)} bytes, but does "
                f"not ({error}): free some space there, or set TMPDIR"
            ) from error

    def refuses(self, status: int) -> bool:
        """Whether a converter that ends with this status, negative for a signal, blames the model.

        Not if somebody ended it: the host's want of memory, say.
        """
        return not was_ended(status)


def _last_place(figure: str) -> float:
    """What the last digit of a number counts: of 3.40 it is 0.01. Programs leave out zeros at the
    end, so of several numbers the least is what they are rounded to."""
    return float(f"1e{Decimal(figure).as_tuple().exponent}")


def was_ended(status: int) -> bool:
    """Whether a program was ended by somebody, as by a system that lacks memory.

    Args:
        status: of a process, where a signal is negative, or of a shell, where it is 128 more.
    """
    return status in _ENDED


def filled(word: str, places: Mapping[str, object]) -> str:
    """A word of a template with its {places} filled in."""
    for place, value in places.items():
        word = word.replace(f"{{{place}}}", str(value))
    return word


def _stamps(words: Sequence[str]) -> tuple[tuple[Path, int], ...]:
    """The files among words, the program's first, each with its time in ns."""
    program = shutil.which(words[0]) or words[0]
    files = [Path(word) for word in (program, *words[1:]) if os.path.isfile(word)]
    return tuple((path, path.stat().st_mtime_ns) for path in files)


@cache  # until a file is another one: a converter may take long to start
def _converter(words: tuple[str, ...], stamps: tuple[tuple[Path, int], ...]) -> str:
    asked = takewhile(lambda word: ("{" not in word and word[:1] != "-") or word == "-m", words)
    try:
        told = subprocess.run(
            [*asked, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VERSION_LIMIT_S,
        )
        version = told.stdout if told.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        version = ""
    facts = [version.strip(), *(file_digest(path) for path, _ in stamps)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


@contextmanager
def _working_folder() -> Iterator[str]:
    """Of a conversion. What those left that were killed goes: none takes so long."""
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_FOLDERS) as folder:
        yield folder


def _convert(command: list[str], target: Path, refuses: Callable[[int], bool]) -> bytes:
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=_CONVERSION_LIMIT_S,
            env={**os.environ, "TMPDIR": str(target.parent)},  # what it leaves goes with the folder
        )
        return target.read_bytes()
    except subprocess.CalledProcessError as error:
        tail = " ".join((error.stdout + error.stderr).split())[-400:] or str(error)
        if not refuses(error.returncode):
            raise DeviceError(
                f"the converter {command[0]} must convert the model or refuse it, but ended with "
                f"status {error.returncode} ({tail}): see whether {socket.gethostname()} lacks "
                "memory or room for temporary files, or what ends programs there"
            ) from error
        raise ModelError(f"the converter {command[0]} refuses the model: {tail}") from error
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"the converter must write {{output}} within {_CONVERSION_LIMIT_S} s, but {command[0]} "
            "did not: try it by hand"
        ) from error
    except OSError as error:
        raise DeviceError(
            f"the converter must write {{output}}, but {command[0]} does not ({error}): "
            "correct `convert`, and try it by hand"
        ) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex; read again only if its time or size changed."""
    facts = path.stat()
    return _file_digest(path, facts.st_mtime_ns, facts.st_size)


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
