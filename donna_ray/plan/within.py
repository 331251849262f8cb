"""Epochs, samples and candidates with which a run on this host ends in a given time.

A guess, from some seconds of training the reference in as many processes as there will be workers;
`donna plan` measures what it takes where the run itself would work.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from donna_ray.config import RunConfig, load_config
from donna_ray.data import load_data
from donna_ray.errors import ConfigError
from donna_ray.plan.plan import (
    Block,
    Costs,
    Images,
    NetworkCost,
    PackCost,
    Plan,
    ReferenceCost,
)
from donna_ray.reference.build import build_reference
from donna_ray.search.verify import ROUNDS, most_verified
from donna_ray.space import build_space, check_space
from donna_ray.training.engine import Engine

__all__ = ["Speed", "within"]

_SPARE = 0.85  # of the time: the guess may be too low
_DEVICE = 0.25  # of the time, for measuring on the device
_MEASURED_S = 4.0
_LEAST = {"predictor.samples": 8, "search.evaluations": 64}
_BATCH = 64
_STARTS = {"run": 25.0, "workers": 20.0, "search": 25.0, "unit": 2.0}  # seconds, on two cores


@dataclass(frozen=True)
class Speed:
    """Seconds of a worker for an image, while the others work as well.

    Attributes:
        read: that it is read and transformed.
        forward: of the reference, in eval mode.
        train: of the reference: forward, backward, and the step.
    """

    read: float
    forward: float
    train: float


def within(file: Path, seconds: float) -> tuple[dict[str, float], float]:
    """Settings with which the run of a configuration takes no longer.

    The epochs of all steps are shortened alike, samples and candidates down to 8 and 64. A
    measurement gets what a quarter of the time has for each.

    Args:
        file: of the configuration, whose lengths are the most.
        seconds: that the run may take.

    Returns:
        By their dotted names, and the seconds that it takes by this guess.

    Raises:
        ConfigError: the least takes longer; with the remedies.
    """
    config = load_config(file)
    work = _Work.of(config)
    for share in (each / 20 for each in range(20, 0, -1)):
        settings = _settings(config, share, seconds)
        texts = [f"{name}={value}" for name, value in settings.items()]
        taken = work.seconds(load_config(file, texts))
        if taken <= _SPARE * seconds:
            return settings, taken
    raise ConfigError(
        f"The run must end within {seconds / 60:.0f} min, but with an epoch each it takes about "
        f"{taken / 60:.0f} min here. Give it more time, set a smaller data.image_size, or take "
        "fewer images or a smaller model."
    )


def _settings(config: RunConfig, share: float, seconds: float) -> dict[str, float]:
    """What may be shortened, to a share of what it is."""
    training, samples = config.reference.training, config.predictor.samples
    candidates = config.search.evaluations
    lengths: dict[str, float] = {
        "library.epochs": config.library.epochs,
        "finetune.epochs": config.finetune.epochs,
        "predictor.samples": samples,
        "search.evaluations": candidates,
    }
    if training is not None:
        lengths["reference.training.epochs"] = training.epochs
    settings: dict[str, float] = {
        name: min(most, max(round(share * most), _LEAST.get(name, 1)))
        for name, most in lengths.items()
    }
    measured = settings["search.evaluations"]
    measured += ROUNDS * (most_verified(int(measured)) + 1)
    each = round(_DEVICE * seconds / measured, 1)
    if config.device.connector not in ("simulated", "recorded") and each < 10:
        settings["device.settings.max_seconds"] = max(each, 0.2)
    return settings


@dataclass(frozen=True)
class _Work:
    """What is the same whatever the lengths: images, MACs of the blocks, and the speed."""

    images: Images
    macs: Sequence[float]
    stages: int
    speed: Speed

    @staticmethod
    def of(config: RunConfig) -> "_Work":
        reference, preprocessing = build_reference(config, load_weights=False)
        data = load_data(config.data, preprocessing)
        space = build_space(config.space, reference.shapes, reference.own_blocks())
        macs = [cost["macs"] for stage in check_space(space) for cost in stage]
        return _Work(Images.of(data), macs, len(space.stages), _speed(config))

    def seconds(self, config: RunConfig) -> float:
        """Of the run with these lengths, as a plan sums it up."""
        speed, images, workers = self.speed, self.images, config.cluster.workers
        passed = speed.read + speed.forward
        whole = max(self.macs) * self.stages  # about the reference's
        training, trained = config.reference.training, 0.0
        if training is not None:
            trained = training.epochs * images.train * (speed.read + speed.train)
            trained /= training.workers_per_network
        part = (images.distillation + images.validation) * passed / workers
        unit = _STARTS["unit"]
        costs = Costs(
            reference=ReferenceCost(_STARTS["run"] + _STARTS["workers"], trained, (part,)),
            preparation=unit,
            start=_STARTS["workers"],
            pack=PackCost(unit, passed, speed.train / whole, passed, speed.forward / whole),
            network=NetworkCost(unit, passed + speed.train, passed),
            candidate=float(config.device.settings.get("max_seconds", 1.0)),
            lowering=unit / 10,
            search=_STARTS["search"],
        )
        blocks = [Block(each, config.library.epochs) for each in self.macs]
        packs = config.library.pack_size or 16
        return Plan(config, costs, images, blocks, packs, workers, keeps_workers=True).line(1).total


def _speed(config: RunConfig) -> Speed:
    """Measured by as many processes at once as there will be workers; the slowest counts."""
    workers = config.cluster.workers
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        found = list(pool.map(_measured, [config.model_dump_json()] * workers))
    return Speed(*map(max, zip(*found, strict=True)))


def _measured(text: str) -> tuple[float, float, float]:
    """The fields of ``Speed``, in a process of one thread."""
    torch.set_num_threads(1)
    config = RunConfig.model_validate_json(text)
    network, preprocessing = build_reference(config, load_weights=False)
    split = load_data(config.data, preprocessing).train
    engine = Engine.of(network)
    engine.place(network.requires_grad_(True))
    images, labels = next(split.batches(_BATCH))
    pixels = engine.images(images)
    optimizer = torch.optim.AdamW(network.parameters())

    def read() -> None:
        for _ in split.batches(_BATCH, stop=1):
            pass

    @torch.no_grad()
    def forward() -> None:
        network.eval()(pixels)

    def train() -> None:
        optimizer.zero_grad()
        cross_entropy(network.train()(pixels), labels).backward()
        optimizer.step()

    one, two, three = (_seconds(each) / len(labels) for each in (read, forward, train))
    return one, two, three


def _seconds(action: Callable[[], None]) -> float:
    """Of a call, on the average; the first one is not counted."""
    action()
    started, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < _MEASURED_S / 3:
        action()
        calls += 1
    return passed / calls
