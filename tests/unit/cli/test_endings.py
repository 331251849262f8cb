"""However bad the surroundings, a command ends with one line: what, where, what to do."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from device_farm.ending import explained, one_line
from donna_ray import pipeline
from donna_ray.cli import start as cli
from donna_ray.config import RunConfig
from donna_ray.run.progress import Progress
from donna_ray.run.run import Run
from donna_ray.space.costs import CostCache
from donna_ray.storage.artifacts import write_atomic
from tests.command_line import donna_here

RUN_LIKE = (
    ["demo", "--out", "OUT"],
    ["run", "CONFIG", "--out", "OUT"],
    ["reference", "build", "CONFIG", "--out", "OUT"],
    ["plan", "CONFIG", "--out", "OUT"],
    ["compress", "m", "--data=digits", "--latency-limit=1x", "--weights=train", "--out", "OUT"],
)
READ_CONFIG = (*RUN_LIKE[1:4], ["config", "check", "CONFIG"], ["space", "show", "CONFIG"])
READ_RUN = (
    ["run", "RUN"],
    ["library", "ls", "RUN"],
    ["library", "gc", "RUN"],
    ["predictor", "suggest", "RUN"],
    ["export", "RUN", "abc", "--to", "OUT"],
    ["finetune", "RUN", "abc"],
    ["space", "show", "RUN"],
)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_line(ended: subprocess.CompletedProcess[str], word: str, status: int = 2) -> None:
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("donna: "))
    assert ended.stderr.endswith(f"{line}\n")
    assert word in line, line


def filled(words: list[str], **places: Path) -> list[str]:
    return [str(places.get(word, word)) for word in words]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "search.yaml"
    path.write_text("space: {preset: micro}\n")
    return path


@pytest.mark.parametrize("words", RUN_LIKE)
@pytest.mark.parametrize("place", ["file", "file/run", "/dev/null/run", "/proc/donna-run"])
def test_place_where_no_folder_can_be(
    tmp_path: Path,
    sound: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    place: str,
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(pipeline, "check", lambda *_: None)
    out = tmp_path / place
    ended = donna_here(*filled(words, OUT=out, CONFIG=sound))
    check_line(ended, str(out), ended.returncode)
    assert ended.returncode in (1, 2)
    assert (tmp_path / "file").read_text() == "mine"


BAD_YAML = {
    "two keys": (b"space: {preset: micro}\nseed: 1\nseed: 2\n", "line 3, column 1: the key 'seed'"),
    "deep two keys": (b"space:\n  preset: micro\n  preset: small\n", "line 3"),
    "no YAML": (b"space: [\n", "line 2"),
    "NUL": (b"space: \x00\n", "must be YAML"),
    "Latin-1": (b"name: fl\xfcche\n", "must be YAML"),
    "a list": (b"- 1\n", "mapping"),
    "empty": (b"", "mapping"),
}


@pytest.mark.parametrize("kind", BAD_YAML)
@pytest.mark.parametrize("words", READ_CONFIG)
def test_damaged_configuration(tmp_path: Path, words: list[str], kind: str) -> None:
    text, word = BAD_YAML[kind]
    path = tmp_path / "search.yaml"
    path.write_bytes(text)
    check_line(donna_here(*filled(words, CONFIG=path, OUT=tmp_path / "out")), word)


@pytest.mark.parametrize("words", READ_RUN)
@pytest.mark.parametrize("what", ["missing", "a folder", "two keys"])
def test_damaged_run_folder(tmp_path: Path, words: list[str], what: str) -> None:
    run = tmp_path / "run"
    if what != "missing":
        (run / "config.yaml").mkdir(parents=True)
    if what == "two keys":
        (run / "config.yaml").rmdir()
        (run / "config.yaml").write_text("seed: 1\nseed: 2\n")
    check_line(donna_here(*filled(words, RUN=run, OUT=tmp_path / "out")), str(run))


def test_full_disk(tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "check", lambda *_: None)
    with full_disk():
        ended = donna_here("run", str(sound), "--out", str(tmp_path / "run"))
        check_line(ended, str(tmp_path / "run"), 1)
        with pytest.raises(OSError, match="weights") as caught:
            write_atomic(tmp_path / "weights", b"1")
    assert "Free some space" in explained(caught.value)
    assert not (tmp_path / "weights").exists()


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME")
    check_line(donna_here("demo", "--set", "cluster.storage=memory://x"), "Set HOME", 1)


@pytest.mark.parametrize("cache", ["file", "damaged"])
def test_cache_that_cannot_be_used(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    home = tmp_path / "cache"
    if cache == "file":
        home.write_text("mine")
    else:
        (home / "donna-ray").mkdir(parents=True)
        (home / "donna-ray" / "blocks.sqlite").write_bytes(b"no database" * 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    check_line(donna_here("config", "check", str(sound)), "XDG_CACHE_HOME", 1)


def test_cache_that_breaks_later_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = CostCache()
    cache._database.execute("drop table costs")
    for broken in (lambda: cache.get("a"), lambda: cache.put("a", {"params": 1, "macs": 1})):
        with pytest.raises(Exception, match=r"blocks\.sqlite is not"):
            broken()


ERRORS: list[tuple[Exception, str]] = [
    (PermissionError(13, "", "/a"), "/a: Permission denied. Let it be written"),
    (OSError(30, "", "/a"), "/a: Read-only file system. Let it be written"),
    (OSError(28, ""), "No space left on device. Free some space"),
    (OSError(36, "", "/a"), "Give a shorter"),
    (OSError("of a library"), "OSError: of a library. --debug"),
    (MemoryError(), "MemoryError. Lower the batch sizes"),
    (RuntimeError("[enforce fail] can't allocate memory: you tried"), "Lower the batch sizes"),
    (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "PYTHONUTF8=1"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "as UTF-8"),
    (json.JSONDecodeError("Expecting value", "", 0), "JSONDecodeError: Expecting value"),
    (sqlite3.DatabaseError("file is not a database"), "DatabaseError: file is not a database"),
    (ValueError("a\n  wall\n" + "of text " * 1000), "ValueError: a wall of text"),
    (RuntimeError('ray::f()\n  File "x.py", line 3, in f\nKeyError: 7'), "RuntimeError: KeyError"),
]


@pytest.mark.parametrize(("error", "words"), ERRORS)
def test_any_error_is_one_line_and_debug_shows_where(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def raising(name: str) -> Path:
        raise error

    monkeypatch.setattr(cli, "shipped_config", raising)
    check_line(donna_here("config", "show"), words, 1)
    ended = donna_here("config", "show")
    assert len(ended.stderr) < 900
    for command in (["--debug", "config", "show"], ["config", "show", "--debug"]):
        told = donna_here(*command).stderr
        assert "Traceback (most recent call last)" in told
        assert "in raising" in told
        assert told.endswith(ended.stderr)


def test_code_that_exits_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "shipped_config", lambda name: sys.exit(0))
    check_line(donna_here("config", "show"), "ends the process by sys.exit(0)", 1)


def test_help_for_one_who_has_seen_enough_ends_in_silence() -> None:
    """A pipe that is closed before anything is written, as `donna -h | head -0` may have it."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "donna_ray", "-h"]
    with os.fdopen(write, "wb") as out:
        ended = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_notes_are_the_remedy() -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.add_note("Remove /a.")
    assert explained(error) == "OperationalError: disk I/O error. Remove /a."


