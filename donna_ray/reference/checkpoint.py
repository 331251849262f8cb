"""A model's weights from a checkpoint file: all of them fit, or it is refused."""

import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.models import load_checkpoint, model_entrypoint
from torch import Tensor, nn

from donna_ray.errors import ConfigError
from donna_ray.reference.checkpoint_file import read_checkpoint, without_weights
from donna_ray.reference.checkpoint_names import State, find_state, some

__all__ = ["load_weights", "other_classes"]

_NUMPY = (".npz", ".npy")  # which timm maps to the model's names itself
_COUNTERS = ".num_batches_tracked"
_COUNTED = ("total_ops", "total_params")  # by thop, into a model's buffers


def load_weights(model: nn.Module, name: str, path: Path, *, new_head: bool) -> None:
    """Load a checkpoint into a model, without running code from it.

    The weights are found below whatever keys and prefix (`model.` in a Lightning checkpoint). If
    they do not fit, they are converted as timm converts its own, for another image size say.

    Args:
        model: of timm or of this package.
        name: that timm builds it by, with or without a tag.
        path: of the file.
        new_head: the model's own classifier stays where the file has none for its classes.

    Raises:
        ConfigError: the weights are not the model's, are for another number of classes, or are
            not finite.
    """
    before = {each: value.isfinite().all() for each, value in _floats(model)}
    _load(model, name, path, new_head=new_head)
    bad = [each for each, value in _floats(model) if before[each] and not value.isfinite().all()]
    if bad:
        raise ConfigError(
            f"reference.weights must be finite, but {path} has NaN or infinity in {len(bad)} of "
            f"its weights ({some(bad)}): training diverged, or they were too large for float16. "
            "Give an earlier checkpoint."
        )


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    state = model.state_dict().items()
    return ((name, value) for name, value in state if value.is_floating_point())


def _load(model: nn.Module, name: str, path: Path, *, new_head: bool) -> None:
    if path.suffix.lower() in _NUMPY:
        load_checkpoint(model, str(path))
        return
    known, head = _named(model), _classifier(model)
    body = {each: value for each, value in known.items() if not each.startswith(head)}
    content = read_checkpoint(path)
    found = _without_counts(find_state(content.value, known, body, path), model, path)
    state = _converted(found, model, name)
    if not state or (content.replaced and known.keys().isdisjoint(state)):
        raise without_weights(path, content)
    _check_kinds(state, known, path)
    has_all = all(each in state and state[each].shape == known[each].shape for each in known)
    if not has_all and not _misfits(state, body, head):
        if not new_head:
            raise _head_error(path, state, [each for each in known if each not in body], model)
        known, state = body, {each: state[each] for each in state if not each.startswith(head)}
    _check_names(state, known, path)
    _check_shapes(state, known, path)
    own = model.state_dict()
    model.load_state_dict(own | {each: state[each] for each in state if each in own})


def other_classes(whose: str, known: int, classes: Any) -> str:
    """Why weights for `known` classes are refused."""
    return (
        f"{whose} knows {known} classes, but the data have {classes}, so its classifier would be "
        "random. Set reference.training (epochs, learning_rate, …) to train it further on the "
        "data, or give a checkpoint file of the same number of classes."
    )


def _head_error(path: Path, state: State, head: list[str], model: nn.Module) -> ConfigError:
    sizes = [len(state[name]) for name in head if name in state and state[name].dim()]
    if sizes and sizes[0] != model.num_classes:
        return ConfigError(other_classes(f"The checkpoint {path}", sizes[0], model.num_classes))
    return ConfigError(
        f"The checkpoint {path} lacks the model's classifier ({some(head)}), which would be "
        "random. Set reference.training (epochs, learning_rate, …) to train it on the data, or "
        "give a checkpoint that has it."
    )


