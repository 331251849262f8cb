"""A finished reference, its images and its space, wherever a later step needs them."""

import hashlib
import socket
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from donna_ray.config import RunConfig
from donna_ray.data import ImageData, fingerprints_of, is_at_hand, load_data
from donna_ray.data.fingerprint import changed_split
from donna_ray.data.names import letters
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.reference.build import build_reference, outline
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.mirror import OBJECTS
from donna_ray.space import SearchSpace, build_space, register_modules
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.files import Storage
from donna_ray.training.channels import channels_last

__all__ = [
    "VARIANCE",
    "WEIGHTS",
    "change_of_images",
    "data_of",
    "known_of",
    "load_reference",
    "space_of",
]

WEIGHTS = "weights.safetensors"
Fingerprints = Mapping[str, Mapping[str, Any]]

VARIANCE = "variance.safetensors"


def load_reference(config: RunConfig, artifact: Artifact) -> tuple[StagedNetwork, list[Tensor]]:
    """The reference of an artifact, in eval mode and without gradients.

    Also registers the block families of the configuration: every worker starts here.

    Returns:
        The reference and, for each stage, the variance (channels,) of its output.
    """
    register_modules(config.space.modules)
    reference, _ = build_reference(config, load_weights=False, **known_of(artifact))
    reference.load_state_dict(safetensors.torch.load(_file(config, artifact, WEIGHTS)))
    variance = safetensors.torch.load(_file(config, artifact, VARIANCE))
    reference.requires_grad_(False)
    return channels_last(reference).eval(), [variance[str(n)] for n in range(len(reference.stages))]


def data_of(config: RunConfig, artifact: Artifact) -> ImageData:
    """The images of a run, as its reference saw them.

    Raises:
        DonnaError: their classes are no longer those of the reference, or in another order; or
            images have changed.
    """
    data = load_data(config.data, artifact.result["preprocessing"])
    _check_classes(config, artifact, data)
    if told := _change(config, artifact, data.fingerprints):
        raise DonnaError(told)
    return data


def change_of_images(config: RunConfig, artifact: Artifact) -> str | None:
    """What ``data_of`` would say of images in files that have changed, without loading any.

    None also where they are not here, or cannot be opened: who needs them will tell.
    """
    if not is_at_hand(config.data):
        return None
    try:
        return _change(config, artifact, fingerprints_of(config.data))
    except (ConfigError, OSError):
        return None


def _change(config: RunConfig, artifact: Artifact, now: Fingerprints) -> str | None:
    changed = changed_split(artifact.result["fingerprints"], now)
    if changed is None:
        return None
    key, how = changed
    return (
        f"The images must be those that the reference was made with, but data.{key} of "
        f"{config.data.source} {how} (seen on {socket.gethostname()}). Put them back, give another "
        "run folder (`--out`), or make the run again from the start (`donna run --fresh`)."
    )


def _check_classes(config: RunConfig, artifact: Artifact, data: ImageData) -> None:
    classes = artifact.result["class_names"], data.class_names
    known, names = (list(map(letters, each)) for each in classes)
    if known != names:
        first = next((a, b) for a, b in zip_longest(known, names) if a != b)
        raise DonnaError(
            f"The data must have the classes of the reference in their order, but {first[1]!r} of "
            f"{config.data.source} stands where {first[0]!r} stood. Put the folders back, or make "
            "the run again from the start (`donna run --fresh`)."
        )


def known_of(artifact: Artifact) -> dict[str, Any]:
    """What a finished reference is built from, beside its configuration."""
    return {name: artifact.result[name] for name in ("classes", "preprocessing", "arguments")}


def _file(config: RunConfig, artifact: Artifact, name: str) -> bytes:
    """A file of the reference, on a node that may not see the run folder."""
    place = config.cluster.location_of(artifact.root)
    folder = f"{artifact.step}/{artifact.path.name}"
    sha = artifact.files[f"{folder}/{name}"]
    file = f"{folder}/{name}" if isinstance(place, Path) else f"{OBJECTS}/{sha}"
    data = Storage(place).read(file)
    if data is None or hashlib.sha256(data).hexdigest() != sha:
        raise DonnaError(
            f"The reference's {name} must be intact in {place}/{folder}, but is missing, torn or "
            "altered. Give the same command again: it makes what is missing."
        )
    return data


def space_of(config: RunConfig, artifact: Artifact) -> SearchSpace:
    """The search space on the stages of a finished reference."""
    register_modules(config.space.modules)
    _, reference, _ = outline(config, load_weights=False, **known_of(artifact))
    return build_space(config.space, reference.shapes, reference.own_blocks())
