"""A network that cannot be trained is told apart from a step that cannot go on."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from donna_ray.config import FinetuneRecipe
from donna_ray.errors import DivergedError, MemoryLimitError
from donna_ray.finetune import work
from donna_ray.finetune.work import FinetuneJob, FinetuneNetwork
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import RecordStore
from donna_ray.workers.faults import UnitEnded
from donna_ray.workers.group import ALONE, Group


@pytest.mark.parametrize(
    "error",
    [
        DivergedError("It became nan."),
        MemoryLimitError("Too large."),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
@pytest.mark.parametrize("group", [ALONE, Group(0, 2), Group(1, 2)])
def test_network_that_fails_is_recorded_by_any_process_of_its_group(
    error: Exception, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a group that ends the process, for which the others may wait."""
    store = RecordStore(tmp_path)
    teacher = Artifact("reference", tmp_path, {"stages": []}, {}, 0.0)
    finetuning = FinetuneNetwork(Mock(seed=0), teacher, FinetuneRecipe(), store, store)
    monkeypatch.setattr(work, "current_group", lambda: group)
    monkeypatch.setattr(finetuning, "_finetune", Mock(side_effect=error))
    with nullcontext() if group is ALONE else pytest.raises(UnitEnded):
        finetuning(FinetuneJob("key", "id", (), ()))
    assert store.record("key")["failed"] == str(error)
    assert store.try_again(["key"]) == ([] if isinstance(error, DivergedError) else ["key"])


def test_what_lacked_memory_is_tried_again_by_the_next_command(tmp_path: Path) -> None:
    """It may have been another program's fault; what diverged would diverge again."""
    store = RecordStore(tmp_path)
    store.put_failed("large", "CUDA out of memory.", {}, for_memory=True)
    store.put_failed("diverged", "It became nan.", {})
    assert store.try_again(["large", "diverged", "new"]) == ["large"]
    assert store.get("large") is None
    assert store.record("diverged")["failed"] == "It became nan."
