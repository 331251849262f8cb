"""A node is lost for ever while blocks are distilled, networks finetuned, candidates measured."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.finetune.assemble import block_keys, library_space
from donna_ray.finetune.step import finetune, jobs_of, network_store
from donna_ray.library.step import library_step, library_store
from donna_ray.pipeline import run_steps
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from tests.integration.conftest import SMALLEST, measurements_in
from tests.integration.test_library_faults import assert_equal
from tests.integration.test_workers import cluster, joining, when

__all__ = ["cluster"]  # the fixture

EPOCHS = 12


@pytest.mark.soak
def test_what_was_in_flight_is_done_on_the_other_node(
    cluster: Cluster, finished: Path, tmp_path: Path
) -> None:
    values = SMALLEST | {"library.pack_size": 1, "library.epochs": 1, "cluster.workers": 2}
    config = load_config(
        shipped_config("demo"), [f"{key}={json.dumps(value)}" for key, value in values.items()]
    )
    root = tmp_path / "run"
    shutil.copytree(finished / "reference", root / "reference")
    blocks, unfinished = root / "library" / "blocks", root / "networks" / "unfinished"
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    stored: dict[Path, int] = {}

    def lose_one() -> None:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        stored.update({path: path.stat().st_mtime_ns for path in blocks.glob("*.safetensors")})

    try:
        with Run(config, root) as run:
            reference = reference_step(run)
            lost = when(_files(blocks, 2), lose_one)
            library = library_step(run, reference)
            lost.join(timeout=300)
            assert 2 <= len(stored) < 12
            assert all(path.stat().st_mtime_ns == changed for path, changed in stored.items())
            assert_equal(library, finished)
            assert library_store(run).verify() == []

            nodes.append(cluster.add_node(num_cpus=1))
            cluster.wait_for_nodes()
            recipe = config.finetune.model_copy(update={"epochs": EPOCHS})
            space = library_space(library)
            chosen = space.sample(3, 0)
            jobs = jobs_of(run, reference, block_keys(library), space, chosen, recipe)
            lost = when(_files(unfinished, 2), lambda: _lose(cluster, nodes))
            records = finetune(run, "finetune", reference, jobs, recipe)
            lost.join(timeout=300)
            assert len(nodes) == 1
            assert [record["epochs"] for record in records] == [EPOCHS] * 3
            assert network_store(run).verify() == []
            assert not list(unfinished.glob("*.safetensors"))
    finally:
        for node in nodes:
            cluster.remove_node(node)


def _files(folder: Path, count: int) -> Callable[[], bool]:
    """Whether that many records are there."""
    return lambda: len(list(folder.glob("*.safetensors"))) >= count


def _lose(cluster: Cluster, nodes: list[Any]) -> None:
    cluster.remove_node(nodes.pop(), allow_graceful=False)


@pytest.mark.soak
def test_a_search_goes_on_where_its_device_was_lost(
    cluster: Cluster, finished: Path, tmp_path: Path
) -> None:
    """The only node with CPUs, where this device is timed, is replaced by another."""
    config = RunConfig.model_validate(yaml.safe_load((finished / "config.yaml").read_text()))
    root = tmp_path / "run"
    for step in ("reference", "library", "predictor", "networks"):
        shutil.copytree(finished / step, root / step)
    cache = root / "search" / "measurements.sqlite"
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    joined: list[subprocess.Popen[bytes]] = []

    def replace_it() -> None:
        joined.append(joining(cluster))
        cluster.remove_node(node, allow_graceful=False)

    try:
        lost = when(lambda: measurements_in(cache) >= 5, replace_it)
        with Run(config, root) as run:
            found = run_steps(run, "search").result["scenarios"]["default"]
        lost.join(timeout=300)
        assert found["measured_architectures"] == SMALLEST["search.evaluations"]
        once = SMALLEST["search.evaluations"] + 1  # and the reference
        assert measurements_in(cache) == once + found["verified"]["measurements"]
        assert joined
    finally:
        for process in joined:
            process.terminate()
            process.wait()