def _without_counts(state: State, model: nn.Module, path: Path) -> State:
    """Without integers and counts beside the weights, which change nothing of what it computes."""
    own = model.state_dict()
    ignored = [
        name
        for name, value in state.items()
        if name not in own
        and not name.endswith(_COUNTERS)
        and (name.endswith(_COUNTED) or not (value.dim() or value.is_floating_point()))
    ]
    if ignored:
        words = f"{len(ignored)} counts that are no weights ({some(ignored)})"
        logging.getLogger(__name__).warning("Of %s are ignored: %s.", path, words)
    return {name: state[name] for name in state if name not in ignored}


def _converted(state: State, model: nn.Module, name: str) -> State:
    """As timm converts what it loads into this model, if the state fits then and not before."""
    known, head = _named(model), _classifier(model)
    module = sys.modules[model_entrypoint(name.partition(".")[0]).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None or not _misfits(state, known, head):
        return state
    try:
        converted: State = convert(dict(state), model)
    except Exception:  # of names that it does not expect: the state is refused as it is
        return state
    return state if _misfits(converted, known, head) else converted


def _misfits(state: State, known: State, head: tuple[str, ...]) -> bool:
    """Whether anything but the classifier lacks, has another shape, or is not the model's."""
    body = [name for name in known if not name.startswith(head)]
    others = [name for name in _foreign(state, known) if not name.startswith(head)]
    return bool(others) or any(
        name not in state or state[name].shape != known[name].shape for name in body
    )


def _named(model: nn.Module) -> State:
    """The weights that a checkpoint must have; old ones do not count the batches of BatchNorm."""
    state = model.state_dict().items()
    return {name: value for name, value in state if not name.endswith(_COUNTERS)}


def _foreign(state: Iterable[str], known: State) -> list[str]:
    return [name for name in state if name not in known and not name.endswith(_COUNTERS)]


def _check_names(state: State, known: State, path: Path) -> None:
    missing = [name for name in known if name not in state]
    foreign = _foreign(state, known)
    if foreign and not missing:
        raise ConfigError(
            f"reference.weights must be a checkpoint of the model alone, but {path} has "
            f"{len(foreign)} others ({some(foreign)}) beside all of its {len(known)} weights. If "
            "the model computes the same without them, save it without them."
        )
    if missing:
        raise ConfigError(
            f"reference.weights must be a checkpoint of the model, but {path} lacks {len(missing)} "
            f"of its {len(known)} weights ({some(missing)}) and has {len(foreign)} others "
            f"({some(foreign)}). Give a checkpoint of this model, or 'train' to train it on the "
            "data."
        )


def _check_kinds(state: State, known: State, path: Path) -> None:
    kinds = {name: _kind(state[name]) for name in known if name in state}
    others = [
        f"{name} {kind}" for name, kind in kinds.items() if kind and known[name].is_floating_point()
    ]
    if others:
        raise ConfigError(
            f"reference.weights must be plain tensors of floating-point numbers, but {len(others)} "
            f"weights of {path} are not ({some(others)}). Give the checkpoint from before it was "
            "quantised or converted, or turn them back (`dequantize()`, `to_dense()`, `real`)."
        )


def _kind(value: Tensor) -> str | None:
    """What a tensor is that is not of plain floating-point numbers."""
    if value.is_quantized:
        return "quantised"
    if value.layout != torch.strided or value.is_meta:
        return "without values" if value.is_meta else "sparse"
    return None if value.is_floating_point() else str(value.dtype).removeprefix("torch.")


def _check_shapes(state: State, known: State, path: Path) -> None:
    others = [name for name in known if state[name].shape != known[name].shape]
    if others:
        shapes = [f"{name} {tuple(state[name].shape)}" for name in others]
        raise ConfigError(
            f"reference.weights must be a checkpoint of the model, but {len(others)} weights of "
            f"{path} have other shapes ({some(shapes)}). Give one of the same model, image "
            "size and channels, or 'train' to train the reference on the data."
        )


def _classifier(model: nn.Module) -> tuple[str, ...]:
    """The beginnings of the names of its classifier's weights."""
    found: Any = model.get_classifier()  # type: ignore[operator]
    heads = found if isinstance(found, tuple) else (found,)
    return tuple(f"{name}." for name, module in model.named_modules() if module in heads)
