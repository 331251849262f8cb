"""What an error of a filesystem's client means: clients have kinds of their own, of no common base.

They are known by name and status, for most clients need not be installed.
"""

import errno
import ftplib
from collections.abc import Iterator

__all__ = ["NoBucketError", "is_full", "is_of_absence", "may_be_of_network", "remedy"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_BUCKET = {"NoSuchBucket", "NoBucketError"}  # of botocore; s3fs says 'not found'
_WITHOUT_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),  # of botocore
    "DefaultCredentialsError",  # of google.auth
    "CredentialUnavailableError",  # of azure.identity
}
_REFUSED = {
    "PermissionError",
    "ClientAuthenticationError",  # of azure.core
    "AuthenticationException",  # of paramiko
    "LogonFailure",  # of smbprotocol
}
_FORBIDDEN = (401, 403)
_STATUSES = ("code", "status", "status_code")  # gcsfs, aiohttp, azure.core
_OF_THE_URL = {"ParamValidationError", "InvalidRegionError"}  # of botocore


class NoBucketError(Exception):
    """An object store answers 'not found' to a write."""


def is_full(error: BaseException) -> bool:
    """The disk, or the owner's part of it, has no room."""
    return getattr(error, "errno", None) in _FULL


def is_of_absence(error: FileNotFoundError) -> bool:
    """The file or folder is not there, and not its bucket or, for FTP, the connection."""
    broken = any(
        isinstance(each, ftplib.Error) and not isinstance(each, ftplib.error_perm)
        for each in _causes(error)
    )
    return not broken and not _is_of_no_bucket(error)


def may_be_of_network(error: ValueError) -> bool:
    """A client's `ValueError` that comes from another kind, as adlfs makes one of all."""
    return not all(isinstance(each, ValueError) for each in _causes(error))


def remedy(error: BaseException) -> str | None:
    """What to do about an error that stays however often one asks; None where it may pass."""
    if is_full(error):
        return "Make room"
    if _is_of_no_bucket(error):
        return "Make the bucket, or correct its name"
    kinds = _kinds(error)
    if kinds & _WITHOUT_CREDENTIALS:
        return (
            "Give the store's client credentials (of s3://: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, a profile, or a role of the nodes)"
        )
    if kinds & _REFUSED or any(_is_forbidden(each) for each in _causes(error)):
        return "Correct the credentials, or let them read, write and remove there"
    if kinds & _OF_THE_URL or _is_of_the_url(error):
        return "Correct the URL, or the store client's region, endpoint or token"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it comes from. (It may be its own: `raise error from error`.)"""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for each in _causes(error) for kind in type(each).__mro__}


def _is_forbidden(error: BaseException) -> bool:
    if isinstance(error, ftplib.error_perm):
        return str(error).startswith("530")  # not logged in
    told = type(error) is OSError and str(error).startswith("Forbidden: ")  # gcsfs, of 403
    return told or any(getattr(error, name, None) in _FORBIDDEN for name in _STATUSES)


def _is_of_no_bucket(error: BaseException) -> bool:
    codes = [getattr(each, "error_code", None) for each in _causes(error)]  # of azure.core
    return bool(_kinds(error) & _NO_BUCKET) or "ContainerNotFound" in codes


def _is_of_the_url(error: BaseException) -> bool:
    """S3 takes the request itself for wrong, such as of a bucket in another region."""
    answered = type(error.__cause__).__name__ == "ClientError"  # of botocore
    return answered and getattr(error, "errno", None) in (errno.EINVAL, errno.EREMCHG)
