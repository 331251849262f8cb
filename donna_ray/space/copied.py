"""Whether the code of users' families can be copied into one file, as an export does: told early.

A changed file is another family, whose blocks are distilled again.
"""

import builtins
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch

from device_farm.foreign import exits_are_errors
from donna_ray.complexity import probe, shadow
from donna_ray.errors import DonnaError
from donna_ray.space.block import BlockFamily, BlockSpec, StageShape, block_family
from donna_ray.space.bundle import Bundle
from donna_ray.space.check import covering
from donna_ray.space.space import SearchSpace

__all__ = ["COPIED", "doubt_code"]

COPIED = (
    "A block family must need no more than functions and classes at the top level of its file, "
    "which nothing else changes"
)
_NAME = "donna_ray_copied_family"
_PACKAGE = __name__.partition(".")[0]


def doubt_code(space: SearchSpace, say: Callable[[str], None]) -> None:
    """Tell of each user's family whose code alone does not make its blocks.

    Few blocks that show every value of every option are built of a copy of the code on the meta
    device, with the parameters, the cost and the output of the family's own. (Not of a family that
    changes the reference's stage: it may know the classes of that, which a copy has anew.)

    Args:
        space: each block of it can be built (``check_space``).
        say: called with a line for a family.
    """
    places = {spec: stage.shape for stage in space.stages for spec in stage.choices}
    for name in dict.fromkeys(spec.family for spec in places):
        family = block_family(name)
        if family.builtin:
            continue
        own = [spec for spec in places if spec.family == name]
        specs = [] if family.of_stage else covering(own)
        if fault := _fault(family, {spec: places[spec] for spec in specs}):
            say(
                f"warning: {COPIED}, to be in the Python file of an export, but {name!r} needs "
                f"more: {fault.rstrip('.')}. Its networks will be exported without that file. "
                "Change the family now: later, its blocks would be distilled again."
            )


def _fault(family: BlockFamily, places: dict[BlockSpec, StageShape]) -> str:
    """What a copy of the code does not do; empty where it makes the same blocks."""
    try:
        with exits_are_errors(), _copied(family.build) as build:
            copy = replace(family, build=build)
            for spec, shape in places.items():
                if _made(spec, shape, copy) != _made(spec, shape, family):
                    return f"a copy of it makes another {spec}"
    except DonnaError as error:
        return str(error)
    except Exception as error:  # of whatever code
        return f"a copy of it raised {type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _made(spec: BlockSpec, shape: StageShape, family: BlockFamily) -> Any:
    """Shapes of a block's state, its cost and its output."""
    if shape.own is not None:
        shape = replace(shape, own=shadow(shape.own))
    with torch.device("meta"):
        block = family.block(spec, shape).eval().requires_grad_(False)
    state = {name: value.shape for name, value in block.state_dict().items()}
    return state, probe(block, shape.input)


@contextmanager
def _copied(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A function of a file of its own, which cannot import this package."""
    bundle = Bundle()
    name = bundle.add(function)
    lines = ["from __future__ import annotations", *sorted(bundle.imports), *bundle.definitions]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{_NAME}.py"
        path.write_text("\n\n\n".join(lines), encoding="utf-8")
        module = ModuleType(_NAME)
        module.__file__ = str(path)
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import_others}
        sys.modules[_NAME] = module  # so that its classes can be inspected
        try:
            exec(compile(path.read_bytes(), path, "exec"), vars(module))
            yield getattr(module, name)
        finally:
            del sys.modules[_NAME]


def _import_others(name: str, *where: Any) -> Any:
    if name.partition(".")[0] == _PACKAGE:
        raise ImportError(f"{name} is imported within a function: import it at the top")
    return __import__(name, *where)
