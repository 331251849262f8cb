"""A process's part of every batch, where several train one network."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from donna_ray.data.images import Batch, ImageStream
from donna_ray.data.split import Split

__all__ = ["SplitShard"]


@dataclass(frozen=True)
class SplitShard(Split):
    """Every `size`-th image of each batch: together the shards make the batches of the split.

    `batch_size` and the number of steps are those of the whole batches. Images by index are read by
    one process only, a stream by all of them.

    Attributes:
        rank: number of the part, from 0.
        size: how many parts there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, split: Split, rank: int, size: int) -> "SplitShard":
        """Part `rank` of `size` of a split."""
        values = {field.name: getattr(split, field.name) for field in fields(split) if field.init}
        return cls(**values, rank=rank, size=size)

    def _streamed(
        self, stream: ImageStream, batch_size: int, shuffle_seed: int | None, epoch: int
    ) -> Iterator[Batch]:
        for images, labels in super()._streamed(stream, batch_size, shuffle_seed, epoch):
            yield images[self.rank :: self.size], labels[self.rank :: self.size]

    def _order(self, batch_size: int, shuffle_seed: int | None, epoch: int) -> list[np.ndarray]:
        order = super()._order(batch_size, shuffle_seed, epoch)
        return [indices[self.rank :: self.size] for indices in order]

    def _loaded(self, loader: Iterable[Any]) -> Iterator[Batch]:
        stream = isinstance(self.dataset, ImageStream)
        return super()._loaded(loader if stream else _without_gaps(loader))


def _without_gaps(loaded: Iterable[Any]) -> Iterator[Any]:
    """The batch before again where all images of one are broken, for the other processes' sake.

    Before the first sound batch, that one.
    """
    last = None
    leading = []  # what was broken in gaps before it
    for batch, broken in loaded:
        if batch is None and last is None:
            leading.append(broken)
            continue
        last = last if batch is None else batch
        yield from ((last, each) for each in leading)
        leading.clear()
        yield last, broken
    yield from ((None, each) for each in leading)
