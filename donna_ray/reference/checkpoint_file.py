"""A checkpoint file read without running code from it, or refused with a remedy that works."""

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from donna_ray.errors import ConfigError
from donna_ray.reference.checkpoint_names import some

__all__ = ["Content", "read_arguments", "read_checkpoint", "refused"]

_HEAD = 512  # bytes that tell what a file is
_LONGEST_HEADER = 10**8  # bytes, of safetensors
_CONVERT = "Load it in the framework that wrote it and save the weights by the model's names."
_ALONE = "Save the weights alone: `torch.save(model.state_dict(), FILE)`."
_DOWNLOAD = "Download the file itself."
_MERGE = (
    "Merge them there: `python -c 'from glob import glob; from safetensors.torch import load_file, "
    'save_file; save_file({k: v for f in glob("*-of-*.safetensors") for k, v in '
    """load_file(f).items()}, "merged.safetensors")'`, and give merged.safetensors."""
)
_OTHER_FILES = (  # how they begin, what they are, what to do
    (
        b"version https://git-lfs",
        "is a pointer of Git LFS",
        "Run `git lfs pull` in its repository.",
    ),
    (b"<", "is a web page", _DOWNLOAD),
    (b"{", "is JSON", _DOWNLOAD),
    (b"\x1f\x8b", "is compressed by gzip", "Unpack it and give the file inside."),
    (b"\x89HDF", "is HDF5, as Keras writes it", _CONVERT),
    (b"\x08", "is an ONNX model, whose weights have other names", _ALONE),
)
_GLOBAL = re.compile(r"GLOBAL (\S+)")  # in torch's words of a class that it does not load


class Content(NamedTuple):
    """What is in a checkpoint file."""

    value: Any
    """As it was saved; objects of other classes than tensors, containers, numbers and text are
    replaced by empty ones."""
    replaced: tuple[str, ...]
    """The classes and functions of those objects."""


def read_checkpoint(path: Path) -> Content:
    """Reads a file of `torch.save` or safetensors, told by its content, not by its name.

    Raises:
        ConfigError: it is another file, damaged, or cannot be read without running its code.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise refused(path, "is empty", "Copy or download it again.")
    if int.from_bytes(head[:8], "little") <= _LONGEST_HEADER and head[8:9] == b"{":
        return _read(path, lambda: Content(safetensors.torch.load_file(path), ()))
    if shards := _shards(path, head):
        raise refused(path, f"is the index of {len(shards)} shards ({some(shards)})", _MERGE)
    for begin, what, remedy in _OTHER_FILES:
        if head.lstrip().startswith(begin):
            raise refused(path, what, remedy)
    if zipfile.is_zipfile(path):
        _check_members(path)
        _check_sums(path)
        return _read(path, lambda: _unpickled(path, get_unsafe_globals_in_checkpoint(path)))
    return _read(path, lambda: _unpickled(path, _NAMESPACE))  # before torch 1.6


def read_arguments(path: Path) -> Mapping[str, Any]:
    """What a training program was called with: the `args` in a checkpoint, without its weights.

    Returns:
        Their values by name, as in ``Content``. Empty where there are none, or the file cannot be
        read: ``read_checkpoint`` says why.
    """
    try:
        others = get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else _NAMESPACE
        content = _unpickled(path, others, "meta").value
    except Exception:  # of whatever bytes
        return {}
    arguments = content.get("args") if isinstance(content, Mapping) else None
    values = getattr(arguments, "values", None) if isinstance(arguments, _Arguments) else arguments
    return values if isinstance(values, Mapping) else {}


def _shards(path: Path, head: bytes) -> list[str]:
    """The files that an index of Hugging Face names; none where it is no index."""
    if not head.lstrip().startswith(b"{"):
        return []
    try:
        where = json.loads(path.read_bytes())["weight_map"].values()
        return sorted(map(str, set(where)))
    except (ValueError, LookupError, AttributeError, TypeError):
        return []


def refused(path: Path, what: str, remedy: str) -> ConfigError:
    """The error of a file that `what`, a verb and what follows, says why it is no checkpoint."""
    return ConfigError(
        f"reference.weights is {path}, but its weights cannot be had: it {what}. {remedy}"
    )


def without_weights(path: Path, content: Content) -> ConfigError:
    """The error of a file in which none of the model's names has a tensor."""
    what = "holds no weights by the model's names"
    if content.replaced:
        what += f", but objects of {some(content.replaced)}, whose code is not run"
    return refused(path, what, _ALONE)


class _Empty:
    """Stands in for an object of any class, so that no code of that class runs."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


class _Arguments(_Empty):
    """Stands in for an argparse.Namespace, whose values are of the kinds that are read."""

    def __setstate__(self, state: Any) -> None:
        self.values = state


_NAMESPACE = ["argparse.Namespace"]
_CONTAINERS = {"collections.defaultdict": _empty_dict, "argparse.Namespace": _Arguments}


def _unpickled(path: Path, others: list[str], device: str = "cpu") -> Content:
    """Loaded by torch's unpickler, which calls only what it is given by name."""
    stand_ins: list[Any] = [(_CONTAINERS.get(name, _Empty), name) for name in others]
    with safe_globals(stand_ins), path.open("rb") as file:  # not the path, whose suffix torch heeds
        value = torch.load(file, map_location=device, weights_only=True)
    return Content(value, tuple(sorted(set(others) - _CONTAINERS.keys())))


def _check_members(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in members:
        remedy = "Save its weights alone: `torch.save(torch.jit.load(FILE).state_dict(), OTHER)`."
        raise refused(path, "is TorchScript, whose code is not run", remedy)
    if "data.pkl" not in members:
        raise refused(path, "is a zip archive, but none of torch.save", "Unpack it, or save anew.")


def _check_sums(path: Path) -> None:
    """Of each tensor; torch writes them, and does not look at them when it loads."""
    with zipfile.ZipFile(path) as archive:
        try:
            written = any(each.CRC for each in archive.infolist())  # or told torch.save not to
            bad = archive.testzip() if written else None
        except Exception as error:  # of whatever bytes
            bad = str(error)
    if bad is not None:
        what = f"is damaged: the checksum of {bad} in it is another"
        raise refused(path, what, "Copy or download it again.")


def _read(path: Path, load: Callable[[], Content]) -> Content:
    try:
        return load()
    except Exception as error:  # of whatever bytes
        found = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found:
            what = f"holds objects of {found[1]}, whose code is not run"
            raise refused(path, what, _ALONE) from error
        what = "is cut off, damaged, or written by other means than torch.save and safetensors"
        remedy = f"Copy or download it again. {_ALONE}"
        raise refused(path, what, remedy) from error
