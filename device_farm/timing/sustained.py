"""How a model's latency changes while it runs for a minute: the first seconds, and the last.

A phone or a small board is fast while it is cold; how fast it is in use is known only once it is
warm. The model is run in blocks of a fortieth of the time, which follow each other at once: no
control model between them, no wait until the device is cool. A block's figure is the median of its
runs. The first six blocks are set against the last six: each six have a median and its 95%
interval, which of six figures is their whole range.

With r the last median over the first, and the least and greatest r that the two intervals leave:
the device throttles if r is above 1.05 in all of that range, and does not if r is nowhere above it.
If 1.05 is within, nothing is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from pydantic import Field

from device_farm.failures import DeviceError
from device_farm.timing.protocol import (
    ProtocolSettings,
    Runs,
    Timed,
    half_interval,
    timed_block,
    warm_up,
)

__all__ = ["Stretch", "Sustained", "SustainedSettings", "in_words", "time_sustained"]

_BLOCKS = 40  # in the time
_STRETCH = 6  # blocks: the fewest whose range is a 95% interval
_SLOWER = 1.05


class SustainedSettings(ProtocolSettings):
    """The protocol's settings where a model is to run without pause; `blocks` do not count."""

    sustained_seconds: float = Field(ge=1, allow_inf_nan=False)
    """For how long, at least."""

    @classmethod
    def like(cls, settings: ProtocolSettings, seconds: float) -> SustainedSettings:
        """The same protocol, for so many seconds, with one run of warm-up.

        Raises:
            ValueError: It is less than a second.
        """
        known = {name: getattr(settings, name) for name in ProtocolSettings.model_fields}
        brief = {"warmup_runs": 1, "warmup_seconds": 0.0}
        return cls(**{**known, **brief, "sustained_seconds": seconds})


@dataclass(frozen=True)
class Stretch:
    """Some blocks that followed each other."""

    seconds: float
    """That the model ran in them."""
    median_ms: float
    """Milliseconds a run: the median of the blocks' medians."""
    ci_percent: float
    """Half its 95% interval, in %; no less than what the device rounds its figures to."""


@dataclass(frozen=True)
class Sustained:
    """What a model takes in the first seconds, and in the last: see this module's description."""

    seconds: float
    """That the model ran, of `wall_s`: what is between two blocks, warm-up too, is no run."""
    wall_s: float
    n: int
    """Timed runs."""
    first: Stretch
    last: Stretch
    blocks_ms: tuple[float, ...]
    """The median of each block, in milliseconds a run."""

    @property
    def ratio(self) -> float:
        """The last median over the first."""
        return self.last.median_ms / self.first.median_ms

    @property
    def ratio_range(self) -> tuple[float, float]:
        """What the two intervals leave open of it; infinite if the first reaches down to 0."""
        first, last = self.first.ci_percent / 100, self.last.ci_percent / 100
        highest = (1 + last) / (1 - first) if first < 1 else math.inf
        return self.ratio * max(0.0, 1 - last) / (1 + first), self.ratio * highest

    @property
    def throttles(self) -> bool | None:
        """Whether the last seconds are slower by more than 5%; None if that is not known."""
        low, high = self.ratio_range
        return None if low <= _SLOWER < high else low > _SLOWER

    @property
    def verdict(self) -> str:
        """The same in words."""
        low, high = self.ratio_range
        found = (
            f"the last {self.last.seconds:.1f} s of {self.seconds:.1f} s take {self.ratio:.2f} "
            f"times as long as the first ({low:.2f} to {high:.2f})"
        )
        if self.throttles is None:
            return f"not known whether it throttles: {found}; run it for longer, and nothing else"
        return f"throttles: {found}" if self.throttles else f"does not throttle: {found}"

    def figures(self) -> dict[str, Any]:
        """Those of a `Measurement`, of all blocks."""
        p20_ms, median_ms, p90_ms = map(float, np.percentile(self.blocks_ms, (20, 50, 90)))
        return {
            "median_ms": median_ms,
            "blocks_p20_ms": p20_ms,
            "blocks_p90_ms": p90_ms,
            "n": self.n,
            "ci_percent": 100 * half_interval(self.blocks_ms) / median_ms,
        }

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json.dumps` takes; an infinite range ends in null."""
        low, high = self.ratio_range
        return {
            **asdict(self),
            "blocks_ms": list(self.blocks_ms),
            "ratio": self.ratio,
            "ratio_range": [low, high if math.isfinite(high) else None],
            "throttles": self.throttles,
            "verdict": self.verdict,
        }


def time_sustained(
    candidate: Runs,
    settings: SustainedSettings,
    clock: Callable[[], float] = time.perf_counter,
) -> Sustained:
    """Runs a model without pause; ends when either its runs or the clock have the seconds.

    Raises:
        DeviceError: What the device tells cannot be the seconds of runs.
    """
    warm_up(candidate, settings)
    seconds_a_run = sum(timed_block(candidate, 1).seconds)
    aim, started = settings.sustained_seconds / _BLOCKS, clock()
    blocks: list[_Block] = []
    spent = 0.0
    while len(blocks) < 2 or max(spent, clock() - started) < settings.sustained_seconds:
        count = max(1, round(aim / seconds_a_run))
        blocks.append(_Block.of(timed_block(candidate, count)))
        spent += blocks[-1].seconds
        seconds_a_run = blocks[-1].seconds / count
    size = min(_STRETCH, len(blocks) // 2)
    return Sustained(
        seconds=spent,
        wall_s=clock() - started,
        n=sum(block.n for block in blocks),
        first=_stretch(blocks[:size]),
        last=_stretch(blocks[-size:]),
        blocks_ms=tuple(1e3 * block.median_s for block in blocks),
    )


@dataclass(frozen=True)
class _Block:
    """What is kept of a block: its single runs may be a million."""

    seconds: float
    median_s: float
    n: int
    resolution: float

    @classmethod
    def of(cls, timed: Timed) -> _Block:
        seconds = timed.seconds
        median_s = float(np.median(seconds))
        if not median_s:
            raise DeviceError(
                "a device must tell of most runs seconds greater than 0, but told 0 of "
                f"{seconds.count(0)} of {len(seconds)}: have its program tell finer figures"
            )
        return cls(sum(seconds), median_s, len(seconds), timed.resolution)


def _stretch(blocks: Sequence[_Block]) -> Stretch:
    figures = [block.median_s for block in blocks]
    median_s = median(figures)
    half_s = max(half_interval(figures), min(block.resolution for block in blocks))
    return Stretch(
        seconds=sum(block.seconds for block in blocks),
        median_ms=1e3 * median_s,
        ci_percent=100 * half_s / median_s,
    )


def in_words(told: Mapping[str, Any]) -> dict[str, str]:
    """What `sustain_alone` returns, by a name for each line of a table."""
    before, after = dict(_facts(told["before"])), dict(_facts(told["after"]))
    return {
        "sustained": told["verdict"],
        **{f"{which} seconds": _stretch_in_words(told[which]) for which in ("first", "last")},
        "time that it ran": f"{told['seconds']:.1f} s of {told['wall_s']:.1f} s",
        **{
            f"{name}, start to end": f"{value} to {after.get(name)}"
            for name, value in before.items()
        },
    }


def _stretch_in_words(told: Mapping[str, float]) -> str:
    return f"{told['median_ms']:.3f} ms ± {told['ci_percent']:.1f}% ({told['seconds']:.1f} s)"


def _facts(condition: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Those that are told, each by its path."""
    for name, value in condition.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{within}{name} ")
        elif value is not None:
            yield f"{within}{name}", value
