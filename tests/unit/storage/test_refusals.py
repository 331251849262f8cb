"""Errors of clients that the tests do not install: their names and attributes, as theirs."""

from __future__ import annotations

import ftplib
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from donna_ray.errors import DonnaError
from donna_ray.storage.files import Storage
from donna_ray.storage.refusals import is_of_absence, remedy


def of_client(kind: str, base: type[Exception] = Exception, **told: object) -> Exception:
    error = type(kind, (base,), {})("told")
    vars(error).update(told)
    return error


def within(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


AZURE = type("ClientAuthenticationError", (Exception,), {})


@pytest.mark.parametrize(
    "error",
    [
        of_client("CredentialError", AZURE),
        within(RuntimeError("failed to put"), of_client("HttpResponseError", status_code=403)),
        of_client("HttpError", code=401),  # gcsfs
        OSError("Forbidden: https://storage/b/bucket\nno access"),  # gcsfs
        within(OSError("no answer"), of_client("ClientResponseError", status=403)),  # aiohttp
        ftplib.error_perm("530 Authentication failed."),
        of_client("BadKey", type("AuthenticationException", (Exception,), {})),  # paramiko
    ],
)
def test_refused_credentials_are_known(error: Exception) -> None:
    told = remedy(error)
    assert told is not None
    assert "Correct the credentials" in told


def test_missing_container_is_known_where_a_file_is_said_to_be_missing() -> None:
    cause = of_client("ResourceNotFoundError", error_code="ContainerNotFound")
    missing = FileNotFoundError("a")
    assert is_of_absence(missing)
    missing.__context__ = cause  # adlfs's listing
    assert not is_of_absence(missing)
    assert "Make the bucket" in str(remedy(missing))
    assert "Make the bucket" in str(remedy(cause))


@pytest.mark.parametrize(
    "error",
    [
        of_client("HttpResponseError", status_code=503),
        of_client("HttpError", code=429),
        ftplib.error_perm("550 Busy."),
        OSError("the server went away"),
    ],
)
def test_what_may_pass_has_no_remedy(error: Exception) -> None:
    assert remedy(error) is None
    assert remedy(within(error, error)) is None


def test_ftp_connection_that_ended_is_no_absence() -> None:
    """fsspec's client says 'not found' of every answer but 'here it is'."""
    missing = FileNotFoundError("a")
    missing.__cause__ = ftplib.error_perm("550 No such file.")
    assert is_of_absence(missing)
    missing.__cause__ = ftplib.error_temp("421 Control connection timed out.")
    assert not is_of_absence(missing)
    assert remedy(missing) is None


def test_upload_that_is_over_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 says 'not found' of it, too; of a bucket that is not there a write is told at once."""
    store = Storage("memory://bucket/over")
    refused = [within(FileNotFoundError("a"), Exception("(NoSuchUpload) when calling"))]
    pipe_file = MemoryFileSystem.pipe_file

    def refuse(files: MemoryFileSystem, *given: Any, **named: Any) -> None:
        if refused:
            raise refused.pop()
        pipe_file(files, *given, **named)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    store.write("a", b"1")
    assert store.read("a") == b"1"
    refused.append(FileNotFoundError("a"))
    with pytest.raises(DonnaError, match="Make the bucket"):
        store.write("b", b"2")
