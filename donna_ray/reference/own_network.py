"""A person's own module as a reference."""

import copy

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from donna_ray.errors import ConfigError

__all__ = ["own_network"]


def own_network(model: nn.Module) -> nn.Module:
    """A copy of the network itself, without what `torch.compile` or `DataParallel` put around it.

    Raises:
        ConfigError: it is no module of float32 that can be copied, or has no values yet (`meta`).
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"A model must be an nn.Module, but is a {type(model).__name__}. Give the network "
            "itself."
        )
    if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # of torch.compile
        return own_network(inner)
    if isinstance(model, DataParallel | DistributedDataParallel):
        return own_network(model.module)
    kinds = {each.dtype for each in model.parameters()}
    if kinds != {torch.float32}:
        found = ", ".join(sorted(map(str, kinds))) or "none"
        raise ConfigError(
            f"The parameters of a model must be float32, but those of {type(model).__name__} are "
            f"{found}. Give `model.float()`."
        )
    if any(each.is_meta for each in model.parameters()):
        raise ConfigError(
            f"The parameters of a model must have values, but {type(model).__name__} is on the "
            "device meta. Load its weights, and put it on a CPU or GPU."
        )
    kept = (value for module in model.modules() for value in vars(module).values())
    computed = (each for each in kept if isinstance(each, torch.Tensor) and not each.is_leaf)
    try:  # what a forward left behind cannot be copied, such as a weight that is normalised
        return copy.deepcopy(model, {id(each): each.detach() for each in computed})
    except Exception as error:
        raise ConfigError(
            "A model must be one that `copy.deepcopy` copies, as the candidates have copies of its "
            f"parts, but of {type(model).__name__} it raises {type(error).__name__}: {error}. "
            "Have it keep nothing of a forward."
        ) from error
