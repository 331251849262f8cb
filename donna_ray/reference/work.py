"""What a worker does for the reference: it trains it, and measures it on parts of the images.

What was done is a record in one store, under the key of the reference's step: so a kill costs no
more than an epoch of the training, or the part that was measured.
"""

import time
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from donna_ray.config import ReferenceTraining, RunConfig
from donna_ray.data import ImageData, Split, load_data
from donna_ray.errors import DonnaError
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork, channel_sums, own_weights
from donna_ray.storage.records import RecordStore
from donna_ray.training.checkpoints import Checkpoints
from donna_ray.training.engine import Engine, MemoryBatch
from donna_ray.training.loop import answers_of, cross_entropy
from donna_ray.training.trainer import Trainer
from donna_ray.workers.group import current_group

__all__ = [
    "Draft",
    "Kind",
    "MeasureReference",
    "Part",
    "TrainReference",
    "calibrate",
    "variances_of",
]

_PART = 4_096  # images; whatever the number of workers, so that sums are the same to the bit
_VARIANCE_IMAGES = 50_000  # more change a variance by less than 1%
_BATCH = 256
_ROUNDING = 1e-12  # of the mean square: float32 tells no smaller variance from none

Kind = Literal["variance", "accuracy"]
Part = tuple[Kind, int]
"""What is measured, and the number of the part of the images."""


class Draft:
    """A reference in the making. Picklable.

    Args:
        config: of the run.
        key: of the reference's step and its images, which the names of its records begin with.
        classes: of the data.
        preprocessing: timm's data configuration of the model.
        arguments: of ``told_arguments``.
        store: of the weights (`initial`, `trained`), checkpoints and measurements.
    """

    def __init__(
        self,
        config: RunConfig,
        key: str,
        classes: int,
        preprocessing: dict[str, Any],
        arguments: dict[str, Any],
        store: RecordStore,
    ) -> None:
        self.config, self.key, self.store = config, key, store
        self._classes, self._preprocessing = classes, preprocessing
        self._arguments = arguments

    def name(self, what: str) -> str:
        """Of a record."""
        return f"{self.key}-{what}"

    def keep(self, network: StagedNetwork, what: str, **facts: Any) -> None:
        """Store a network's weights."""
        self.store.put(self.name(what), facts, own_weights(network))

    def network(self, what: str) -> StagedNetwork:
        """One with stored weights, in eval mode, on the worker's device."""
        network, _ = build_reference(
            self.config,
            classes=self._classes,
            load_weights=False,
            preprocessing=self._preprocessing,
            arguments=self._arguments,
        )
        network.load_state_dict(self.store.weights(self.name(what)))
        return Engine.of_worker(self.config.cluster).place(network)

    def data(self) -> ImageData:
        """The images but for the test."""
        return load_data(self.config.data, self._preprocessing)

    def images(self, data: ImageData, kind: Kind) -> list[Split]:
        """Those of each part of a measurement."""
        if kind == "variance":
            return data.distillation_plain.portions(_PART, _VARIANCE_IMAGES)
        return data.validation.portions(_PART)

    def remove(self) -> None:
        """Forget all records."""
        self.store.remove(self._names(self.key))

    def forget_others(self, step: str) -> bool:
        """Forget the records that this step has of other images; whether there were any."""
        others = set(self._names(step)) - set(self._names(self.key))
        self.store.remove(sorted(others))
        return bool(others)

    def _names(self, key: str) -> list[str]:
        return [name for name in self.store.records() if name.startswith(f"{key}-")]


