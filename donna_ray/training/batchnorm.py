"""Statistics of BatchNorm from many images at once. Plain torch.

Those that a short training leaves behind are far off: they are a mean over its last steps, in which
the weights moved (`scripts/bench_batchnorm.py` has what that does to accuracy and to NSR).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from donna_ray.data import Split
from donna_ray.training.engine import Engine, MemoryBatch
from donna_ray.training.loop import seeded

__all__ = ["calibrating", "calibration_batches", "recalibrate", "recalibrating"]

_BATCH, _BATCHES = 256, 64
_CPU = torch.device("cpu")


def calibrating(images: Split) -> int:
    """How many images ``calibration_batches`` has."""
    return min(len(images), _BATCH * _BATCHES)


def calibration_batches(images: Split, device: torch.device = _CPU) -> Iterator[Tensor]:
    """At most 16,384 of the images, (N, C, H, W), in an order that does not change."""
    for batch, _ in images.batches(_BATCH, shuffle_seed=0, stop=_BATCHES, device=device):
        yield batch


@contextmanager
def recalibrating(module: nn.Module) -> Iterator[bool]:
    """Every BatchNorm takes the plain mean of the statistics of the batches that it sees in here.

    Yields whether there is one that keeps statistics; only then batches are needed. All else is in
    eval mode meanwhile, such as dropout, and the whole module afterwards.
    """
    module.eval()
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm)]
    tracking = {norm: norm.momentum for norm in norms if norm.running_mean is not None}
    for norm in tracking:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    try:
        with seeded(0), torch.no_grad():
            yield bool(tracking)
    finally:
        for norm, momentum in tracking.items():
            norm.momentum = momentum
        module.eval()


def recalibrate(network: nn.Module, images: Split) -> None:
    """Set the statistics of every BatchNorm of a network to those of ``calibration_batches``."""
    engine, memory = Engine.of(network), MemoryBatch(smallest=2)
    with recalibrating(network) as needed:
        if needed:
            for batch in calibration_batches(images, engine.device):
                memory.each(len(batch), partial(_run, network, engine, batch))


def _run(network: nn.Module, engine: Engine, batch: Tensor, rows: slice) -> None:
    network(engine.images(batch[rows]))
