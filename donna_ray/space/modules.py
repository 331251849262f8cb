"""Loads the block families of a user's Python files and of installed packages."""

import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from device_farm.foreign import exits_are_errors
from device_farm.plugins import plugin, plugin_names
from donna_ray.errors import ConfigError
from donna_ray.space.block import block_families
from donna_ray.storage.artifacts import digest

__all__ = ["register_modules"]

_GROUP = "donna_ray.blocks"


def register_modules(modules: Sequence[str]) -> None:
    """Import what registers block families, once in a process.

    Args:
        modules: paths of Python files (ending in `.py`), or names of entry points in the group
            `donna_ray.blocks`.

    Raises:
        ConfigError: one does not exist, raises, or registers no family.
    """
    for module in modules:
        _register(module)


@cache
def _register(module: str) -> None:
    before = block_families()
    try:
        with exits_are_errors():
            _load_file(Path(module)) if module.endswith(".py") else _load_entry_point(module)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"space.modules must name modules that can be imported, but {module} raised "
            f"{type(error).__name__}: {error}. Mend it."
        ) from error
    if block_families() == before:
        raise ConfigError(
            f"space.modules must name modules that register a block family, but {module} "
            "registers none. Decorate a build function with donna_ray.register_block."
        )


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(
            f"space.modules must name files that exist, but {path} does not. Correct the path."
        )
    name = f"donna_ray_blocks_{digest(str(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"space.modules must name Python files, but {path} is none.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that classes in it can be pickled and inspected
    spec.loader.exec_module(module)


def _load_entry_point(name: str) -> None:
    if name not in (known := plugin_names(_GROUP)):
        raise ConfigError(
            f"space.modules must name Python files (NAME.py) or entry points of the group {_GROUP} "
            f"({', '.join(known) or 'none'} installed), but has {name!r}. Correct the name or "
            "install the package."
        )
    try:
        plugin(_GROUP, name)
    except ValueError as error:
        raise ConfigError(f"space.modules: {error}.") from error
