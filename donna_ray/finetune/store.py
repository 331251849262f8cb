"""Where a run keeps its finetuned networks."""

from collections.abc import Sequence
from pathlib import Path

from donna_ray.finetune.work import FinetuneJob
from donna_ray.run.run import Run
from donna_ray.storage.files import folder_in
from donna_ray.storage.records import RecordStore

__all__ = ["network_files", "network_store"]

_NETWORKS = "networks"


def network_store(run: Run) -> RecordStore:
    """Record, weights and, beside them, ONNX of each."""
    return RecordStore(folder_in(run.shared.location, _NETWORKS))


def network_files(run: Run, jobs: Sequence[FinetuneJob]) -> list[Path]:
    """The files of finetuned networks, in the run folder."""
    return network_store(run).fetch([job.key for job in jobs], run.root / _NETWORKS)
