"""What a run takes of a Ray cluster, and where on it the run is kept."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from donna_ray.config.values import Section, StoreLocation

__all__ = ["ClusterConfig"]


class ClusterConfig(Section):
    """What training takes of the Ray cluster: up to `workers` workers, as many as find room.

    A worker has `cpus_per_worker` and `gpus_per_worker` (a part of one, such as 0.5, too). Its work
    is tried again `retries` times where it dies or the machine fails.
    `accelerator_type` is Ray's name of the GPU that a worker must have, such as `V100`.
    `storage` is where runs are kept: a folder that all nodes see, or any fsspec URL where they
    share no filesystem (`s3://bucket/runs`); null is `runs` in the working directory.
    """

    workers: PositiveInt = 2
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    accelerator_type: str | None = None
    retries: NonNegativeInt = 3
    storage: StoreLocation | None = None

    def location_of(self, root: Path) -> str | Path:
        """The folder that all processes of the run in `root` share: that one, or one at a URL."""
        if self.storage is None or "://" not in self.storage:
            return root
        return f"{self.storage.rstrip('/')}/{root.name}"
