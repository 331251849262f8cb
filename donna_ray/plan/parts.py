"""What a plan's workers measure: packs and networks, each on the first images of the data.

The seconds of an image are the difference of a long and a short pass, which have the same start:
both are done several times, in turn, after one pass that is not measured and reads every image. So
files come from memory where it holds them: a slow disk is not in it.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray

from donna_ray.config import FinetuneRecipe, RunConfig
from donna_ray.data import ImageData, Split
from donna_ray.distill.pack import distill_pack
from donna_ray.distill.students import BlockJob
from donna_ray.errors import DonnaError
from donna_ray.finetune.assemble import untrained
from donna_ray.finetune.work import distillation_loss
from donna_ray.onnx_export import export_onnx, onnx_error
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.worker import WorkerContext
from donna_ray.space import BlockSpec
from donna_ray.storage.artifacts import Artifact
from donna_ray.training.engine import Engine
from donna_ray.training.loop import accuracy
from donna_ray.training.trainer import Trainer

__all__ = ["Passes", "PlanPart", "batches_read", "check_images", "in_turn"]

_CALIBRATED = 256  # images that give BatchNorm its statistics: little beside a whole training
_SHORT, _MORE = 2, 6  # batches of a short pass, and how many more a long one has, at least
_REPEATS = 3

Facts = dict[str, Any]


def batches_read(loader_workers: int) -> int:
    """Of a long pass, where there are so many images."""
    return max(_SHORT, loader_workers) + max(_MORE, loader_workers)


@dataclass(frozen=True)
class Passes:
    """A short and a long pass over the first images of a split.

    With processes that decode, the first batches come all at once, after the time of one. So each
    pass, and what the long one has more, is of at least as many batches as there are processes.

    Attributes:
        split: the images.
        batch: images a batch.
    """

    split: Split
    batch: int

    def __post_init__(self) -> None:
        if self.images <= 0:
            raise DonnaError(
                f"A plan needs more than {self.short // self.batch} full batches of images to "
                f"measure with, but {self.split.name} has {len(self.split)} images in batches of "
                f"{self.batch}. Lower the batch_size, or data.loader_workers."
            )

    @property
    def short(self) -> int:
        """Images of the short pass."""
        return max(_SHORT, self.split.loader_workers) * self.batch

    @property
    def long(self) -> int:
        """Images of the long pass: as many as there are, in full batches, if those are fewer."""
        batches = min(batches_read(self.split.loader_workers), len(self.split) // self.batch)
        return batches * self.batch

    @property
    def images(self) -> int:
        """How many more the long pass has."""
        return self.long - self.short

    def slope(self, short: Sequence[float], long: Sequence[float]) -> float:
        """Seconds an image.

        Args:
            short: seconds of the short passes.
            long: seconds of the long ones, each measured beside the short one of its number.

        Raises:
            DonnaError: the median of the differences is not over 0.
        """
        more = float(np.median(np.subtract(long, short)))
        if more <= 0:
            raise DonnaError(
                f"A longer pass over {self.split.name} must take more seconds, but {self.images} "
                f"images more took {more:.3g} (short passes {_listed(short)}, long ones "
                f"{_listed(long)}): other work disturbed it, or an image takes too little to see. "
                "Plan again while the machine is quiet, or raise the batch_size."
            )
        return more / self.images


def check_images(config: RunConfig, data: ImageData) -> None:
    """Refuse data that are too few for the passes of a plan.

    Raises:
        DonnaError: with the split, the batch size and the remedy.
    """
    for recipe, training in ((config.library, data.distillation), (config.finetune, data.train)):
        for split in (training, data.validation):
            Passes(split, recipe.batch_size)


def _listed(seconds: Sequence[float]) -> str:
    return ", ".join(f"{each:.3g}" for each in seconds)


def in_turn(passes: Sequence[Callable[[], float]]) -> list[list[float]]:
    """Seconds of each pass, several times: all passes in turn, so what drifts meets them alike."""
    rounds = [[each() for each in passes] for _ in range(_REPEATS)]
    return np.transpose(rounds).tolist()


class PlanPart:
    """Measures the packs, or a network, on a worker, on a part of the images.

    Args:
        config: of the run, its precision decided.
        reference: of ``reference_step``.
        recipe: of the networks, its precision decided.
    """

    def __init__(self, config: RunConfig, reference: Artifact, recipe: FinetuneRecipe) -> None:
        self._config, self._recipe = config, recipe
        self._context = WorkerContext(config, reference)

    def __call__(self, payload: tuple[str, Any]) -> Facts:
        """Measure.

        Args:
            payload: `packs` and a list of packs, or `network` and its blocks.

        Returns:
            `worker` (its name), `busy` (seconds), and `packs` (a dictionary each) or `network`:
            `image` and `validation` (seconds an image), `own` (seconds whatever the images); of a
            pack also `reading` (seconds an image that is read alone).
        """
        worker = ray.get_runtime_context().get_actor_id()
        kind, what = payload
        self._context.load()  # by the first unit: that is a part of the start
        started = time.perf_counter()
        found = self.packs(what) if kind == "packs" else self.network(what)
        return {"worker": worker, "busy": time.perf_counter() - started, kind: found}

    def packs(self, packs: Sequence[list[BlockJob]]) -> list[dict[str, float]]:
        """Of each pack; their passes alternate."""
        reference, variance = self._context.reference, self._context.variance
        data = self._context.data
        library = self._config.library.model_copy(update={"epochs": 1, "recipes": {}})
        trained = Passes(data.distillation, library.batch_size)
        tested = Passes(data.validation, library.batch_size)

        def seconds(jobs: list[BlockJob], training: int, testing: int) -> float:
            part = _part_of(data, training, testing)
            return distill_pack(reference, variance, jobs, part, library, 0).seconds

        lengths = (
            (trained.short, tested.short),
            (trained.long, tested.short),
            (trained.short, tested.long),
        )

        def reading(images: int) -> float:
            part = data.distillation.first(images)
            return _seconds(lambda: deque(part.batches(trained.batch, shuffle_seed=0), maxlen=0))

        for jobs in packs:
            seconds(jobs, trained.long, tested.long)
        took = in_turn([partial(seconds, jobs, *each) for jobs in packs for each in lengths])
        short, long = in_turn([partial(reading, trained.short), partial(reading, trained.long)])
        read = max(float(np.median(np.subtract(long, short))), 0.0) / trained.images
        found = []
        for number in range(len(packs)):
            short, long, long_tested = took[3 * number : 3 * number + 3]
            image, validation = trained.slope(short, long), tested.slope(short, long_tested)
            own = float(np.median(short)) - trained.short * image - tested.short * validation
            facts = {"image": image, "validation": validation, "reading": read}
            found.append({**facts, "own": max(own, 0.0)})
        return found

    def network(self, specs: Sequence[BlockSpec]) -> dict[str, float]:
        """Of a network of these blocks."""
        reference, data = self._context.reference, self._context.data
        network = self._context.engine.place(untrained(reference, specs).requires_grad_(True))
        loss, batch = distillation_loss(reference), self._recipe.batch_size
        trained, tested = Passes(data.train, batch), Passes(data.validation, batch)

        def training(images: int) -> float:
            part = _part_of(data, images, batch)
            trainer = Trainer(network, part, self._recipe, 0, loss)
            return _seconds(trainer.train_epoch)

        def testing(images: int) -> float:
            return _seconds(partial(accuracy, network, data.validation.first(images)))

        training(trained.long), testing(tested.long)
        passes = [partial(training, trained.short), partial(training, trained.long)]
        passes += [partial(testing, tested.short), partial(testing, tested.long)]
        took = in_turn(passes)
        return {
            "image": trained.slope(*took[:2]),
            "validation": tested.slope(*took[2:]),
            "own": self._export(network, data),
        }

    @staticmethod
    def _export(network: StagedNetwork, data: ImageData) -> float:
        images, _ = next(data.validation.batches(16))
        started = time.perf_counter()
        network.cpu().eval()
        model = export_onnx(network, images.shape[1:])
        onnx_error(model, network, Engine.of(network).images(images))
        return time.perf_counter() - started


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _part_of(data: ImageData, trained: int, tested: int) -> ImageData:
    return replace(
        data,
        train=data.train.first(trained),
        distillation=data.distillation.first(trained),
        distillation_plain=data.distillation_plain.first(_CALIBRATED),
        validation=data.validation.first(tested),
    )
