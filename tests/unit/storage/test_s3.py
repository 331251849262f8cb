"""Stores on an S3 server, with s3fs as a user has it."""

from __future__ import annotations

import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry
from s3fs import S3FileSystem

from donna_ray.errors import ConfigError, DonnaError
from donna_ray.storage.files import Storage


def test_what_others_wrote_since_a_listing_is_there(bucket: str) -> None:
    others = fsspec.filesystem("s3", skip_instance_cache=True)
    store = Storage(f"{bucket}/run")
    store.write("old", b"1")
    assert set(store.listing()) == {"old"}
    others.pipe_file(f"{bucket}/run/new", b"2")
    assert store.read("new") == b"2"
    assert set(store.listing()) == {"old", "new"}
    others.rm_file(f"{bucket}/run/old")
    assert store.read("old") is None
    assert set(store.listing()) == {"new"}


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(seconds: float) -> None:
        raise AssertionError(f"a pause of {seconds} s")

    monkeypatch.setattr("tenacity.nap.time.sleep", pause)


def check_refusal(store: Storage, words: str) -> None:
    """Every action is refused."""
    actions = (
        lambda: store.read("a"),
        store.listing,
        lambda: store.write("a", b""),
        lambda: store.remove("a"),
    )
    for action in actions:
        with pytest.raises(DonnaError, match=words):
            action()


@pytest.mark.usefixtures("_no_pauses")
def test_bucket_that_is_missing_is_told_at_once(bucket: str) -> None:
    check_refusal(Storage(f"{bucket}-not/run"), r"s3://.*-not/run .*Make the bucket, or correct")


@pytest.mark.usefixtures("_no_pauses")
def test_credentials_that_are_missing_are_told_at_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    S3FileSystem.clear_instance_cache()  # they have keys
    check_refusal(Storage(f"{bucket}/run"), r"NoCredentialsError.*AWS_ACCESS_KEY_ID.* role")
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gs")])
def test_package_that_is_missing_is_named(
    protocol: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"{extra.replace('gs', 'gc')}fs", None)
    monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(ConfigError, match=rf"pip install 'donna-ray\[{extra}\]'"):
        Storage(f"{protocol}://bucket/run")
