"""The processes that train one network together; mostly there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from torch import distributed

__all__ = ["ALONE", "Group", "current_group"]

T = TypeVar("T")

_PATIENCE = timedelta(days=1)  # for the first one, while it measures and exports


@dataclass(frozen=True)
class Group:
    """Ranks of torch's process group.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        channel: for objects; None where there is one process.
    """

    rank: int = 0
    size: int = 1
    channel: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that measures and stores."""
        return self.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; each calls this at the same point."""
        if self.size == 1:
            return make()
        values = [make() if self.first else None]
        distributed.broadcast_object_list(values, src=0, group=self.channel)
        return values[0]  # type: ignore[return-value]

    def union(self, entries: dict[str, str]) -> dict[str, str]:
        """Those of all processes, each of which calls this at the same point."""
        if self.size == 1:
            return entries
        every: list[Any] = [None] * self.size
        distributed.all_gather_object(every, entries, group=self.channel)
        return {name: value for each in every for name, value in each.items()}


ALONE = Group()


@cache
def current_group() -> Group:
    """That of torch's process group, or one process where there is none."""
    if not distributed.is_available() or not distributed.is_initialized():
        return ALONE
    channel = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return Group(distributed.get_rank(), distributed.get_world_size(), channel)
