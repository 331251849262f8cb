"""What a person's loss, score and latency return, looked at before it counts."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from device_farm import ModelError
from device_farm.ending import one_line
from device_farm.foreign import exits_are_errors
from donna_ray.data import Split
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.finetune.work import distillation_loss
from donna_ray.reference.network import StagedNetwork
from donna_ray.search.study.ledger import Outcome, measured
from donna_ray.training.engine import Engine, MemoryBatch
from donna_ray.training.loop import Loss

__all__ = ["Measuring", "OwnLoss", "checked_loss", "checked_score"]

OwnLoss = Callable[[Any, Any], Tensor]


def checked_loss(own: OwnLoss | None, reference: StagedNetwork, images: Split) -> Loss:
    """The loss of a study's trainings.

    Args:
        own: a person's, of (output, targets), which is tried on the reference first.
        reference: teaches where there is none.
        images: whose first batch it is tried on.

    Raises:
        ConfigError: it does not return a scalar, or one that is not finite of the reference.
    """
    if own is None:
        return distillation_loss(reference)

    def loss(_images: Tensor, output: Tensor, targets: Any) -> Tensor:
        value = own(output, targets)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ConfigError(
                "`loss` must return a scalar tensor with a gradient of the output, but returned "
                f"{_words(value)}. Return a mean such as `difference.square().mean()`."
            )
        return value

    if not (tried := _on_first_batch(loss, reference, images)).isfinite().all():
        raise ConfigError(
            f"`loss` must be finite, but is {tried.item()} for the model itself on the first "
            "batch of train. Mend the loss, or the targets."
        )
    return loss


def checked_score(value: object) -> float:
    """What a score returned.

    Raises:
        DonnaError: it is no number, or none from 0 to 1.
    """
    score = _number("score", value)
    if not 0 <= score <= 1:
        raise DonnaError(
            f"A score must be 0 to 1, and the higher the better, but is {score:g}. Scale it "
            "(mean IoU, mAP and accuracy are)."
        )
    return score


@dataclass
class Measuring:
    """A person's latency at work.

    Attributes:
        latency: of a network, in ms.
        error: the last one that it raised.
    """

    latency: Callable[[StagedNetwork], float]
    error: Exception | None = None

    def outcome(self, network: StagedNetwork, predicted: float) -> Outcome:
        """Of a candidate; whatever is wrong with its latency is its failure alone."""
        try:
            with exits_are_errors():
                ms = _number("latency", self.latency(network))
            if ms <= 0:
                raise DonnaError(f"a latency must be greater than 0 ms, but is {ms:g}")
        except Exception as error:
            self.error = error
            text = one_line(str(error))
            if not isinstance(error, DonnaError):
                text = f"{type(error).__name__}: {text}"
            return {"failure": text, "of_model": isinstance(error, ModelError)}
        return measured(predicted, {"median_ms": ms})


def _on_first_batch(loss: Loss, reference: StagedNetwork, split: Split) -> Tensor:
    images, targets = next(split.batches(0))
    engine, count = Engine.of(reference), len(images)
    with torch.no_grad():
        parts = MemoryBatch().each(count, lambda rows: reference(engine.images(images[rows])))
    output = torch.cat(parts).requires_grad_().clone()  # no leaf: a loss may change it in place
    return loss(images, output, engine.targets(targets, slice(None), count)).detach()


def _number(name: str, value: object) -> float:
    if isinstance(value, Tensor | np.ndarray | np.generic) and prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(
            f"`{name}` must return a number, but returned {_words(value)}. Give a float."
        )
    return float(value)


def _words(value: object) -> str:
    if isinstance(value, Tensor):
        graph = "with" if value.requires_grad else "without"
        return f"a tensor of shape {tuple(value.shape)} {graph} a gradient"
    return f"{value!r:.80}" if isinstance(value, nn.Module | None) else f"a {type(value).__name__}"
