"""How a latency is timed: blocks of runs, each beside a block of runs of a control model.

The speed of a shared host drifts by 10% within seconds, and any statistic of the runs alone
drifts with it. So a block of runs of a control model goes before each block of the candidate.
The control's latency at rest, its *baseline*, is measured once and kept. With b the blocks, c_b
and k_b the 5th percentiles of the runs of candidate and control in block b, each block yields one
figure, the candidate's latency less what the control tells of the host:

    figure_b = c_b * (baseline / k_b) ** s

`s` says how much the candidate feels of what the control feels: 1 if as much, and less for models
that are longer than the control, whose runs average over what disturbs. For these it is fitted to
the blocks' own fluctuations, drawn towards 1 as by a normal prior of deviation 0.15, and within 0
to 1.2. For shorter ones it is 1: a fit to so short runs mostly sees their own noise.

The latency reported, `median_ms`, is the median over the blocks; `blocks_p20_ms` and
`blocks_p90_ms` say how far these are apart. At least `blocks` are run, and more until half the 95%
interval of the median is within `precision_percent`, up to four times as many or `max_seconds`.
What remains wide says so in `ci_percent`, as do figures that a program prints rounded.
`scripts/bench_timing.py` has what each of these choices gives, on a quiet and on busy hosts, by the
length of the model.

`p90_ms` and `p99_ms` are the tail: percentiles of all single runs by the wall clock, with whatever
held them up, in the same unit: each run is multiplied by its block's (baseline / k_b) ** s, so the
tail is never below the median. On a shared host it tells as much about the neighbours as about the
model. Every run is timed by itself, however short; where a program tells only a statistic of
several, there is no tail. Of fewer than 100 runs p99 is nearly the longest one.

On a dedicated device `interleave: false` halves the work: median, p90 and p99 are then those of
all runs, and a block's figure is the median of its own. A block lasts 5 ms at least, in which the
scheduler of a host gets to act.

Nothing here knows a clock or a device: the runs come from callables.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from device_farm.failures import DeviceError

__all__ = [
    "PROTOCOL",
    "ProtocolSettings",
    "Runs",
    "Timed",
    "Timing",
    "baseline_ms",
    "half_interval",
    "time_candidate",
    "timed_block",
    "warm_up",
    "warmup_of_a_call",
]

PROTOCOL = 4
"""Version of how runs become figures: those of another are not compared with today's."""


class Timed(NamedTuple):
    """Seconds of the runs of a block."""

    seconds: list[float]
    """Of each run as the figure takes it: CPU seconds say, or of each the statistic of all."""
    single: list[float] | None
    """Of each run by itself, by the wall clock; None if only a statistic of several is known."""
    resolution: float = 0.0
    """What `seconds` are rounded or cut to, in seconds, as those of a program that prints whole
    milliseconds; 0 where that is nothing to their noise."""


Runs = Callable[[int], list[float] | Timed]
"""Does that many runs and returns the seconds that each took; a list is of both kinds."""

_MIN_BLOCKS = 2
_BASELINE_BLOCKS = 8  # a round
_BASELINE_RUNS = 50
_LOG = logging.getLogger(__name__)
_WIDE = """of %d rounds of the control model at rest the two lowest, %s and %s ms, must agree, but \
do not: latencies may be too long. End what else runs, and name another cache of measurements"""
_ROUNDS, _MOST_ROUNDS = 5, 20
_AGREED = 1.02  # times the lowest round that the second lowest may take
_QUANTILE = 5  # percent of the runs of a block
_SENSITIVITY, _DEVIATION = 1.0, 0.15  # of the candidate to what the control feels: prior
_MOST_SENSITIVE = 1.2
_OUTLIER = 4  # median deviations
_JITTER = 1e-3  # of a block's logarithm, at least
_WARMUP_SHARE = 0.1
_UNTOLD_S = 1e-3  # that a run is taken for where the device tells 0, of whole milliseconds say
_MORE_BLOCKS = 4  # times `blocks`, at most
_BLOCK_S = 0.005  # that a block of the candidate takes at least; the scheduler's slices are as long


