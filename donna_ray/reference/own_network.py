"""A person's own module as a reference."""

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from donna_ray.errors import ConfigError

__all__ = ["own_network"]


def own_network(model: nn.Module) -> nn.Module:
    """The network itself, without what `torch.compile` or `DataParallel` put around it.

    Raises:
        ConfigError: it is not of float32.
    """
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
    return model
