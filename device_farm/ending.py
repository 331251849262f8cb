"""How a command ends: with one line that says what happened, where, and what to do."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from device_farm.foreign import exits_are_errors
from device_farm.stopping import Stopped, stopped_by

__all__ = ["Stopped", "explained", "one_line", "run_command"]

DEBUG = "--debug"
VERBOSE, QUIET = ("-v", "--verbose"), ("-q", "--quiet")
_FRAME = re.compile(r'\s*File ".+", line \d+')
_LONGEST = 600  # characters of what a library says
_SPACE = "Free some space there, then give the same command again: what is finished is kept."
_MEMORY = "Lower the batch sizes or the number of workers, or free some memory."
_PLACE = "Let it be written, or give another one (--out for a run, XDG_CACHE_HOME for caches)."
_IN_THE_WAY = "A file is where a folder must be, or the reverse: give another path, or move it."
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _SPACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _PLACE),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), _IN_THE_WAY),
    errno.ENOENT: "Correct the path.",
    errno.ENAMETOOLONG: "Give a shorter name or path.",
    errno.EMFILE: "Allow more open files, such as by `ulimit -n 4096`.",
    errno.ENOMEM: _MEMORY,
}
_KINDS: tuple[tuple[type[Exception], str, str], ...] = (  # a word of the text; what to do
    (MemoryError, "", _MEMORY),
    (RuntimeError, "allocate memory", _MEMORY),  # of torch
    (RuntimeError, "out of memory", _MEMORY),
    (RuntimeError, "home directory", "Set HOME, or XDG_CACHE_HOME."),
    (UnicodeEncodeError, "", "Set PYTHONUTF8=1, or a locale of UTF-8."),
    (UnicodeError, "", "Save the file that was read as UTF-8."),
)


def run_command(
    app: Callable[[list[str]], Any], name: str, statuses: Mapping[type[Exception], int]
) -> NoReturn:
    """Run a command line, and end the process.

    An error is told in one line, and with ``--debug`` after its traceback. ``--verbose`` and
    ``--quiet`` set the level of the root logger for the length of the command.

    Args:
        app: called with the words of the command line.
        name: what the line begins with.
        statuses: exit statuses of the errors whose text is for the user, the first match; of any
            other error it is 1.
    """
    _open_streams()
    whole = (DEBUG, *VERBOSE, *QUIET)  # wherever they stand, of no single command
    words = sorted(sys.argv[1:], key=lambda word: word not in whole)
    signals = (signal.SIGINT, signal.SIGTERM)  # but for what a shell's background jobs ignore
    caught = [each for each in signals if signal.getsignal(each) != signal.SIG_IGN]
    with stopped_by(caught, name):
        try:
            with _logging(words):
                text, status = "", _status_of(app, words)
        except Stopped as stopped:
            text, status = f"stopped. {_what_is_kept(stopped)}", stopped.status
        except BrokenPipeError:  # who reads it has seen enough
            text, status = "", 1
        except Exception as error:
            if DEBUG in words:
                traceback.print_exception(error)
            if (first := _stop_before(error)) is not None:
                kept = _what_is_kept(first)
                if not isinstance(error, SystemError):  # C code's word for the stop itself
                    kept += f" While it ended: {explained(error)}"
                _leave(f"{name}: stopped. {kept}\n", first.status)
            if isinstance(error, OSError) and not error.filename and not _is_printed():
                error.filename = "standard output"
            own = [code for kind, code in statuses.items() if isinstance(error, kind)]
            text, status = (str(error), own[0]) if own else (explained(error), 1)
    _leave(f"{name}: {text}\n" if text else "", status)


def _open_streams() -> None:
    """Those that were closed, as daemons and cron close them: what is printed there is dropped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def explained(error: Exception) -> str:
    """One line for an error that is not of our own: what, where and what to do.

    Its notes are the remedy, if it has some.
    """
    kinds = (how for kind, word, how in _KINDS if isinstance(error, kind) and word in str(error))
    if isinstance(error, OSError) and error.errno is not None:
        paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
        what = f"{' to '.join(paths)}: {os.strerror(error.errno)}".removeprefix(": ")
        remedy = _REMEDIES.get(error.errno)
    else:
        what = f"{type(error).__name__}: {one_line(str(error))}".removesuffix(": ")
        remedy = next(kinds, None)
    return f"{what}. {' '.join(getattr(error, '__notes__', ())) or remedy or _where(error)}"


def one_line(text: str) -> str:
    """What a library says, in one line: of a traceback, what was raised."""
    lines = [line for line in text.splitlines() if line.strip()]
    kept = lines[-1:] if any(map(_FRAME.match, lines)) else lines
    return textwrap.shorten(" ".join(kept), _LONGEST, placeholder=" …").rstrip(".")


@contextmanager
def _logging(words: list[str]) -> Iterator[None]:
    """What is logged, and by it what is told: more, or warnings and errors alone."""
    root = logging.getLogger()
    before = root.level
    if not set(words).isdisjoint(VERBOSE):
        logging.basicConfig()
        root.setLevel(logging.INFO)
    elif not set(words).isdisjoint(QUIET):
        root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _where(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{DEBUG} tells more; it was raised in {place.filename}, line {place.lineno}."


def _stop_before(error: BaseException) -> Stopped | None:
    """What had stopped the command when an error was raised: the error is of its ending alone."""
    earlier = error.__context__
    while earlier is not None and not isinstance(earlier, Stopped):
        earlier = earlier.__context__
    return earlier


def _what_is_kept(stopped: Stopped) -> str:
    """The notes of the first signal: another one may have come while the command ended."""
    while (earlier := _stop_before(stopped)) is not None:
        stopped = earlier
    notes = getattr(stopped, "__notes__", ["Nothing is half done: give the same command again."])
    return " ".join(notes)


def _status_of(app: Callable[[list[str]], Any], words: list[str]) -> Any:
    """Of an app that exits, as those of Typer do; all that it printed is out."""
    status = None
    try:
        with exits_are_errors(of_command=True):
            app(words)
    except SystemExit as end:
        status = end.code
    sys.stdout.flush()
    return status


def _is_printed() -> bool:
    """What was printed is out, or can be; else it is dropped, or the interpreter would complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _leave(line: str, status: Any) -> NoReturn:
    """Exit; what can no longer be printed is dropped."""
    with suppress(OSError):
        sys.stderr.write(line)
        sys.stderr.flush()
    _is_printed()
    sys.exit(status)
