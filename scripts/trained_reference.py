"""The reference of a configuration as benchmarks take it: in this process, without a run."""

from donna_ray.config import RunConfig
from donna_ray.data import ImageData, load_data
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.training.loop import cross_entropy, seeded
from donna_ray.training.trainer import Trainer

__all__ = ["trained_reference"]


def trained_reference(config: RunConfig) -> tuple[StagedNetwork, ImageData]:
    """The reference, trained where `reference.training` says so, and the images."""
    with seeded(0):
        reference, preprocessing = build_reference(config)
    data = load_data(config.data, preprocessing)
    if config.reference.training is not None:
        trainer = Trainer(reference, data, config.reference.training, 0, cross_entropy)
        while not trainer.finished():
            trainer.train_epoch()
    return reference.eval().requires_grad_(False), data
