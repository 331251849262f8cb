"""An exported network as ExecuTorch's `.pte` file, whose convolutions and products XNNPACK runs.

The package executorch is loaded when a file is asked for: it takes seconds, and brings much.
"""

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from device_farm.patching import PATCHING
from donna_ray.complexity import deployed
from donna_ray.errors import DonnaError
from donna_ray.onnx_export import TOLERANCE, logits_error

__all__ = ["executorch_floats"]


@torch.no_grad()
def executorch_floats(network: nn.Module, images: Tensor) -> bytes:
    """A network for one image as a `.pte` file, in the form that is deployed.

    Args:
        network: in eval mode, on the CPU; (1, C, H, W) to logits.
        images: (N, C, H, W) that ExecuTorch's runtime and the network are asked of, on this CPU.

    Raises:
        DonnaError: executorch is not installed; it cannot lower the network; or its
            ``logits_error`` is over 1e-4.
    """
    if find_spec("executorch") is None:
        raise DonnaError(
            "To make a .pte file, the package executorch must be installed, but is not. "
            "`pip install 'donna-ray[executorch]'`."
        )
    made = _lowered(deployed(network), images[:1])
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(made).load_method("forward")
    found = torch.cat([method.execute([image])[0] for image in images.split(1)])
    error = logits_error(found, network(images))
    if not error <= TOLERANCE:
        raise DonnaError(
            f"A .pte file must give torch's logits to {TOLERANCE} of the largest (or 1), but "
            f"differs by {error:.2e}. Export without it, and report the model as a defect."
        )
    return made


def _lowered(network: nn.Module, image: Tensor) -> bytes:
    with PATCHING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what executorch itself calls
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            program = torch.export.export(network, (image,))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
        except Exception as error:  # torch's and executorch's share no base class
            raise DonnaError(
                f"A network must be one that ExecuTorch lowers, but it says: {error}. Export it "
                "without --pte."
            ) from error