class TrainReference:
    """Trains the reference on the labels, with the other workers of its group, if any."""

    def __init__(self, draft: Draft, recipe: ReferenceTraining) -> None:
        self._draft, self._recipe = draft, recipe

    def __call__(self, _payload: None) -> dict[str, Any]:
        """All epochs that are left; the record `trained` has what measured and kept it."""
        started, draft, group = time.perf_counter(), self._draft, current_group()
        data, seed = draft.data(), draft.config.seed
        network = draft.network("initial").requires_grad_(True)
        trainer = Trainer(network, data, self._recipe, seed, cross_entropy, group)
        Checkpoints(draft.store).train(draft.key, trainer, group)
        if group.first:
            trained = trainer.result()
            assert isinstance(trained, StagedNetwork)
            facts = {"broken": data.train.broken, "image_passes": trainer.image_passes}
            draft.keep(trained, "trained", seconds=time.perf_counter() - started, **facts)
        return {}


class MeasureReference:
    """Measures the reference's variances and answers on parts of the images.

    Args:
        draft: of the reference.
        weights: `initial` or `trained`.
    """

    def __init__(self, draft: Draft, weights: str) -> None:
        self._draft, self._weights = draft, weights

    def __call__(self, part: Part) -> dict[str, Any]:
        """One part; its record has the tensors, the seconds and what could not be read."""
        started, (kind, number) = time.perf_counter(), part
        network, images = self._network, self._draft.images(self._data, kind)[number]
        if kind == "variance":
            tensors = {
                str(stage): sums for stage, sums in enumerate(channel_moments(network, images))
            }
        else:
            labels, answers = answers_of(network, images)
            tensors = {"labels": labels, "answers": answers}
        facts = {"broken": dict(images.broken), "seconds": time.perf_counter() - started}
        self._draft.store.put(self._draft.name(f"{kind}-{number}"), facts, tensors)
        return {}

    @cached_property
    def _network(self) -> StagedNetwork:
        return self._draft.network(self._weights).requires_grad_(False)

    @cached_property
    def _data(self) -> ImageData:
        return self._draft.data()


def calibrate(reference: StagedNetwork, images: Split) -> list[Tensor]:
    """Variance of each channel of each stage's output over the images, in one pass.

    Returns:
        (channels,) a stage, float32; accumulated in float64.

    Raises:
        DonnaError: as ``variances_of``.
    """
    return variances_of(channel_moments(reference, images))


def variances_of(moments: list[Tensor]) -> list[Tensor]:
    """(channels,) of each stage, float32, of what ``channel_moments`` summed up.

    Raises:
        DonnaError: a stage gives what is not finite, or the same for all images.
    """
    return [_variance(each, stage) for stage, each in enumerate(moments)]


def _variance(moments: Tensor, stage: int) -> Tensor:
    count, total, squares = moments
    power = squares / count
    variance = (power - (total / count) ** 2).float()
    if not variance.isfinite().all():
        raise DonnaError(
            f"The output of every stage must be finite for every training image, but that of stage "
            f"{stage} has NaN or infinity. Look for it in the images as they are loaded; else the "
            "stage computes it: mend its weights."
        )
    if not (variance > _ROUNDING * power).any():
        raise DonnaError(
            f"The output of every stage must depend on the image, but stage {stage} gives the same "
            "for all training images, so no block can be told from another. Mend its weights, see "
            "that the images are not all one, or name other modules as stages."
        )
    return variance


@torch.no_grad()
def channel_moments(reference: StagedNetwork, images: Split) -> list[Tensor]:
    """Count, sum and sum of squares of each channel of each stage's output, (3, channels) each."""
    engine, memory = Engine.of(reference), MemoryBatch()
    reference.eval()
    sums: list[Tensor] = []
    order = None if images.limit is None else 0
    for batch, _ in images.batches(_BATCH, shuffle_seed=order, device=engine.device):

        def part(rows: slice, batch: Tensor = batch) -> list[Tensor]:
            outputs = reference.features(engine.images(batch[rows]))[1:]
            return [_moments(output.double()) for output in outputs]

        for moments in memory.each(len(batch), part):
            sums = [a + b for a, b in zip(sums, moments, strict=True)] if sums else moments
    return [each.cpu() for each in sums]


def _moments(output: Tensor) -> Tensor:
    total, squares = channel_sums(output), channel_sums(output.square())
    count = torch.full_like(total, output.numel() / len(total))
    return torch.stack([count, total, squares])
