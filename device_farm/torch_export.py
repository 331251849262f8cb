"""ONNX out of a torch module, which is code of others."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from device_farm.failures import ModelError, first_line
from device_farm.foreign import exits_are_errors
from device_farm.patching import PATCHING

# torch is imported where it is used: it takes seconds, and most models are ONNX files.
if TYPE_CHECKING:
    from torch import nn

__all__ = ["exported", "no_graphs"]


def exported(module: nn.Module, inputs: Sequence[Any]) -> tuple[bytes, nn.Module]:
    """The ONNX model of a module in eval mode, and the copy on the CPU that it was made of.

    Args:
        module: Is left as it is.
        inputs: Examples, tensors.

    Raises:
        ModelError: One is no tensor, or the module cannot be exported, whatever its code raises.
    """
    import torch

    for number, each in enumerate(inputs, 1):
        if not isinstance(each, torch.Tensor):
            raise ModelError(
                f"the example inputs of a module must be tensors, but number {number} is "
                f"{type(each).__name__}: give a tensor, or make it a constant of the module"
            )
    file = io.BytesIO()
    try:
        with exits_are_errors(), warnings.catch_warnings(), torch.no_grad(), no_graphs():
            warnings.simplefilter("ignore")  # of the exporter, which is the quicker one of two
            copied = copy.deepcopy(module).cpu().eval()
            examples = tuple(each.cpu() for each in inputs)
            torch.onnx.export(copied, examples, file, dynamo=False)  # type: ignore[arg-type]
    except Exception as error:  # of whatever code
        raise ModelError(
            f"a module must be exportable to ONNX, but {type(module).__name__} is not "
            f"({type(error).__name__}: {first_line(error)}): give inputs that it takes, or export "
            "it yourself"
        ) from error
    return file.getvalue(), copied


@contextmanager
def no_graphs() -> Iterator[None]:
    """Of a module that it cannot export, torch prints the whole graph, which may be megabytes."""
    import torch

    name = "_jit_onnx_log"
    with PATCHING:
        log = getattr(torch._C, name)
        setattr(torch._C, name, lambda *_: None)
        try:
            yield
        finally:
            setattr(torch._C, name, log)
