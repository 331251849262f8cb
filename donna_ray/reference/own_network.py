"""A person's own module as a reference."""

import copy

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from donna_ray.errors import ConfigError

__all__ = ["is_own", "own_network"]


def is_own(model: nn.Module) -> bool:
    """Whether it is a person's own, and not one that timm makes."""
    return getattr(model, "pretrained_cfg", None) is None


def own_network(model: nn.Module) -> nn.Module:
    """A copy of the network itself, without what `torch.compile` or `DataParallel` put around it.

    Raises:
        ConfigError: it is no module, or its weights are not all there, in float32.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"A model must be a torch.nn.Module, but is a {type(model).__name__}. Give the module "
            "itself."
        )
    if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # of torch.compile
        return own_network(inner)
    if isinstance(model, DataParallel | DistributedDataParallel):
        return own_network(model.module)
    weights = [*model.named_parameters(), *model.named_buffers()]
    if missing := [name for name, each in weights if is_lazy(each) or each.is_meta]:
        raise ConfigError(
            f"A model must have its weights, but {type(model).__name__} has none yet in "
            f"{len(missing)}, such as {missing[0]}. Load them (a model on the meta device: "
            "`model.to_empty(device=...)` first), or run a lazy one on images and train it."
        )
    kinds = {each.dtype for each in model.parameters()}
    if kinds != {torch.float32}:
        found = ", ".join(sorted(map(str, kinds))) or "none"
        raise ConfigError(
            f"The parameters of a model must be float32, but those of {type(model).__name__} are "
            f"{found}. Give `model.float()`."
        )
    try:
        return copy.deepcopy(model, _as_they_are(model))
    except Exception as error:
        raise ConfigError(
            "A model must be one that `copy.deepcopy` copies, as the candidates have copies of its "
            f"parts, but of {type(model).__name__} it raises {type(error).__name__}: {error}. "
            "Take out of it what is no part of the network."
        ) from error


def _as_they_are(model: nn.Module) -> dict[int, object]:
    """What a copy of a model has in common with it, or detached, by id.

    These are what a forward left behind, such as a weight that is normalised, and attributes that
    cannot be copied, such as a lock, a trainer, or what a hook keeps.
    """
    found: dict[int, object] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                found[id(value)] = value.detach()
            elif name not in ("_parameters", "_buffers", "_modules") and not _copies(value):
                found[id(value)] = value
    return found


def _copies(value: object) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True