class ProtocolSettings(BaseModel):
    """How much is run. A connector's own settings extend this class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blocks: int = Field(default=12, ge=_MIN_BLOCKS)
    """At least so many, and up to four times as many until `precision_percent` is reached."""
    precision_percent: float = Field(default=2.0, ge=0)
    """Half the 95% interval, in % of the latency, that is narrow enough."""
    runs_per_block: int = Field(default=15, ge=1)
    """Runs of the control in a block, and of the candidate: more if they take less than 5 ms, fewer
    if `max_seconds` is short."""
    warmup_runs: int = Field(default=10, ge=0)
    """Untimed runs of each model; they end early once they took a tenth of `max_seconds`."""
    warmup_seconds: float = Field(default=0.0, ge=0)
    """And for how long, at least, within that tenth: clocks take time to rise."""
    max_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Budget of timed runs, in seconds; two blocks are run whatever they take."""
    interleave: bool = True
    """Run a control model beside the candidate. Say false on a device that nothing else uses."""


@dataclass(frozen=True)
class Timing:
    """The figures of one candidate, in milliseconds a run: see this module's description."""

    median_ms: float
    blocks_p20_ms: float
    blocks_p90_ms: float
    p90_ms: float | None
    p99_ms: float | None
    n: int
    """Timed runs of the candidate."""
    ci_percent: float
    """Half the 95% confidence interval of the blocks' median, in % of `median_ms`.

    A block counts by its figure, or without a control by the median of its runs.

    The interval is between two order statistics, so it assumes no distribution. With fewer than
    six blocks it is the whole range, which covers less than 95%. It is no narrower than what the
    device's figures are rounded to, either way.
    """
    control_ms: float | None
    """The control's latency meanwhile: the median over the blocks; None if not interleaved."""
    sensitivity: float | None
    """The exponent of the control's correction; None if not interleaved."""
    wall_tail_ms: tuple[float, float] | None
    """`p90_ms` and `p99_ms` as they were on the host of then, without the correction."""

    def control_facts(self, control_baseline_ms: float | None) -> dict[str, float]:
        """The control's baseline and latency now, in ms, how far it is off, in %, what of it the
        candidate feels, and the candidate's tail without its correction, in ms."""
        if self.control_ms is None or control_baseline_ms is None:
            return {}
        assert self.sensitivity is not None
        return {
            "control_baseline_ms": control_baseline_ms,
            "control_ms": self.control_ms,
            "control_drift_percent": 100 * (self.control_ms / control_baseline_ms - 1),
            "control_sensitivity": self.sensitivity,
            **dict(zip(("wall_p90_ms", "wall_p99_ms"), self.wall_tail_ms or (), strict=False)),
        }


def baseline_ms(control: Runs, settings: ProtocolSettings, blocks: int = _BASELINE_BLOCKS) -> float:
    """The control's own latency at rest, in milliseconds.

    The lowest of at least five rounds, each the median of its blocks; more rounds are taken, up to
    20, until the two lowest agree to 2%, or a warning is logged: one busy phase does not decide.
    Take it once for a model of device and keep it: it is the unit of all its measurements.
    """
    warm_up(control, settings)
    rounds: list[float] = []
    while len(rounds) < _ROUNDS or (len(rounds) < _MOST_ROUNDS and not _agree(rounds)):
        taken = (timed_block(control, _BASELINE_RUNS).seconds for _ in range(blocks))
        rounds.append(float(np.median([_typical(block) for block in taken])))
    if not _agree(rounds):
        _LOG.warning(_WIDE, len(rounds), *(f"{1e3 * each:.3g}" for each in sorted(rounds)[:2]))
    return 1e3 * min(rounds)


def _agree(rounds: Sequence[float]) -> bool:
    lowest, second = sorted(rounds)[:2]
    return second <= _AGREED * lowest


