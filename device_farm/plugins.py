"""What installed packages add under a name, by their entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from device_farm.foreign import exits_are_errors

__all__ = ["plugin", "plugin_names"]


def plugin_names(group: str) -> list[str]:
    """All names that installed packages register in a group."""
    return sorted({point.name for point in entry_points(group=group)})


def plugin(group: str, name: str, is_taken: bool = False) -> Any:
    """What an installed package registers in a group under a name; None where none does.

    Args:
        is_taken: The name is that of something built in, which no package may have.

    Raises:
        ValueError: Several packages do, or what it names cannot be loaded.
    """
    points = {point.value: point for point in entry_points(group=group, name=name)}
    if not points:
        return None
    if len(points) + is_taken > 1:
        owners = [f"{_owner(each)} ({value})" for value, each in points.items()]
        both = " and ".join([*["this package"] * is_taken, *sorted(owners)])
        raise ValueError(
            f"the name {name!r} must be registered once in {group}, but is by {both}: uninstall "
            "one of them, or rename its entry point"
        )
    [point] = points.values()
    try:
        with exits_are_errors():
            return point.load()
    except Exception as error:
        raise ValueError(
            f"{name!r} must be registered in {group} by what can be imported, but {point.value} of "
            f"{_owner(point)} raised {type(error).__name__}: {error}: mend the package, or install "
            "it again"
        ) from error


def _owner(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else "an unknown package"
