"""`donna` in this process, which has imported all that a command needs."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from typing import Any

import pytest

from donna_ray.cli.main import main


def donna_here(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command to the end: its exit status, and what it printed."""
    out, errors, code = io.StringIO(), io.StringIO(), None
    command: list[Any] = ["donna", *words]
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            patch.setattr(sys, "argv", command)
            main()
    except SystemExit as end:
        code = end.code
    return subprocess.CompletedProcess(command, int(code or 0), out.getvalue(), errors.getvalue())