def test_one_line_of_a_traceback_is_what_was_raised() -> None:
    text = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\nKeyError: 1\n'
    assert one_line(text) == "KeyError: 1"
    assert one_line("two\n lines.") == "two lines"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_run_says_what_is_kept(
    config: RunConfig,
    tmp_path: Path,
    sound: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr(pipeline, "run_steps", _stopped_in_a_step(number))
    root = tmp_path / "run"
    ended = donna_here("run", str(sound), "--out", str(root))
    check_line(ended, f"stopped. What is finished is kept in {root}", 128 + number)
    assert "the same command" in ended.stderr
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_any_stopped_command_says_so(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def stopped(name: str) -> Path:
        os.kill(os.getpid(), number)
        return Path(name)

    monkeypatch.setattr(cli, "shipped_config", stopped)
    check_line(donna_here("config", "show"), "stopped. Nothing is half done", 128 + number)


@pytest.mark.parametrize("pause", [0.0, 3.0])
def test_second_signal_still_says_what_is_kept(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """Within seconds it changes nothing; later it ends the ending, and the words are the same."""
    ended: list[str] = []
    now = time.monotonic

    def close(self: object) -> None:
        monkeypatch.setattr("device_farm.stopping.time.monotonic", lambda: now() + pause)
        os.kill(os.getpid(), signal.SIGINT)
        ended.append("whole")

    monkeypatch.setattr("donna_ray.run.session.RaySession.close", close)
    monkeypatch.setattr(pipeline, "run_steps", _stopped_in_a_step(signal.SIGTERM))
    root = tmp_path / "run"
    done = donna_here("run", str(sound), "--out", str(root))
    status = 128 + (signal.SIGINT if pause else signal.SIGTERM)
    check_line(done, f"stopped. What is finished is kept in {root}", status)
    assert ended == ([] if pause else ["whole"])


@pytest.mark.parametrize("kind", [RuntimeError, SystemError])
def test_error_while_a_stopped_run_ends_is_no_failure(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """A SystemError is how compiled code says that the signal came while it waited."""

    def close(self: object) -> None:
        raise kind("the cluster is gone")

    monkeypatch.setattr("donna_ray.run.session.RaySession.close", close)
    monkeypatch.setattr(pipeline, "run_steps", _stopped_in_a_step(signal.SIGTERM))
    ended = donna_here("run", str(sound), "--out", str(tmp_path / "run"))
    check_line(ended, "What is finished is kept in", 143)
    told = "While it ended: RuntimeError: the cluster is gone" in ended.stderr
    assert told == ("gone" in ended.stderr) == (kind is RuntimeError)


def _stopped_in_a_step(number: signal.Signals) -> Callable[..., None]:
    def run_steps(run: Run, *_: object, **__: object) -> None:
        run.step("reference", {"a": 1}, lambda folder: ({}, []))
        os.kill(os.getpid(), number)

    return run_steps


def test_text_from_outside_is_no_markup(tmp_path: Path, sound: Path, monkeypatch: Any) -> None:
    strange = "a[/x] [red]b :smile:"

    def run_steps(run: Run, *_: object, **__: object) -> None:
        run.say(f"{strange} 1")
        result = {"doubts": [f"{strange} 2"]}
        run.step(f"{strange} 3", {}, lambda folder: (result, []))
        run.step(f"{strange} 3", {}, lambda folder: (result, []))
        Progress(run.console, run.root, f"{strange} 4", 9, strange)._line(5, strange)

    monkeypatch.setattr(pipeline, "run_steps", run_steps)
    ended = donna_here("run", str(sound), "--out", str(tmp_path / "[/x]"))
    assert ended.returncode == 0, ended.stderr
    for number in range(1, 5):
        assert f"{strange} {number}" in ended.stderr
    assert f"{tmp_path}/[/x]" in ended.stderr


def test_streams_that_were_closed_before_are_as_nobody_who_listens(tmp_path: Path) -> None:
    program = f"{shlex.quote(sys.executable)} -m donna_ray"
    for words, status in (("config schema >&-", 0), ("config schema <&- >&- 2>&-", 0)):
        assert subprocess.run(["sh", "-c", f"{program} {words}"], check=False).returncode == status
    init = f"{program} init {shlex.quote(str(tmp_path / 'x.yaml'))} <&-"
    ended = subprocess.run(["sh", "-c", init], stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert "has nobody to ask here" in ended.stderr


@pytest.mark.parametrize(
    ("out", "words", "said"),
    [
        ("/dev/full", "show", "standard output: No space left"),
        ("/dev/full", "schema", "No space left"),  # more than a buffer holds
        ("closed", "schema", ""),
    ],
)
def test_output_that_cannot_be_printed(out: str, words: str, said: str) -> None:
    command = [sys.executable, "-m", "donna_ray", "config", words]
    buffered = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed, open("/dev/full", "wb") as full:
        place = closed if out == "closed" else full
        ended = subprocess.run(
            command, env=buffered, stdout=place, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == bool(said)
    assert said in ended.stderr


def test_debug_is_an_option_of_the_whole() -> None:
    assert "--debug" in donna_here("--help").stdout