def time_candidate(
    candidate: Runs,
    control: Runs | None,
    control_baseline_ms: float | None,
    settings: ProtocolSettings,
) -> Timing:
    """Times a candidate by the protocol in this module's description.

    Args:
        candidate: Runs of the model in question.
        control: Runs of the control model; used if `settings.interleave`.
        control_baseline_ms: What `baseline_ms` once returned for the same control.
        settings: How much to run.

    Raises:
        ValueError: `settings.interleave` without a control or its baseline.
        DeviceError: What the device tells cannot be the seconds of runs.
    """
    if not settings.interleave:
        control = None
    elif control is None or control_baseline_ms is None:
        raise ValueError(
            "interleave needs a control model and its baseline, but got none: "
            "calibrate the device first, or set interleave to false"
        )
    baseline_s = (control_baseline_ms or 0.0) / 1e3
    timed, controls = _run_blocks(candidate, control, baseline_s, settings)
    blocks = [block.seconds for block in timed]
    factors, sensitivity = _corrections(blocks, controls, baseline_s)
    figures = _figures(blocks, controls, baseline_s)
    median_s = float(np.median(figures if controls else np.concatenate(blocks)))
    p20_s, p90_s = np.percentile(figures, (20, 90))
    half_s = max(half_interval(figures), min(block.resolution for block in timed))
    tail, wall_tail = _tail_ms(timed, factors), _tail_ms(timed, np.ones(len(timed)))
    return Timing(
        median_ms=1e3 * median_s,
        blocks_p20_ms=1e3 * float(p20_s),
        blocks_p90_ms=1e3 * float(p90_s),
        p90_ms=tail and tail[0],
        p99_ms=tail and tail[1],
        n=sum(map(len, blocks)),
        ci_percent=100 * half_s / median_s,
        control_ms=1e3 * float(np.median(controls)) if controls else None,
        sensitivity=sensitivity,
        wall_tail_ms=wall_tail,
    )


def _run_blocks(
    candidate: Runs, control: Runs | None, baseline_s: float, settings: ProtocolSettings
) -> tuple[list[Timed], list[float]]:
    """Runs the blocks in turn; the candidate's runs and the control's figures, in seconds."""
    if control is not None:
        warm_up(control, settings)
    warm_up(candidate, settings)
    runs = _affordable_runs(candidate, settings)
    blocks: list[Timed] = []
    controls: list[float] = []
    spent = 0.0
    while _is_unknown([block.seconds for block in blocks], controls, baseline_s, settings) and (
        len(blocks) < _MIN_BLOCKS or spent < settings.max_seconds
    ):
        if control is not None:
            control_runs = timed_block(control, settings.runs_per_block).seconds
            controls.append(_typical(control_runs))
            spent += sum(control_runs)
        blocks.append(timed_block(candidate, runs))
        spent += sum(blocks[-1].seconds)
    return blocks, controls


def _is_unknown(
    blocks: Sequence[Sequence[float]],
    controls: Sequence[float],
    baseline_s: float,
    settings: ProtocolSettings,
) -> bool:
    """Whether more blocks are needed, were there time without end."""
    if not settings.blocks <= len(blocks) < _MORE_BLOCKS * settings.blocks:
        return len(blocks) < settings.blocks
    figures = _figures(blocks, controls, baseline_s)
    return 100 * half_interval(figures) > settings.precision_percent * float(np.median(figures))


def _figures(
    blocks: Sequence[Sequence[float]], controls: Sequence[float], baseline_s: float
) -> np.ndarray:
    """A block's figure, in seconds: corrected by the control, or the median of its runs."""
    if not controls:
        return np.array([np.median(block) for block in blocks])
    factors, _ = _corrections(blocks, controls, baseline_s)
    return np.array([_typical(block) for block in blocks]) * factors


def _corrections(
    blocks: Sequence[Sequence[float]], controls: Sequence[float], baseline_s: float
) -> tuple[np.ndarray, float | None]:
    """What the seconds of each block are multiplied by, and the exponent in it, if any."""
    if not controls:
        return np.ones(len(blocks)), None
    own, control, baseline = _typicals(blocks), np.log(controls), float(np.log(baseline_s))
    sensitivity = _sensitivity(own, control, baseline)
    return np.exp(sensitivity * (baseline - control)), sensitivity


def _tail_ms(blocks: Sequence[Timed], factors: np.ndarray) -> tuple[float, float] | None:
    """The 90th and 99th percentile of the single runs, in ms; None if not told."""
    single = [
        1e3 * factor * np.array(block.single)
        for block, factor in zip(blocks, factors, strict=True)
        if block.single is not None
    ]
    if len(single) < len(blocks):
        return None
    p90, p99 = np.percentile(np.concatenate(single), (90, 99))
    return float(p90), float(p99)


