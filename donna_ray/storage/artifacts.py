"""Step outputs on disk: atomic, checksummed, keyed by what they were made from.

A run folder holds one folder a step and key, ``RUN/<step>/<key>/``. The key is the digest of the
step's inputs (its part of the configuration and the digests of the artifacts before it), so a
changed setting leads to another key, and only the steps that depend on it are computed again. An
artifact is complete when its ``artifact.json`` is there, which is written last and names the
SHA-256 of every file that belongs to it.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "Artifact",
    "StepFolder",
    "canonical_json",
    "digest",
    "file_sha256",
    "finished_inputs",
    "mapping_in",
    "newest_manifests",
    "read_json",
    "write_atomic",
    "write_json",
]

Files = Sequence[Path]

_MANIFEST = "artifact.json"


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """First 16 hex digits (64 bits) of the SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or none, also after a crash.

    It is written beside its place, flushed to the disk and renamed.

    Raises:
        OSError: with the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk is not named otherwise
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where the file is missing, torn or holds something else."""
    try:
        return mapping_in(path.read_bytes())
    except FileNotFoundError:
        return None


def mapping_in(data: bytes | None) -> dict[str, Any] | None:
    """The mapping that is JSON in these bytes; None where they are none."""
    try:
        value = json.loads(data or b"")
    except (ValueError, RecursionError):  # no JSON, or no UTF-8
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class Artifact:
    """A finished step.

    Attributes:
        step: its name.
        path: its folder.
        result: plain JSON, for the steps after it and the report.
        files: SHA-256 of each of its files, by the path relative to the run folder.
        seconds: wall time of the computation.
        reused: it was there already.
    """

    step: str
    path: Path
    result: dict[str, Any]
    files: dict[str, str]
    seconds: float
    reused: bool = field(default=False, compare=False)

    @property
    def root(self) -> Path:
        """The run folder."""
        return self.path.parents[len(Path(self.step).parts)]

    @property
    def digest(self) -> str:
        """Digest of the result, for the keys of the steps after this one.

        ``result["cost"]`` is left out: a step that is done again at another cost changes nothing
        for the others. A result names the SHA-256 of the weights that later steps read.
        """
        result = {name: value for name, value in self.result.items() if name != "cost"}
        return digest({"step": self.step, "result": result})


def newest_manifests(root: Path, step: str) -> Iterator[dict[str, Any]]:
    """`inputs`, `result` and `seconds` of a step's artifacts in a run folder, the newest first."""
    manifests = sorted((root / step).glob(f"*/{_MANIFEST}"), key=lambda path: -path.stat().st_mtime)
    values = (_manifest_in(path) for path in manifests)
    return (value for value in values if value is not None)


def finished_inputs(root: Path, step: str) -> list[dict[str, Any]]:
    """Inputs of a step's artifacts in a run folder, the newest first."""
    return [each["inputs"] for each in newest_manifests(root, step)]


def _manifest_in(path: Path) -> dict[str, Any] | None:
    manifest = read_json(path)
    if manifest is None or manifest.pop("checksum", None) != digest(manifest):
        return None
    return manifest


class StepFolder:
    """The folder of one step under one key; ``commit`` makes an artifact of it."""

    def __init__(self, root: Path, step: str, inputs: dict[str, Any]) -> None:
        self.step = step
        self.inputs = inputs
        self.path = root / step / digest(inputs)
        self._root = root

    def load(self) -> Artifact | None:
        """The finished artifact, or None where it is missing, torn or altered."""
        manifest = _manifest_in(self.path / _MANIFEST)
        if manifest is None or not self._is_intact(manifest):
            return None
        return self._artifact(manifest, reused=True)

    def commit(self, result: dict[str, Any], files: Files, seconds: float) -> Artifact:
        """Declare the step finished.

        Args:
            result: what the next steps and the report need, as plain JSON.
            files: what belongs to the artifact, anywhere in the run folder.
            seconds: wall time of the computation.
        """
        sums = {file.relative_to(self._root).as_posix(): file_sha256(file) for file in files}
        facts = {"step": self.step, "inputs": self.inputs, "result": result, "files": sums}
        manifest = json.loads(canonical_json({**facts, "seconds": seconds}))
        write_json(self.path / _MANIFEST, manifest | {"checksum": digest(manifest)})
        return self._artifact(manifest, reused=False)

    def _artifact(self, manifest: dict[str, Any], *, reused: bool) -> Artifact:
        facts = {name: manifest[name] for name in ("step", "result", "files", "seconds")}
        return Artifact(path=self.path, reused=reused, **facts)

    def _is_intact(self, manifest: dict[str, Any]) -> bool:
        files = manifest["files"].items()
        try:
            return all(file_sha256(self._root / name) == sha for name, sha in files)
        except FileNotFoundError:
            return False
