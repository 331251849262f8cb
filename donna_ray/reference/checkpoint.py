"""A model's weights from a checkpoint file: all of them fit, or it is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import load_checkpoint, load_state_dict
from torch import Tensor, nn

from donna_ray.errors import ConfigError

__all__ = ["load_weights", "other_classes"]

_SHOWN = 3  # names in a message
_NUMPY = (".npz", ".npy")  # which timm maps to the model's names itself
_COUNTERS = ".num_batches_tracked"

State = Mapping[str, Tensor]


def load_weights(model: nn.Module, path: Path, *, new_head: bool) -> None:
    """Load a checkpoint into a model, by timm's loader, which runs no code from it.

    A prefix that the model's names have in it (`model.` in a Lightning checkpoint) is taken off.

    Args:
        model: of timm or of this package.
        path: of the file.
        new_head: a classifier for another number of classes is left as it is in the model.

    Raises:
        ConfigError: the weights are not the model's, or are for another number of classes.
    """
    if path.suffix.lower() in _NUMPY:
        load_checkpoint(model, str(path))
        return
    state = _without_prefix(load_state_dict(str(path)), model, path)
    known = _named(model)
    _check_names(state, known, path)
    others = [name for name in known if state[name].shape != known[name].shape]
    head = [name for name in others if name.startswith(_classifier(model))]
    if others and others == head:
        if not new_head:
            of_file = state[head[0]].shape[0]
            raise ConfigError(other_classes(f"The checkpoint {path}", of_file, model.num_classes))
        state = {name: value for name, value in state.items() if name not in head}
    elif others:
        shapes = (f"{name} {tuple(state[name].shape)}" for name in others)
        raise ConfigError(
            f"reference.weights must be a checkpoint of the model, but {len(others)} weights of "
            f"{path} have other shapes ({_some(list(shapes))}). Give one of the same model, image "
            "size and channels, or 'train' to train the reference on the data."
        )
    model.load_state_dict(model.state_dict() | dict(state))


def other_classes(whose: str, known: int, classes: Any) -> str:
    """Why weights for `known` classes are refused."""
    return (
        f"{whose} knows {known} classes, but the data have {classes}, so its classifier would be "
        "random. Set reference.training (epochs, learning_rate, …) to train it further on the "
        "data, or give a checkpoint file of the same number of classes."
    )


def _without_prefix(state: State, model: nn.Module, path: Path) -> State:
    """The weights under the one prefix below which all names of the model are, if there is one."""
    names = list(_named(model))
    first = names[0]
    prefixes = [key.removesuffix(first) for key in state if key.endswith(first)]
    whole = [each for each in prefixes if all(each + name in state for name in names)]
    if "" in whole or not whole:
        return state
    if len(whole) > 1:
        raise ConfigError(
            f"reference.weights must have the model once, but {path} has it {len(whole)} times "
            f"({_some(whole)}). Save one of them alone."
        )
    begin = whole[0]
    return {key.removeprefix(begin): state[key] for key in state if key.startswith(begin)}


def _named(model: nn.Module) -> State:
    """The weights that a checkpoint must have; old ones do not count the batches of BatchNorm."""
    state = model.state_dict().items()
    return {name: value for name, value in state if not name.endswith(_COUNTERS)}


def _check_names(state: State, known: State, path: Path) -> None:
    missing = [name for name in known if name not in state]
    foreign = [name for name in state if name not in known and not name.endswith(_COUNTERS)]
    if missing or foreign:
        raise ConfigError(
            f"reference.weights must be a checkpoint of the model, but {path} lacks {len(missing)} "
            f"of its {len(known)} weights ({_some(missing)}) and has {len(foreign)} others "
            f"({_some(foreign)}). Give a checkpoint of this model, or 'train' to train it on the "
            "data."
        )


def _classifier(model: nn.Module) -> tuple[str, ...]:
    """The beginnings of the names of its classifier's weights."""
    found: Any = model.get_classifier()  # type: ignore[operator]
    heads = found if isinstance(found, tuple) else (found,)
    return tuple(f"{name}." for name, module in model.named_modules() if module in heads)


def _some(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"
