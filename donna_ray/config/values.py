"""What the sections of a configuration have in common: their base, paths and limits."""

import os
import re
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationInfo,
    field_validator,
)

from donna_ray.credentials import NO_CREDENTIALS, has_credentials

__all__ = [
    "AbsolutePath",
    "ArchitectureName",
    "FolderOrUrl",
    "LatencyLimit",
    "MemoryLimit",
    "Section",
    "StoreLocation",
    "absolute",
    "amount_of",
    "limit_of",
]

_LIMIT = re.compile(r"(\d+(?:\.\d+)?|\.\d+) ?(ms|MB|x)")
_NAME = re.compile(r"[0-9a-f]{1,16}|\d+(-\d+)+")
_ONE_SLASH = re.compile(r"[A-Za-z][\w+.-]*:/(?!/)")


class Section(BaseModel):
    """Unknown keys are refused, values do not change, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which Python takes for 1."""
        kinds = _kinds_in(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("must be a number, not yes or no; write the number")
        return value


def _kinds_in(annotation: Any) -> set[Any]:
    """The types in an annotation such as `Annotated[int, …] | None`."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        arguments = arguments[:1]
    return set().union({annotation}, *map(_kinds_in, arguments))


def absolute(path: str) -> str:
    """Workers may have another working directory than the command.

    Raises:
        ValueError: it is empty, which would be the working directory.
    """
    if not path.strip():
        raise ValueError("must be a path, but is empty; name one ('.' is the working directory)")
    return os.path.abspath(os.path.expanduser(path))


def limit_of(text: Any) -> tuple[float, str] | None:
    """Number and unit (`ms`, `MB`, `x`) of a limit as `2.5ms`; None if it is not one above 0."""
    match = _LIMIT.fullmatch(text) if isinstance(text, str) else None
    return None if match is None or float(match[1]) == 0 else (float(match[1]), match[2])


def amount_of(limit: str, reference: float) -> float:
    """A limit in its own unit, ms or MB, given the reference's own latency or memory in it."""
    known = limit_of(limit)
    assert known is not None
    return known[0] * (reference if known[1] == "x" else 1)


def _limit_in(unit: str, words: str, of: str) -> Callable[[Any], Any]:
    def checked(limit: Any) -> Any:
        if limit is not None and (limit_of(limit) or (0, ""))[1] not in (unit, "x"):
            raise ValueError(
                f"must be {words}, or a multiple of the reference's {of} such as '0.8x', greater "
                "than 0"
            )
        return limit

    return checked


_checked_latency = _limit_in("ms", "milliseconds such as '2.5ms'", "latency")
_checked_memory = _limit_in("MB", "megabytes such as '60MB'", "peak memory")


def _checked_name(name: Any) -> Any:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            "must be the id of a network, its beginning, or the number of each stage's block such "
            "as 3-0-17; correct it, or quote it in YAML"
        )
    return name


def _folder_or_url(path: str) -> str:
    path = path.removeprefix("file://")
    if _ONE_SLASH.match(path):
        raise ValueError(
            "must be a URL with two slashes (s3://BUCKET/FOLDER), or a folder; write ./ before a "
            "folder whose name has a colon"
        )
    if "://" not in path:
        return absolute(path)
    if has_credentials(path):
        raise ValueError(NO_CREDENTIALS)
    return path


def _store(path: str) -> str:
    from fsspec import available_protocols  # which takes as long as pydantic

    protocol, is_url, _ = _folder_or_url(path).rpartition("::")[2].partition("://")
    if is_url and protocol not in available_protocols():
        raise ValueError(
            f"must be a folder or a URL that fsspec knows, but no package of it knows {protocol}://"
            "; correct it, or install the package"
        )
    if not is_url and os.path.isfile(absolute(path)):
        raise ValueError("must be a folder or a URL, but is a file; give another path")
    return _folder_or_url(path)


ArchitectureName = Annotated[str, BeforeValidator(_checked_name)]
"""Of a network: an id, its beginning, or block numbers (`3-0-17`)."""

AbsolutePath = Annotated[str, AfterValidator(absolute)]

FolderOrUrl = Annotated[str, AfterValidator(_folder_or_url)]
"""A folder, or any URL without a password or token."""

StoreLocation = Annotated[str, AfterValidator(_store)]
"""A folder, or any fsspec URL without a password or token."""

LatencyLimit = Annotated[str, BeforeValidator(_checked_latency)]
"""Milliseconds (`2.5ms`) or a multiple of the reference's latency (`0.8x`)."""

MemoryLimit = Annotated[str, BeforeValidator(_checked_memory)]
"""MB of 10**6 bytes (`60MB`) or a multiple of the reference's peak memory (`0.8x`)."""
