"""Stores whose client connects when it is made, and whose connection may end."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pytest

from donna_ray.errors import ConfigError, DonnaError
from donna_ray.storage.files import Storage
from tests.unit.storage.refusing_files import RefusingFiles


class Sessions(RefusingFiles):
    """A client as FTP's: it holds one session, and has one kind of error for all refusals."""

    protocol = "sessions"
    now: ClassVar[int] = 0
    refuses: ClassVar[list[Exception]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.refuses:
            raise self.refuses.pop()
        self.session = self.now

    def _ask(self) -> None:
        if self.session != self.now:
            raise EOFError

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        self._ask()
        return super().ls(path, detail, **options)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self._ask()
        super().pipe_file(path, value, mode, **options)

    def _rm(self, path: str) -> None:
        self._ask()
        if self._strip_protocol(path) not in self.files:
            raise RuntimeError("550 Requested action not taken")
        super()._rm(path)


fsspec.register_implementation("sessions", Sessions, clobber=True)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("donna_ray.storage.files.PATIENCE", 0.5)
    yield
    Sessions.reset()
    Sessions.refuses.clear()
    Sessions.clear_instance_cache()


@pytest.mark.parametrize("own_client", [False, True])
def test_session_that_ended_is_opened_again(own_client: bool) -> None:
    store = Storage("sessions://folder", own_client=own_client)
    assert (store._filesystem is Storage("sessions://folder")._filesystem) is not own_client
    store.write("a", b"1")
    for asked in (lambda: store.write("b", b"2"), lambda: store.remove("b"), store.listing):
        Sessions.now += 1
        asked()
    assert set(store.listing()) == {"a"}
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


@pytest.mark.parametrize("asked", ["read", "write_derived"])
def test_store_that_is_unpickled_connects_as_it_is_used(asked: str) -> None:
    """As a task's argument is, where no store's error can be told; the client is shared there."""
    store = Storage("sessions://folder")
    store.write("a", b"1")
    data = pickle.dumps(store)
    Sessions.clear_instance_cache()
    Sessions.refuses.extend([ConnectionRefusedError("no server")] * 99)
    one, other = pickle.loads(data), pickle.loads(data)
    with pytest.raises(DonnaError, match=r"must let a be read, but refused for .*no server"):
        one.read("a")
    Sessions.refuses.clear()
    if asked == "write_derived":
        other.write_derived("b", b"2")
        assert store.read("b") == b"2"
    else:
        assert other.read("a") == b"1"
        assert other._filesystem is Storage("sessions://folder")._filesystem


def test_file_that_is_not_there_is_removed_whatever_the_client_says() -> None:
    store = Storage("sessions://folder")
    store.write("a", b"1")
    store.remove("b")
    assert set(store.listing()) == {"a"}


def test_refusal_of_a_file_that_is_there_is_no_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage("sessions://folder")
    store.write("a", b"1")

    def refuse(*_: Any) -> None:
        raise RuntimeError("550 Requested action not taken")

    monkeypatch.setattr(Sessions, "_rm", refuse)
    with pytest.raises(DonnaError, match=r"removed, but refused for .*550"):
        store.remove("a")


def test_outage_while_a_store_is_opened_is_waited_for() -> None:
    Sessions.refuses.append(ConnectionResetError("by peer"))
    Storage("sessions://folder").write("a", b"1")


def test_store_that_cannot_be_opened_is_named() -> None:
    Sessions.refuses.extend([ConnectionRefusedError("no server")] * 99)
    with pytest.raises(
        DonnaError, match=r"sessions://folder must let its folder be opened.*no serv"
    ):
        Storage("sessions://folder")


def test_url_that_its_client_does_not_take_is_told_at_once() -> None:
    Sessions.refuses.append(ValueError("Must provide an account"))
    with pytest.raises(ConfigError, match=r"sessions://folder.*an account\)\. Correct the URL"):
        Storage("sessions://folder")
    with pytest.raises(ConfigError, match=r"nothing://folder.*Install its package"):
        Storage("nothing://folder")
