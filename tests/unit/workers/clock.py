"""A clock that stands until a test moves it on."""

from __future__ import annotations


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
