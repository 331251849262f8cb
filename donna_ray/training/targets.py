"""Labels and logits as cross entropy and accuracy take them, looked at before a training."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from donna_ray.data.loaders import LoadedSplit
from donna_ray.errors import ConfigError
from donna_ray.training.engine import Engine

__all__ = ["check_labels"]

_IGNORED = -100  # by torch's cross entropy, in masks
_OR = ", or give `{}`"
_SOME = 4  # images
_WHOLE = 1e-3  # how near to 1 the sum of probabilities is


@torch.no_grad()
def check_labels(
    network: nn.Module, train: LoadedSplit | None, validation: LoadedSplit | None
) -> None:
    """Refuse targets that are no labels of the network's classes: now in the first batches, and in
    every later one when it comes.

    Warns where its outputs are probabilities, for cross entropy takes logits.

    Args:
        network: in eval mode.
        train: of (images, targets), for cross entropy; None where there is another loss.
        validation: likewise, for the accuracy; None where there is another score.

    Raises:
        ConfigError: with a remedy.
    """
    if train is not None:
        _warn_of_probabilities(_check(network, train, "loss"))
    if validation is not None:
        _check(network, validation, "score")


def _warn_of_probabilities(output: Tensor) -> None:
    sums = output.sum(1)
    if bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=_WHOLE):
        warnings.warn(
            "The outputs of the model are probabilities, it seems (none is below 0, each image's "
            "add up to 1), but the loss takes logits. Leave its softmax out, or give `loss`.",
            stacklevel=5,  # the decorator's frame too
        )


def _check(network: nn.Module, split: LoadedSplit, setting: str) -> Tensor:
    """The network's outputs for some images of a split, if its targets are labels."""
    images, targets = next(split.batches(0))
    output: Tensor = network(Engine.of(network).images(images[:_SOME]))
    if setting == "score" and output.ndim != 2:
        raise ConfigError(
            "The accuracy of a study must be a classifier's, whose output is (images, classes), "
            f"but this one's is {tuple(output.shape)}. Give `score`."
        )
    if output.ndim < 2:
        raise ConfigError(
            "The model of a study without a loss must give (images, classes), but gives "
            f"{tuple(output.shape)}. Give `loss`."
        )
    labels = _Labels(split.name, setting, images.shape[1:], output.shape[1:])
    labels(images, targets)
    split.checks.append(labels)
    return output


@dataclass(frozen=True)
class _Labels:
    """What targets must be.

    Attributes:
        name: of the split.
        setting: what is given where they are something else.
        images: the shape of one; batches of others are not looked at.
        output: (classes, …) of an image.
    """

    name: str
    setting: str
    images: tuple[int, ...]
    output: tuple[int, ...]

    def __call__(self, images: Tensor, targets: object) -> None:
        if tuple(images.shape[1:]) != tuple(self.images):
            return
        classes, *positions = self.output
        shape = (len(images), *positions)
        for what, remedy in _faults(targets, shape, classes):
            raise ConfigError(
                f"Targets of {self.name} must be labels: torch.int64 of shape {shape}, 0 to "
                f"{classes - 1}, since no {self.setting} is given, but they are {what}. "
                f"{remedy.format(self.setting)}."
            )


def _faults(targets: object, shape: tuple[int, ...], classes: int) -> Iterator[tuple[str, str]]:
    """What is wrong with targets, and the remedy, where {} is the setting to give instead."""
    if not isinstance(targets, Tensor):
        yield f"a {type(targets).__name__}", "Make a tensor of them in the dataset" + _OR
        return
    given = tuple(targets.shape)
    if given == (shape[0], classes, *shape[1:]) and given != shape:
        remedy = "Give `{}` if they are soft (MixUp), `targets.argmax(1)` if they are one-hot"
        yield f"{targets.dtype} of shape {given}", remedy
    elif given == (shape[0], 1, *shape[1:]):
        yield f"of shape {given}", "Give `targets.squeeze(1)`" + _OR
    elif given != shape:
        yield f"of shape {given}", "Give one for each output" + _OR
    elif targets.dtype != torch.int64:
        yield f"{targets.dtype}", "Give `targets.long()`" + _OR
    known = targets[targets != _IGNORED] if len(shape) > 1 else targets
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < classes:
        what = f"{int(known.min())} to {int(known.max())}"
        remedy = "Number the classes from 0, and see that the model has all of them"
        if int(known.min()) == _IGNORED:  # the accuracy takes it for a class that is never right
            remedy = f"Leave out the images of {_IGNORED}, which an accuracy does not ignore"
        yield what, remedy + _OR
