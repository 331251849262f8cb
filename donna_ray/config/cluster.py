"""What a run takes of a Ray cluster, and where on it the run is kept."""

from pathlib import Path
from typing import Annotated

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from donna_ray.config.values import Section, absolute, without_password

__all__ = ["ClusterConfig"]


class ClusterConfig(Section):
    """What training takes of the Ray cluster: up to `workers` workers, as many as find room.

    `accelerator_type` is Ray's name of the GPU that a worker must have, such as `V100`.
    `storage` is where runs are kept: a folder that all nodes see, or any fsspec URL where they
    share no filesystem (`s3://bucket/runs`); null is `runs` in the working directory.
    """

    workers: PositiveInt = 2
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    accelerator_type: str | None = None
    retries: NonNegativeInt = 3
    storage: str | None = None

    @field_validator("storage")
    @classmethod
    def _storage_is_absolute(cls, storage: str | None) -> str | None:
        if storage is None:
            return None
        path = storage.removeprefix("file://")
        return without_password(path) if "://" in path else absolute(path)

    def place_of(self, root: Path) -> str | Path:
        """Where the processes of the run in `root` meet: that folder, or one at a URL."""
        if self.storage is None or "://" not in self.storage:
            return root
        return f"{self.storage.rstrip('/')}/{root.name}"
