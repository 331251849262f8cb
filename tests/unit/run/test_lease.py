"""One command at a time uses a run's copy."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier

import pytest

from donna_ray.errors import RunLockedError
from donna_ray.run import lease as module
from donna_ray.run.lease import LEASE, Lease
from donna_ray.run.manifest import check_is_seen
from donna_ray.run.mirror import Mirror
from donna_ray.run.ownership import MARKER
from donna_ray.storage.files import Storage


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}/run"


def age(url: str, seconds: float) -> None:
    """As if the holder had given no sign for so long."""
    holder = json.loads(Storage(url).read(LEASE) or b"")
    holder["beat"] -= seconds
    Storage(url).write(LEASE, json.dumps(holder).encode())


def test_second_command_is_refused_and_told_by_whom(url: str) -> None:
    with Lease(Path("/a"), url):
        with pytest.raises(RunLockedError) as caught, Lease(Path("/b"), url):
            pass
        for words in (url, str(os.getpid()), os.uname().nodename, "300 s", f"remove {url}/{LEASE}"):
            assert words in str(caught.value)
        age(url, 290)
        with pytest.raises(RunLockedError, match=r"29\d s ago"), Lease(Path("/b"), url):
            pass
    assert Storage(url).listing() == {}
    with Lease(Path("/b"), url):
        pass


def test_command_that_gives_no_sign_is_followed_and_then_refused(url: str) -> None:
    with Lease(Path("/a"), url) as first:
        first.check()
        age(url, 301)
        with Lease(Path("/b"), url) as second:
            with pytest.raises(RunLockedError, match="in use by"):
                first.check()
            first.__exit__()
            second.check()
            assert LEASE in Storage(url).listing()


def test_command_of_the_same_folder_is_followed_at_once(url: str) -> None:
    with Lease(Path("/a"), url), Lease(Path("/a"), url) as second:  # its lock tells that it ended
        second.check()


def test_sign_is_given_again_and_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_S", 0.01)
    with Lease(Path("/a"), url):
        age(url, 301)
        while json.loads(Storage(url).read(LEASE) or b"")["beat"] < time.time() - 100:
            time.sleep(0.01)


def test_of_commands_that_begin_at_the_same_moment_one_holds_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLE_S", 0.3)
    write, all_have_looked = Lease._renew, Barrier(4)

    def write_as_the_others_do(lease: Lease) -> None:
        all_have_looked.wait(5)
        write(lease)

    monkeypatch.setattr(Lease, "_renew", write_as_the_others_do)

    def enter(name: str) -> bool:
        try:
            held.enter_context(Lease(Path(name), url))
        except RunLockedError:
            return False
        return True

    with ExitStack() as held, ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(enter, ("/a", "/b", "/c", "/d"))) == 1
    assert Storage(url).listing() == {}


def test_command_that_was_followed_is_over_also_when_the_other_has_ended(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BEAT_S", 0.01)
    with Lease(Path("/a"), url) as first:
        age(url, 301)
        other = json.loads(Storage(url).read(LEASE) or b"") | {"id": "other"}
        Storage(url).write(LEASE, json.dumps(other).encode())
        first._thread.join(5)  # of the beat, which sees it
        Storage(url).remove(LEASE)
        with pytest.raises(RunLockedError, match="in use by"):
            first.check()
    assert Storage(url).listing() == {}


def test_lease_that_is_gone_is_taken_again_unless_the_copy_is_another(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BEAT_S", 0.01)
    with Lease(tmp_path, url) as lease:
        Storage(url).remove(LEASE)
        while LEASE not in Storage(url).listing():
            time.sleep(0.01)
        lease.check()
    with Lease(tmp_path, url) as lease:
        Storage(url).write("mirror.json", b'{"layout": 2, "version": "of another", "files": {}}')
        Storage(url).remove(LEASE)
        lease._thread.join(5)
        with pytest.raises(RunLockedError, match=f"has written {url} since {tmp_path}"):
            lease.check()
    assert LEASE not in Storage(url).listing()


def test_lease_that_is_gone_is_no_loss_before_the_copy_is_fetched(url: str, tmp_path: Path) -> None:
    Storage(url).write("mirror.json", b'{"layout": 2, "version": "of yesterday", "files": {}}')
    with Lease(tmp_path, url) as lease:
        Storage(url).remove(LEASE)
        lease.check()


@pytest.mark.parametrize("is_read_first", [True, False])
def test_push_that_ends_while_the_copy_is_looked_at_is_this_commands(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_read_first: bool
) -> None:
    def push() -> None:
        (tmp_path / "a").write_text(str(time.time()))
        Mirror(tmp_path, url).push()

    def read_slowly(storage: Storage, name: str) -> bytes | None:
        data = read(storage, name)
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "read", read)
            push()
        return data if is_read_first else read(storage, name)

    push()
    read = Storage.read
    monkeypatch.setattr(Storage, "read", read_slowly)
    check_is_seen(tmp_path, Storage(url))


def test_folder_of_another_disk_is_not_this_one(url: str, tmp_path: Path) -> None:
    """Containers of one name have like paths; each folder has a mark of its own."""
    (tmp_path / MARKER).write_text('{"made": "yesterday"}')
    with Lease(tmp_path, url):
        (tmp_path / MARKER).write_text('{"made": "today"}')
        with pytest.raises(RunLockedError), Lease(tmp_path, url):
            pass


def test_a_job_waits_for_one_that_was_killed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A RayJob is tried again soon after its head's pod is gone, and but a few times."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "_OVER_S", 0.2)
    monkeypatch.setattr(module, "_BEAT_S", 9.0)
    with Lease(Path("/a"), url), Lease(Path("/b"), url) as second:
        second.check()


def test_a_job_does_not_wait_for_one_that_lives(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "_BEAT_S", 0.05)
    with Lease(Path("/a"), url), pytest.raises(RunLockedError), Lease(Path("/b"), url):
        pass
