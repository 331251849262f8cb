"""What a model does with images, before it is cut: what it does not take, and what it gives."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from device_farm.ending import one_line
from device_farm.foreign import exits_are_errors
from donna_ray.errors import ConfigError

__all__ = ["check_runs"]


@torch.no_grad()
def check_runs(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Run a model on two random images, and on one.

    Args:
        model: put into eval mode; where its weights are, so on the meta device without numbers.
        input_shape: (channels, height, width) of an image.

    Raises:
        ConfigError: it raises, or gives something else than one tensor with a row for each image.
    """
    model.eval()
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(0)
    for count in (2, 1):
        images = torch.randn(count, *input_shape, generator=generator, device="cpu").to(device)
        try:
            with exits_are_errors():
                output = model(images)
        except Exception as error:
            raise ConfigError(
                f"A reference must take images of the size asked for, but {type(model).__name__} "
                f"with {tuple(input_shape)} raised {type(error).__name__}: {one_line(str(error))}. "
                "Change data.image_size (or --image-size, or the images of a study), or give a "
                "model whose forward takes one tensor of images."
            ) from error
        _check_output(model, output, count)


def _check_output(model: nn.Module, output: object, count: int) -> None:
    name = type(model).__name__
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"The output of a reference must be one tensor, but {name} gives a "
            f"{type(output).__name__}. Give a module around it whose forward returns the tensor "
            "alone (of a detector the backbone)."
        )
    if output.shape[:1] != (count,):
        raise ConfigError(
            f"The output of a reference must have a row for each image, but {name} gives shape "
            f"{tuple(output.shape)} for {count}. Leave out what joins images or takes their "
            "dimension away, as `squeeze()` does of a single one: `squeeze(1)` keeps it."
        )
