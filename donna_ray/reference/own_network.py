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
