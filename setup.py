"""The README as package indexes show it: relative links lead nowhere there."""

import re
from pathlib import Path

from setuptools import setup

_PICTURE = re.compile(r"!\[[^]]*\]\((?!https?:)[^)]+\)\n*")
_LINK = re.compile(r"\[([^]]+)\]\((?!https?:)([^)]+)\)")


def described(readme: str) -> str:
    """Without local pictures; a link to a file names it: the source distribution has it."""
    return _LINK.sub(_named, _PICTURE.sub("", readme))


def _named(link: re.Match[str]) -> str:
    text, place = link.groups()
    return f"`{place}`" if text == place else f"{text} (`{place}`)"


setup(
    long_description=described(Path(__file__).with_name("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
