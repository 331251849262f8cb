"""Names of files among images: what they are sorted and compared by, and which are passed over."""

import os
import re
import unicodedata
from functools import cache

from PIL import Image

__all__ = ["counts", "image_suffixes", "letters", "may_be_a_class", "natural_key", "suffix"]

_LITTER = {"__macosx", "@eadir", "thumbs.db", "desktop.ini"}
_NOTES = {"readme", "license", "licence", "copying", "notice", "authors", "changelog"}
_SUFFIX = re.compile(r"\.[a-z]\w*", re.IGNORECASE)


def letters(name: str) -> str:
    """A name however its accents are written: systems change that when they copy (NFC, NFD)."""
    return unicodedata.normalize("NFC", name)


def counts(name: str) -> bool:
    """Whether a file or folder is neither hidden nor one that a system made for itself."""
    return not name.startswith(".") and name.lower() not in _LITTER


def may_be_a_class(name: str) -> bool:
    """Whether what is not there to be looked at, as of a link that leads to nothing, may be one."""
    return counts(name) and name.lower() not in _NOTES and not _SUFFIX.fullmatch(suffix(name))


def natural_key(name: str) -> list[int | str]:
    """What names are sorted by: numbers as such, of digits that are one (not so ² or ①)."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if part.isdecimal() else part for part in parts]


@cache
def image_suffixes() -> frozenset[str]:
    """Of all files that Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(each for each, kind in known.items() if kind in Image.OPEN)


def suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
