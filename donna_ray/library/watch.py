"""What can be seen while a library is being distilled: a line, TensorBoard, Ray's metrics."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge
from tensorboardX import SummaryWriter

__all__ = ["LibraryWatch"]

Facts = dict[str, Any]


class LibraryWatch:
    """Follows the packs of a library; call it with the facts of each that is completed.

    Writes TensorBoard scalars over the number of blocks done: the NSR of each stage's blocks,
    blocks per hour, images per second of all workers together, and the reference's share (with the
    decoding) of the training time. Ray's metrics, which Prometheus reads, have `donna_blocks_done`
    and `donna_blocks_left` (by stage), `donna_blocks_failed`, `donna_blocks_per_hour`,
    `donna_images_per_second` and `donna_reference_share`.

    Args:
        stages: of each stage, how many blocks there are and how many are done already.
        folder: of the event files.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int]],
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._totals = [total for total, _ in stages]
        self._before = [done for _, done in stages]
        self._made = [0] * len(stages)
        self._failed = self._images = 0
        self._clock, self._started = clock, clock()
        self._writer = SummaryWriter(str(folder))
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, facts: Facts) -> str:
        """Take a pack's facts in.

        Args:
            facts: `blocks` (stage and NSR of each, or null where it failed), `images`, and
                `reference_share` (null where it is not known).

        Returns:
            A line: the rate; done of all blocks and the time left by stage; how many failed.
        """
        for stage, nsr in facts["blocks"]:
            self._made[stage] += 1
            self._failed += nsr is None
            if nsr is not None:
                self._writer.add_scalar(f"nsr/stage{stage}", nsr, sum(self._made))
        self._images += facts["images"]
        elapsed = max(self._clock() - self._started, 1e-9)
        hourly = 3600 * sum(self._made) / elapsed
        self._scalar("blocks_per_hour", hourly)
        self._scalar("images_per_second", self._images / elapsed)
        if facts["reference_share"] is not None:
            self._scalar("reference_share", facts["reference_share"])
        self._export()
        stages = ", ".join(self._stage(number, elapsed) for number in range(len(self._totals)))
        return f"{hourly:.0f} blocks/h; by stage {stages}; {self._failed} failed"

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _scalar(self, name: str, value: float) -> None:
        self._writer.add_scalar(name, value, sum(self._made))
        self._gauge(name, value)

    def _export(self) -> None:
        self._gauge("blocks_failed", self._failed)
        for number in range(len(self._totals)):
            self._gauge("blocks_done", self._done(number), stage=str(number))
            self._gauge("blocks_left", self._left(number), stage=str(number))

    def _gauge(self, name: str, value: float, **tags: str) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"donna_{name}", tag_keys=tuple(tags))
        self._gauges[name].set(value, tags)

    def _done(self, stage: int) -> int:
        return self._before[stage] + self._made[stage]

    def _left(self, stage: int) -> int:
        return self._totals[stage] - self._done(stage)

    def _stage(self, number: int, elapsed: float) -> str:
        counts = f"{self._done(number)}/{self._totals[number]}"
        if not self._left(number) or not self._made[number]:
            return counts
        seconds = round(elapsed * self._left(number) / self._made[number])
        return f"{counts} ({timedelta(seconds=seconds)} left)"
