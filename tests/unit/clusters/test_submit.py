"""`clusters/submit.sh` with stand-ins for `donna` and `ray`: its exit status and words."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SUBMIT = Path(__file__).parents[3] / "clusters" / "submit.sh"
CLI = "2026-01-01 10:00:00,000\tWARN cli.py:85 -- Job 'raysubmit_1' was stopped"


def submitted(
    folder: Path, log: str, rc: int, *words: str, checked: str = 'echo "donna $*"'
) -> subprocess.CompletedProcess[str]:
    """Runs the script where the job's CLI prints a log and exits so; `donna` prints its words."""
    (folder / "log").write_text(log)
    for name, body in (("donna", checked), ("ray", f"cat {folder}/log; exit {rc}")):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    (folder / "search.yaml").touch()
    return subprocess.run(
        ["bash", str(SUBMIT), "search.yaml", *words],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("log", "rc", "status"),
    [
        ("working\nJob 'raysubmit_1' succeeded\n------\n\n", 0, 0),
        (f"working\n{CLI}\n", 0, 3),
        ("\x1b[33mJob 'raysubmit_1' was stopped\x1b[39m\n", 0, 3),
        (f"no line feed{CLI}\n\n", 0, 3),
        (f"Job 7 was stopped\n{CLI}\nJob 'raysubmit_1' succeeded\n------\n\n", 0, 0),
        (f"{CLI}\nJob 'raysubmit_1' failed\nStatus message: killed\n", 1, 1),
    ],
)
def test_exits_as_the_cli_says_not_as_a_log_reads(
    tmp_path: Path, log: str, rc: int, status: int
) -> None:
    done = submitted(tmp_path, log, rc)
    assert done.returncode == status
    assert log in done.stdout


def test_settings_are_checked_here_and_none_need_be_there(tmp_path: Path) -> None:
    lines = submitted(tmp_path, "", 0).stdout.splitlines()
    assert lines == ["donna config check search.yaml"]
    words = ("--set", "cluster.workers=2", "--fresh", "--set=seed=1")
    lines = submitted(tmp_path, "", 0, *words).stdout.splitlines()
    assert lines == ["donna config check search.yaml --set=cluster.workers=2 --set=seed=1"]


def test_the_check_knows_that_the_run_is_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address in ("http://127.0.0.1:8265", "https://head:8265"):
        assert submitted(tmp_path, "", 0, checked='echo "$RAY_ADDRESS"').stdout.strip() == address
        monkeypatch.setenv("RAY_ADDRESS", "https://head:8265")


def test_what_does_not_pass_the_check_is_not_submitted(tmp_path: Path) -> None:
    done = submitted(tmp_path, "the job's log", 0, checked="exit 2")
    assert (done.returncode, done.stdout) == (2, "")


def test_an_empty_array_is_no_error_in_bash_3() -> None:
    """There `"${x[@]}"` of an empty array ends a script under `set -u`."""
    text = SUBMIT.read_text()
    empty = re.findall(r"^(\w+)=\(\)", text, re.M)
    assert empty
    text = re.sub(r'\$\{(\w+)\[@\]\+"\$\{\1\[@\]\}"\}', "", text)
    assert not [name for name in empty if f"{name}[@]" in text]
