"""Code of others: where it calls `sys.exit`, a command would end as if all were done."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ExitedError", "exits_are_errors"]

_RAY = "ray"
_COMMAND_LINES = ("click", "typer", "rich")  # which end a command so; rich at a closed pipe


class ExitedError(RuntimeError):
    """Code of others called `sys.exit`."""


@contextmanager
def exits_are_errors(*, of_command: bool = False) -> Iterator[None]:
    """In which an exit by code of others is an error; Ray's, at a SIGTERM, is none.

    Args:
        of_command: libraries for command lines may exit, too.

    Raises:
        ExitedError: it called `sys.exit`, `exit` or the like.
    """
    try:
        yield
    except SystemExit as end:
        modules = _modules(end)
        if _RAY in modules or (of_command and modules[-1] in _COMMAND_LINES):
            raise
        frames = traceback.extract_tb(end.__traceback__)
        place = next(each for each in reversed(frames) if "sitebuiltins" not in each.filename)
        raise ExitedError(
            f"{place.filename}, line {place.lineno}, ends the process by sys.exit({end.code!r}): "
            'let it do so below `if __name__ == "__main__":` alone'
        ) from end


def _modules(error: BaseException) -> list[str]:
    """The packages in which it was raised, the innermost last."""
    frames = traceback.walk_tb(error.__traceback__)
    return [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames]
