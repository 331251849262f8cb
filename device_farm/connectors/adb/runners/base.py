"""What all runners share: their files, and how they are called and read."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from device_farm.failures import DeviceError, ModelError

__all__ = ["RunPlan", "Runner", "file_digest", "no_figures"]

_CONVERSION_LIMIT_S = 600


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
    binary: Path = Field(exclude=True)
    """The program, built for the phone, on this host: pushed once, and known by its hash."""
    libraries: tuple[Path, ...] = Field(default=(), exclude=True)
    """Shared libraries that it needs, likewise."""
    arguments: tuple[str, ...] = ()
    """More arguments of the program."""
    convert: tuple[str, ...] = ()
    """A command of this host, a word an item, that makes the model's file for the program out of
    {onnx}, as {output}; empty if the program reads ONNX."""

    @field_validator("binary", "libraries")
    @classmethod
    def _is_there(cls, value: Path | tuple[Path, ...]) -> Path | tuple[Path, ...]:
        for path in (value,) if isinstance(value, Path) else value:
            if not path.is_file():
                raise ValueError(f"there is no file {path}: build the program for the phone")
        return value

    @property
    def identity(self) -> str:
        """The program's name, and the start of the SHA-256 of it and its libraries."""
        hashes = "".join(file_digest(path) for path in (self.binary, *self.libraries))
        return f"{self.binary.name} {hashlib.sha256(hashes.encode()).hexdigest()[:12]}"

    @property
    def suffix(self) -> str:
        """The file name extension of models."""
        return ".onnx"

    @abstractmethod
    def command(self, plan: RunPlan) -> list[str]:
        """The words of one call."""

    @abstractmethod
    def seconds(self, output: str, results: str, plan: RunPlan) -> list[float]:
        """Seconds of each of `plan.runs` runs.

        A program that tells a statistic only has it for each run: then a block of runs counts by
        that statistic, and p20 and p90 are those over blocks.

        Raises:
            DeviceError: The program's output holds no figures.
        """

    def converted(self, onnx: bytes) -> bytes:
        """The model as the program reads it.

        Raises:
            ModelError: The conversion fails.
        """
        if not self.convert:
            return onnx
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "model.onnx"), Path(folder, f"model{self.suffix}")
            source.write_bytes(onnx)
            places = {"{onnx}": str(source), "{output}": str(target)}
            return _convert([filled(word, places) for word in self.convert], target)


def filled(word: str, places: dict[str, str]) -> str:
    """A word of a template with its places filled in."""
    for place, value in places.items():
        word = word.replace(place, value)
    return word


def _convert(command: list[str], target: Path) -> bytes:
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_CONVERSION_LIMIT_S
        )
        return target.read_bytes()
    except subprocess.CalledProcessError as error:
        tail = " ".join((error.stdout + error.stderr).split())[-400:]
        raise ModelError(f"the converter {command[0]} refuses the model: {tail}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(
            f"the converter must write {{output}} within {_CONVERSION_LIMIT_S} s, but {command[0]} "
            f"did not ({error}): try it by hand"
        ) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex; read again only if its time or size changed."""
    facts = path.stat()
    return _file_digest(path, facts.st_mtime_ns, facts.st_size)


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def no_figures(runner: Runner, output: str) -> DeviceError:
    """The failure of an output that cannot be read."""
    tail = " ".join(output.split())[-400:]
    return DeviceError(
        f"{runner.binary.name} printed no latency that runner {runner.kind!r} can read: "
        f"check the kind of runner and the program's version; it printed: {tail!r}"
    )
