"""Stores on an S3 server, with s3fs as a user has it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
from botocore.exceptions import ClientError
from fsspec.registry import _registry
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from donna_ray.errors import ConfigError, DonnaError
from donna_ray.storage.files import Storage
from tests.conftest import AWS


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


def test_each_action_is_one_request(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    call = S3FileSystem._call_s3

    async def counted(self: S3FileSystem, method: str, *rest: Any, **more: Any) -> Any:
        asked.append(method)
        return await call(self, method, *rest, **more)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    store = Storage(f"{bucket}/run")
    store.write("a", b"1")
    assert store.read("a") == b"1"
    assert store.read("b") is None
    assert store.listing()["a"].size == 1
    store.remove("a")
    assert asked == [
        *("put_object", "get_object", "get_object"),
        *("list_objects_v2", "delete_object"),
    ]


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
    lines = [line for line in AWS.read_text().splitlines() if "aws_" not in line]
    (tmp_path / "aws").write_text("\n".join(lines))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    S3FileSystem.clear_instance_cache()  # they have keys
    check_refusal(Storage(f"{bucket}/run"), r"NoCredentialsError.*AWS_ACCESS_KEY_ID.* role")
    S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("_no_pauses", "bucket")
def test_bucket_whose_name_cannot_be_is_told_at_once() -> None:
    check_refusal(Storage("s3://no bucket/run"), "ParamValidationError.*Correct the URL")


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("InvalidAccessKeyId", "Correct the credentials"),
        ("SignatureDoesNotMatch", "Correct the credentials"),
        ("ExpiredToken", "Correct the credentials"),
        ("InvalidToken", "Correct the URL, or .* token"),
        ("PermanentRedirect", "Correct the URL, or .* region"),
    ],
)
def test_answer_that_stays_is_told_at_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    async def refused(*_: Any, **__: Any) -> Any:
        cause = ClientError({"Error": {"Code": code, "Message": code}}, "any")
        raise translate_boto_error(cause) from cause  # as s3fs does

    monkeypatch.setattr(S3FileSystem, "_call_s3", refused)
    check_refusal(Storage(f"{bucket}/run"), f"{code}.*{words}")


@pytest.mark.usefixtures("_no_pauses")
def test_absence_of_what_is_written_is_that_of_the_bucket(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gcsfs tells of it: reads as an absent file does."""

    async def absent(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("b/bucket/o")

    monkeypatch.setattr(S3FileSystem, "_call_s3", absent)
    store = Storage(f"{bucket}/run")
    assert store.read("a") is None
    with pytest.raises(DonnaError, match=r"b/bucket/o.*Make the bucket, or correct"):
        store.write("a", b"")


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gs")])
def test_package_that_is_missing_is_named(
    protocol: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"{extra.replace('gs', 'gc')}fs", None)
    monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(ConfigError, match=rf"pip install 'donna-ray\[{extra}\]'"):
        Storage(f"{protocol}://bucket/run")
