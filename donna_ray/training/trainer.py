"""Trains one network epoch by epoch. Plain torch."""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from donna_ray.config import FinetuneRecipe
from donna_ray.data import ImageData, Split
from donna_ray.data.images import derived_seed
from donna_ray.errors import DivergedError, DonnaError
from donna_ray.training.batchnorm import calibrating, recalibrate
from donna_ray.training.engine import Descent, Engine, MemoryBatch
from donna_ray.training.loop import Keeper, Loss, accuracy, numbered, seeded
from donna_ray.workers.group import ALONE, Group

__all__ = ["Trainer"]


class Trainer:
    """A network in training.

    Attributes:
        network: what is trained.
        epoch: how many epochs are done.
        step: how many steps of the epoch under way are done.
        image_passes: images that went through the network so far, in training and in the
            measurements of a patience.

    Args:
        network: maps images (N, C, H, W) to logits (N, classes); on its device.
        data: its images for training, calibration and, where the recipe has a patience, validation.
        recipe: of the training; its precision is settled. Only weights decay, not biases and norms.
        seed: of the images' order and of dropout.
        loss: of a batch.
        group: the processes that train it together, each with a trainer; all get the first one's
            weights. BatchNorm has the statistics of a process's part of the batch, as it has of
            the part that fits the memory (``MemoryBatch``).

    Raises:
        ValueError: the precision is `auto`.
        DonnaError: several processes have fewer images than the batch size.
    """

    def __init__(
        self,
        network: nn.Module,
        data: ImageData,
        recipe: FinetuneRecipe,
        seed: int,
        loss: Loss,
        group: Group = ALONE,
    ) -> None:
        self._engine = Engine.of(network).at(recipe.precision)
        self.network = self._engine.place(network)
        self.epoch = self.step = 0
        # In a group the others wait for a whole part; alone, BatchNorm needs two images.
        self._memory = MemoryBatch(recipe.batch_size if group.size > 1 else 2)
        self._losses: list[Tensor] = []
        self._group, self._images = group, data.train
        self._model: nn.Module = network
        if group.size > 1:
            _check_size(data.train, recipe)
            self._model = DistributedDataParallel(network, find_unused_parameters=True)
            self._images = data.train.shard(group.rank, group.size)
        self._data, self._recipe, self._seed, self._loss = data, recipe, seed, loss
        steps = recipe.epochs * data.train.steps(recipe.batch_size)
        groups = param_groups_weight_decay(network, recipe.weight_decay)
        self._parameters = [each for group in groups for each in group["params"]]
        self._descent = Descent(groups, recipe, steps, self._engine, recipe.schedule)
        decay = recipe.ema_decay
        self._average = None if decay is None else ModelEmaV3(network, decay, use_warmup=True)
        self._best_epoch, self._best_accuracy = 0, -1.0
        self._best: dict[str, Tensor] = {}

    def finished(self) -> bool:
        """Whether all epochs are done, or the patience has run out."""
        patience = self._recipe.patience or self._recipe.epochs
        return self.epoch == self._recipe.epochs or self.epoch - self._best_epoch >= patience

    @property
    def image_passes(self) -> int:
        data = self._data
        compared = 0
        if self._recipe.patience is not None:
            compared = calibrating(data.calibration) + len(data.validation)
        return self.epoch * (len(data.train) + compared)

    def train_epoch(self, keep: Callable[[], object] | None = None) -> None:
        """Train for one epoch, or for what is left of it.

        Args:
            keep: called every few minutes to keep ``state``.

        Raises:
            DivergedError: the loss is no longer finite.
            DonnaError: too many of the images are broken, of all processes together.
            MemoryLimitError: not even two images fit the memory; in a group, its part of a batch.
        """
        self._model.train()
        batches = self._images.batches(
            self._recipe.batch_size,
            shuffle_seed=self._seed,
            epoch=self.epoch,
            start=self.step,
            device=self._engine.device,
        )
        keeper = None if keep is None else Keeper(lambda _steps: keep())
        with seeded(0):
            steps = numbered(batches, self.step + 1, self._check_losses, keeper)
            for number, (images, targets) in steps:
                torch.manual_seed(derived_seed(self._seed, self.epoch, self._group.rank, number))
                self._train_on(images, targets)
                self.step = number
        self.epoch, self.step = self.epoch + 1, 0
        self._data.train.note(self._group.union(self._images.broken))
        if self._recipe.patience is not None:
            self._compare()

    def result(self) -> nn.Module:
        """What is to be measured and kept, in eval mode, with its BatchNorm recalibrated.

        Of several processes, the first one's; the others need not call it.

        The moving average of the weights if the recipe has one; of the best epoch if it has a
        patience, else of the last.
        """
        module = self.network if self._average is None else self._average.module
        if self._best:
            module.load_state_dict(self._best)
        else:
            recalibrate(module, self._data.calibration)
        return module.eval()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the epochs to come depend on: tensors by name, and plain JSON."""
        optimizer = self._descent.optimizer.state_dict()
        moments = {
            f"{index}.{name}": value
            for index, values in optimizer["state"].items()
            for name, value in values.items()
        }
        average = {} if self._average is None else self._average.module.state_dict()
        parts = {
            "network": self.network.state_dict(),
            "average": average,
            "best": self._best,
            "optimizer": moments,
        }
        tensors = {
            f"{part}/{name}": value for part, each in parts.items() for name, value in each.items()
        }
        return tensors, {
            "epoch": self.epoch,
            "step": self.step,
            "best_epoch": self._best_epoch,
            "best_accuracy": self._best_accuracy,
            "groups": optimizer["param_groups"],
            "schedule": self._descent.schedule.state_dict(),
            "scale": self._descent.scaler.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """The inverse of ``state``, on a new trainer of the same arguments."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "best": {}}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            if part == "optimizer":
                index, _, moment = name.partition(".")
                like = self._parameters[int(index)]
                moments.setdefault(int(index), {})[moment] = _laid_out(value, like)
            else:
                parts[part][name] = value
        self.network.load_state_dict(parts["network"])
        if self._average is not None:
            self._average.module.load_state_dict(parts["average"])
        self._best = parts["best"]
        descent = self._descent
        descent.optimizer.load_state_dict({"state": moments, "param_groups": facts["groups"]})
        descent.schedule.load_state_dict(facts["schedule"])
        if facts.get("scale"):
            descent.scaler.load_state_dict(facts["scale"])
        self.epoch, self.step = facts["epoch"], facts["step"]
        self._best_epoch, self._best_accuracy = facts["best_epoch"], facts["best_accuracy"]

    def _train_on(self, images: Tensor, targets: Any) -> None:
        """One step, on as many images at once as the memory holds."""
        engine, count = self._engine, len(images)

        def part(rows: slice) -> Tensor:
            some = engine.images(images[rows])
            with engine.autocast():
                loss = self._loss(some, self._model(some), engine.targets(targets, rows, count))
            return self._descent.backward(loss, len(some) / count)

        losses = self._memory.each(count, part, self._descent.forget)
        self._descent.step()
        self._losses.append(torch.stack(losses).sum())
        if self._average is not None:
            self._average.update(self.network, step=self._descent.schedule.last_epoch)

    def _check_losses(self) -> None:
        values = torch.stack(self._losses).tolist() if self._losses else []
        self._losses.clear()
        for value in values:
            if not isfinite(value):
                raise DivergedError(
                    f"The loss of a training must be finite, but became {value}. Lower its "
                    "learning_rate, or raise its batch_size."
                )

    def _compare(self) -> None:
        module = self.network if self._average is None else self._average.module

        def measured() -> float:
            recalibrate(module, self._data.calibration)
            return accuracy(module, self._data.validation)

        reached = self._group.from_first(measured)
        if reached > self._best_accuracy:
            self._best_epoch, self._best_accuracy = self.epoch, reached
            self._best = {name: value.clone() for name, value in module.state_dict().items()}


def _check_size(images: Split, recipe: FinetuneRecipe) -> None:
    if len(images) < recipe.batch_size:
        raise DonnaError(
            f"Where several workers train a network, batch_size must be at most the number of "
            f"training images ({len(images)}), but is {recipe.batch_size}. Lower it, or set "
            "workers_per_network to 1."
        )


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """The value in the parameter's memory format, which a fused optimizer asks for."""
    if value.shape != parameter.shape:
        return value  # the count of steps
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()
