"""What a model does with images, before it is cut: what it does not take, and what it gives."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

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
        ConfigError: TorchScript has its code, it raises, or gives something else than one tensor
            with a row for each image.
    """
    _check_code(model)
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
                f"with {count} of {tuple(input_shape)} raised {type(error).__name__}: "
                f"{one_line(str(error))}. {_remedy(model)}"
            ) from error
        _check_output(model, output, count)


def _check_code(model: nn.Module) -> None:
    """Refuse modules whose code is not Python's: they are neither cut nor made smaller."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(
                f"A reference must be of Python modules, but {name or 'the whole of it'} is one of "
                "TorchScript (torch.jit). Give the module that it was scripted or traced from, "
                "with its weights: `model.load_state_dict(scripted.state_dict())`."
            )


def _remedy(model: nn.Module) -> str:
    if isinstance(model, fx.GraphModule):
        return (
            "It is a graph (of torch.export, say), which may be for one number of images alone: "
            "give the Python module that it was made from."
        )
    return (
        "Change data.image_size (or --image-size, or the images of a study), or give a model whose "
        "forward takes one tensor of images."
    )


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