def _sensitivity(own: np.ndarray, control: np.ndarray, baseline: float) -> float:
    """The exponent: of least squares on the blocks' deviations, with the prior.

    Args:
        own: logarithms of the candidate's blocks.
        control: of the control's.
        baseline: of the control's at rest.
    """
    if np.median(own) < baseline:
        return _SENSITIVITY
    own, host = _deviations(own), _deviations(control)
    weight, exponent = 1 / _DEVIATION**2, _SENSITIVITY
    for _ in range(3):  # the residual's variance depends on the exponent, and not by much
        variance = float(np.mean((own - exponent * host) ** 2)) + _JITTER**2
        fitted = (own @ host / variance + weight * _SENSITIVITY) / (host @ host / variance + weight)
        exponent = float(np.clip(fitted, 0, _MOST_SENSITIVE))
    return exponent


def _deviations(values: np.ndarray) -> np.ndarray:
    """From the median; those far out are drawn in."""
    off = values - np.median(values)
    limit = _OUTLIER * np.median(np.abs(off))
    return np.clip(off, -limit, limit)


def _typicals(blocks: Sequence[Sequence[float]]) -> np.ndarray:
    return np.log([_typical(block) for block in blocks])


def warm_up(model: Runs, settings: ProtocolSettings) -> None:
    """Does the untimed runs of a model."""
    spent, count = 0.0, 0
    while count < settings.warmup_runs or spent < settings.warmup_seconds:
        spent, count = spent + sum(timed_block(model, 1).seconds), count + 1
        if spent > _WARMUP_SHARE * settings.max_seconds:
            return


def warmup_of_a_call(settings: ProtocolSettings, seconds_a_run: float) -> int:
    """The untimed runs of a program that is called anew for each block: as many as one warm-up has.

    Args:
        seconds_a_run: What a run took before; 0 if it is less than can be told.
    """
    seconds_a_run = seconds_a_run or _UNTOLD_S
    affordable = int(_WARMUP_SHARE * settings.max_seconds / seconds_a_run) + 1
    wanted = max(settings.warmup_runs, math.ceil(settings.warmup_seconds / seconds_a_run))
    return min(wanted, affordable)


def _affordable_runs(candidate: Runs, settings: ProtocolSettings) -> int:
    """Runs a block: for 5 ms at least, and so that all blocks fit into the budget; at least one."""
    seconds_a_run = max(sum(timed_block(candidate, 1).seconds), 1e-9)
    affordable = int(settings.max_seconds / (settings.blocks * seconds_a_run))
    wanted = max(settings.runs_per_block, math.ceil(_BLOCK_S / seconds_a_run))
    return max(1, min(wanted, affordable))


def timed_block(model: Runs, count: int) -> Timed:
    """Does runs, and refuses what cannot be their seconds.

    Raises:
        DeviceError: A figure is negative or not finite, or all are 0.
    """
    told = model(count)
    timed = told if isinstance(told, Timed) else Timed(told, told)
    for seconds in (timed.seconds, timed.single or timed.seconds):
        if not (seconds and all(0 <= each < math.inf for each in seconds) and sum(seconds)):
            raise DeviceError(
                f"a device must tell seconds greater than 0 of each of {count} runs, but told "
                f"{seconds[:5]}: see what times the runs there"
            )
    return timed


def half_interval(values: Sequence[float] | np.ndarray) -> float:
    """Half the 95% confidence interval of the median of `values`, by order statistics.

    The k-th smallest and the k-th largest of n values enclose the median unless fewer than k lie
    on one side, and how many do is binomial (n, 1/2): k is the largest that is safe to 2.5%.
    """
    n = len(values)
    k, cases = 0, 1  # in integers: of 2**n equally likely cases, those with at most k
    while 40 * cases <= 2**n:
        k += 1
        cases += math.comb(n, k)
    ordered = np.sort(values)
    k = max(k, 1)
    return float(ordered[n - k] - ordered[k - 1]) / 2


def _typical(runs: Sequence[float]) -> float:
    """What a run takes that is not held up, in seconds."""
    return float(np.percentile(runs, _QUANTILE))
