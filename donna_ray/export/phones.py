"""The files of an export that must be asked for: what runs a network on phones and boards."""

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from donna_ray.data import ImageData
from donna_ray.errors import ConfigError
from donna_ray.export.executorch import executorch_floats
from donna_ray.export.folder import EXECUTORCH, LITERT, LITERT_INT8
from donna_ray.export.litert import litert_floats, litert_integers
from donna_ray.reference.network import StagedNetwork

__all__ = ["check_known", "phone_files"]

Losses = dict[str, float]


def check_known(also: Collection[str]) -> None:
    """Refuse what is no file that can be asked for.

    Raises:
        ConfigError: one of them is not.
    """
    known = (LITERT, LITERT_INT8, EXECUTORCH)
    if unknown := sorted(set(also).difference(known)):
        raise ConfigError(
            f"`also` must be of {', '.join(known)}, but has {unknown[0]!r}. Correct it."
        )


def phone_files(
    also: Collection[str],
    model: bytes,
    network: StagedNetwork,
    images: Tensor,
    data: Callable[[], ImageData],
) -> Mapping[str, tuple[bytes, Losses]]:
    """Those that are asked for, each checked; with what `litert_integers` says is lost.

    Args:
        also: their names.
        model: the network in ONNX, for one image.
        network: in eval mode, on the CPU.
        images: (N, C, H, W), to check on.
        data: reads the images of the run, which `model-int8.tflite` needs.

    Raises:
        DonnaError: a package is not installed, or a check failed.
    """
    made: dict[str, tuple[bytes, Losses]] = {}
    if LITERT in also:
        made[LITERT] = litert_floats(model, network, images), {}
    if LITERT_INT8 in also:
        made[LITERT_INT8] = litert_integers(network, data())
    if EXECUTORCH in also:
        made[EXECUTORCH] = executorch_floats(network, images), {}
    return made
