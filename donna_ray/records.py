"""A store of trained modules: one JSON record and one safetensors file a key.

The weights are written first and the record last, both atomically; the record names the weights'
SHA-256 and carries a checksum of itself. So a record that reads is a record of finished work, and
one that is torn or altered is no record: its work is done again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from donna_ray.artifacts import digest, file_sha256, read_json, write_atomic, write_json
from donna_ray.errors import DonnaError

__all__ = ["RecordStore"]


class RecordStore:
    """Records by key. Several processes may write different keys at once; a key is written once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, key: str, record: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> None:
        """Store finished work; ``record`` is plain JSON."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        write_atomic(self.weights_path(key), safetensors.torch.save(tensors))
        body = {**record, "key": key, "weights_sha256": file_sha256(self.weights_path(key))}
        write_json(self._record_path(key), body | {"checksum": digest(body)})

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a key; None where it or its weights are missing, torn or altered."""
        record = self._read(key)
        if record is None:
            return None
        try:
            intact = file_sha256(self.weights_path(key)) == record["weights_sha256"]
        except FileNotFoundError:
            return None
        return record if intact else None

    def weights(self, key: str) -> dict[str, Tensor]:
        """The state dict of a key.

        Raises:
            DonnaError: no intact record has this key.
        """
        if self.get(key) is None:
            raise DonnaError(
                f"The record {key} must be intact in {self.root}, but it is missing, torn or "
                "altered. Run the step that makes it again: it renews only such records."
            )
        return safetensors.torch.load(self.weights_path(key).read_bytes())

    def weights_path(self, key: str) -> Path:
        """Where the weights of a key are."""
        return self.root / f"{key}.safetensors"

    def paths(self, key: str) -> tuple[Path, Path]:
        """The two files of a key: record and weights."""
        return self._record_path(key), self.weights_path(key)

    def _record_path(self, key: str) -> Path:
        return self.root / f"{key}.json"

    def _read(self, key: str) -> dict[str, Any] | None:
        record = read_json(self._record_path(key))
        if not isinstance(record, dict) or "checksum" not in record:
            return None
        checksum = record.pop("checksum")
        return record if checksum == digest(record) else None
