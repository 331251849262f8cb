"""Two workers train one network together: as one would, and also when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from donna_ray.config import FinetuneRecipe, RunConfig
from donna_ray.data import load_data
from donna_ray.finetune.assemble import block_keys, library_space
from donna_ray.finetune.step import finetune, jobs_of, network_store
from donna_ray.library.step import library_step
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from donna_ray.training.loop import cross_entropy, seeded
from donna_ray.training.trainer import Trainer
from donna_ray.workers.group import ALONE, Group, current_group
from donna_ray.workers.spread import Unit, spread
from tests.integration.conftest import train_workers

TOGETHER = FinetuneRecipe(
    epochs=8, batch_size=64, precision="fp32", workers_per_network=2, ema_decay=0.9
)


@pytest.fixture
def run(one_ray: None, copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = yaml.safe_load((copy_of_finished / "config.yaml").read_text())
    config["cluster"]["workers"] = 2
    with Run(RunConfig.model_validate(config), copy_of_finished) as run:
        yield run


def plainly_trained(config: RunConfig, group: Group) -> nn.Module:
    """A network without BatchNorm, whose steps do not depend on how a batch is shared out."""
    with seeded(0):
        network = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten())
        network.append(nn.Linear(8 * 7 * 7, 10))
    network.register_parameter("unused", nn.Parameter(torch.zeros(1)))  # gets no gradient
    data = load_data(config.data, {"input_size": (1, 16, 16)})
    trainer = Trainer(network, data, TOGETHER, 0, cross_entropy, group)
    while not trainer.finished():
        trainer.train_epoch()
    return trainer.result()


@pytest.mark.soak
def test_two_workers_go_on_when_one_dies(run: Run) -> None:
    reference = reference_step(run)
    library = library_step(run, reference)
    space = library_space(library)
    jobs = jobs_of(run, reference, block_keys(library), space, [(0, 1, 2)], TOGETHER)
    unfinished = run.root / "networks" / "unfinished"
    killed_at: list[int] = []  # in ns
    written: set[tuple[int, int]] = set()

    def watch() -> None:
        while not killed_at or not (run.root / "networks" / f"{jobs[0].key}.safetensors").exists():
            written.update(_checkpoints(unfinished))
            if any(epoch >= 2 for _, epoch in written) and not killed_at:
                os.kill(max(train_workers(os.getpid())), signal.SIGKILL)
                killed_at.append(time.time_ns())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    (record,) = finetune(run, "finetune", reference, jobs, TOGETHER)
    watcher.join(timeout=300)
    assert killed_at
    assert min(epoch for time_ns, epoch in written if time_ns > killed_at[0]) >= 2
    assert record["epochs"] == 8
    assert record["accuracy"] > max(0.5, record["zero_shot_accuracy"])
    assert network_store(run).get(jobs[0].key) == record
    assert not list(unfinished.glob("*.safetensors"))


@pytest.mark.soak
def test_two_workers_train_as_one(run: Run, tmp_path: Path) -> None:
    config = run.config

    def work(_payload: int) -> dict[str, Any]:
        group = current_group()
        state = plainly_trained(config, group).state_dict()
        safetensors.torch.save_file(state, tmp_path / f"{group.rank}.safetensors")
        return {"size": group.size}

    assert spread(run, "test", "units", [Unit(0)], work, workers_per_unit=2) == [{"size": 2}]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = plainly_trained(config, ALONE).state_dict()
    torch.set_num_threads(threads)
    first, second = (safetensors.torch.load_file(tmp_path / f"{n}.safetensors") for n in (0, 1))
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, atol=1e-4, rtol=1e-3)


def _checkpoints(unfinished: Path) -> Iterator[tuple[int, int]]:
    """When each was written, in ns, and after which epoch."""
    for path in unfinished.glob("*.safetensors"):
        try:
            written = path.stat().st_mtime_ns
            with safetensors.safe_open(path, "pt") as file:
                yield written, json.loads(file.metadata()["record"])["epoch"]
        except FileNotFoundError:
            continue
