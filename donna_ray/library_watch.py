"""What can be seen while a library is being distilled: a line, TensorBoard, Ray's metrics."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge
from tensorboardX import SummaryWriter

__all__ = ["LibraryWatch"]

Facts = dict[str, Any]


class LibraryWatch:
    """Follows the packs of a library; call it with the facts of each that is completed.

    Writes TensorBoard scalars over the number of blocks done: the NSR of each stage's blocks,
    blocks per hour, and images per second of all workers together. Ray's metrics, which Prometheus
    reads, have `donna_blocks_done` and `donna_blocks_left` (by stage), `donna_blocks_failed`,
    `donna_blocks_per_hour` and `donna_images_per_second`.

    Args:
        stages: of each stage, how many blocks there are and how many are done already.
        folder: of the event files.
    """

    def __init__(self, stages: Sequence[tuple[int, int]], folder: Path) -> None:
        self._totals = [total for total, _ in stages]
        self._done = Counter({number: done for number, (_, done) in enumerate(stages)})
        self._failed = 0
        self._blocks = self._images = 0
        self._started = time.monotonic()
        self._writer = SummaryWriter(str(folder))
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, facts: Facts) -> str:
        """Take a pack's facts in.

        Args:
            facts: `blocks` (stage and NSR of each, or null where it failed) and `images`.

        Returns:
            A line: done of all blocks by stage, and how many failed.
        """
        for stage, nsr in facts["blocks"]:
            self._done[stage] += 1
            self._blocks += 1
            self._failed += nsr is None
            if nsr is not None:
                self._writer.add_scalar(f"nsr/stage{stage}", nsr, self._blocks)
        self._images += facts["images"]
        elapsed = time.monotonic() - self._started
        self._scalar("blocks_per_hour", 3600 * self._blocks / elapsed)
        self._scalar("images_per_second", self._images / elapsed)
        self._export()
        return self._line()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _scalar(self, name: str, value: float) -> None:
        self._writer.add_scalar(name, value, self._blocks)
        self._gauge(name, value)

    def _export(self) -> None:
        self._gauge("blocks_failed", self._failed)
        for number, total in enumerate(self._totals):
            self._gauge("blocks_done", self._done[number], stage=str(number))
            self._gauge("blocks_left", total - self._done[number], stage=str(number))

    def _gauge(self, name: str, value: float, **tags: str) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"donna_{name}", tag_keys=tuple(tags))
        self._gauges[name].set(value, tags)

    def _line(self) -> str:
        stages = " ".join(
            f"{self._done[number]}/{total}" for number, total in enumerate(self._totals)
        )
        return f"by stage {stages}, {self._failed} failed"
