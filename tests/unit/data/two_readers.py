"""Reads streams in two processes of a gloo group; prints what each of them read as JSON."""

import json
import multiprocessing
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from donna_ray.config import DataConfig
from donna_ray.data import Split, load_data, load_test
from donna_ray.workers.group import ALONE, Group, current_group
from tests.unit.data.image_files import PREPROCESSING, write_folder, write_shard

BATCH = 4


def configs(root: Path) -> list[DataConfig]:
    """A webdataset of one shard and one of three, and images of Hugging Face, as streams."""
    for number in range(3):
        write_shard(root / f"train-{number}.tar", range(7 * number, 7 * number + 7))
    write_shard(root / "val-0.tar", range(30, 35))
    write_shard(root / "test-0.tar", range(40, 43))
    named = {"validation_split": "val-0.tar|5", "test_split": "test-0.tar|3", "classes": 2}
    shards = {"source": "wds/", "root": str(root), **named}
    write_folder(root / "images", count=8)
    images = {"source": f"hfids/{root / 'images'}", "root": str(root / "cache"), "download": True}
    sources: list[dict[str, Any]] = [
        {**shards, "train_split": "train-0.tar|7", "loader_workers": 0},
        {**shards, "train_split": "train-{0..2}.tar|21", "loader_workers": 2},
        {**images, "test_split": "test", "loader_workers": 2},
    ]
    return [DataConfig(**source, augmentation=None) for source in sources]


def passed(split: Split, **how: int) -> list[list[str]]:
    """The images of each batch of a pass, each by a digest."""
    return [
        [sha256(image.numpy().tobytes()).hexdigest()[:8] for image in images]
        for images, _ in split.batches(BATCH, **how)
    ]


def read(config: DataConfig, group: Group) -> dict[str, Any]:
    data = load_data(config, PREPROCESSING)
    test = load_test(config, PREPROCESSING)
    train = data.train if group.size == 1 else data.train.shard(group.rank, group.size)
    return {
        "sizes": [len(data.train), len(data.validation), len(test)],
        "trained": [passed(train, shuffle_seed=0, epoch=epoch) for epoch in (0, 1)],
        "validated": passed(data.validation),
        "tested": passed(test),
    }


def rank(number: int, root: Path, sources: list[DataConfig]) -> None:
    torch.set_num_threads(1)
    store = f"file://{root / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=number, world_size=2)
    found = [read(config, current_group()) for config in sources]
    (root / f"{number}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def main(root: Path) -> None:
    torch.set_num_threads(1)
    sources = configs(root)
    alone = [read(config, ALONE) for config in sources]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=rank, args=(number, root, sources)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    each = [json.loads((root / f"{number}.json").read_text()) for number in range(2)]
    print(json.dumps(list(zip(alone, *each, strict=True))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
