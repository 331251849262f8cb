"""How a latency is timed: blocks of runs, each beside a block of runs of a control model.

The speed of a shared host drifts by 10% within seconds, and any statistic of the runs alone
drifts with it. So a block of runs of a control model goes before each block of the candidate.
The control's latency at rest, its *baseline*, is measured once and kept. With b the blocks, c_b
and k_b the runs of candidate and control in block b, each block yields one figure, the candidate's
latency in units of the control's:

    figure_b = p20(c_b) / p20(k_b) * baseline

The latency reported, `median_ms`, is the median over the blocks; `p20_ms` and `p90_ms` are the
percentiles over the blocks, for on a shared host the spread of single runs tells about the
neighbours, not about the model. On such a host with 2 cores, one of them busy with other work,
12 measurements of a network of 0.4 ms had a coefficient of variation of 1 to 2% by this figure,
and of 7 to 17% by p20 or median of the runs alone.

On a dedicated device `interleave: false` halves the work: median, p20 and p90 are then those of
all runs.

Nothing here knows a clock or a device: the runs come from callables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ProtocolSettings", "Runs", "Timing", "baseline_ms", "time_candidate"]

Runs = Callable[[int], list[float]]
"""Does that many runs and returns the seconds that each took."""

_MIN_BLOCKS = 2
_BASELINE_BLOCKS = 40
_BASELINE_RUNS = 50
_WARMUP_SHARE = 0.1


class ProtocolSettings(BaseModel):
    """How much is run. A connector's own settings extend this class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blocks: int = Field(default=12, ge=_MIN_BLOCKS)
    runs_per_block: int = Field(default=15, ge=1)
    """Runs of the candidate in a block, and of the control; fewer if `max_seconds` is short."""
    warmup_runs: int = Field(default=10, ge=0)
    """Untimed runs of each model; they end early once they took a tenth of `max_seconds`."""
    max_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Budget of timed runs, in seconds; two blocks are run whatever they take."""
    interleave: bool = True
    """Run a control model beside the candidate. Say false on a device that nothing else uses."""


@dataclass(frozen=True)
class Timing:
    """The figures of one candidate, in milliseconds a run: see this module's description."""

    median_ms: float
    p20_ms: float
    p90_ms: float
    n: int
    """Timed runs of the candidate."""
    ci_percent: float
    """Half the 95% confidence interval of the blocks' median, in % of `median_ms`.

    A block counts by its figure, or without a control by the median of its runs.

    The interval is between two order statistics, so it assumes no distribution. With fewer than
    six blocks it is the whole range, which covers less than 95%.
    """
    control_p20_ms: float | None
    """The control's latency meanwhile: the median over blocks of p20; None if not interleaved."""

    def control_facts(self, control_baseline_ms: float | None) -> dict[str, float]:
        """The control's baseline and latency now, in ms, and how far it is off, in %."""
        if self.control_p20_ms is None or control_baseline_ms is None:
            return {}
        return {
            "control_baseline_ms": control_baseline_ms,
            "control_p20_ms": self.control_p20_ms,
            "control_drift_percent": 100 * (self.control_p20_ms / control_baseline_ms - 1),
        }


def baseline_ms(control: Runs, settings: ProtocolSettings, blocks: int = _BASELINE_BLOCKS) -> float:
    """The control's own latency in milliseconds: blocks of 50 runs, median of the p20s.

    Take it once for a model of device and keep it: it is the unit of all its measurements.
    """
    _warm_up(control, settings)
    return 1e3 * float(np.median([_p20(control(_BASELINE_RUNS)) for _ in range(blocks)]))


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
    """
    if not settings.interleave:
        control = None
    elif control is None or control_baseline_ms is None:
        raise ValueError(
            "interleave needs a control model and its baseline, but got none: "
            "calibrate the device first, or set interleave to false"
        )
    blocks, control_p20s = _run_blocks(candidate, control, settings)
    if not control_p20s:
        runs = 1e3 * np.concatenate(blocks)
        return _summarize(blocks, runs, [1e3 * float(np.median(block)) for block in blocks], None)
    assert control_baseline_ms is not None
    ratios = np.array([_p20(block) for block in blocks]) / control_p20s
    figures = control_baseline_ms * ratios
    return _summarize(blocks, figures, figures, 1e3 * float(np.median(control_p20s)))


def _run_blocks(
    candidate: Runs, control: Runs | None, settings: ProtocolSettings
) -> tuple[list[list[float]], list[float]]:
    """Runs the blocks in turn; returns the candidate's runs and the control's p20, in seconds."""
    if control is not None:
        _warm_up(control, settings)
    _warm_up(candidate, settings)
    runs = _affordable_runs(candidate, settings)
    blocks: list[list[float]] = []
    control_p20s: list[float] = []
    spent = 0.0
    while len(blocks) < settings.blocks and (
        len(blocks) < _MIN_BLOCKS or spent < settings.max_seconds
    ):
        if control is not None:
            control_runs = control(settings.runs_per_block)
            control_p20s.append(_p20(control_runs))
            spent += sum(control_runs)
        blocks.append(candidate(runs))
        spent += sum(blocks[-1])
    return blocks, control_p20s


def _warm_up(model: Runs, settings: ProtocolSettings) -> None:
    spent = 0.0
    for _ in range(settings.warmup_runs):
        spent += sum(model(1))
        if spent > _WARMUP_SHARE * settings.max_seconds:
            return


def _affordable_runs(candidate: Runs, settings: ProtocolSettings) -> int:
    """Runs a block, so that all blocks of the candidate fit into the budget; at least one."""
    seconds_a_run = max(sum(candidate(1)), 1e-9)
    affordable = int(settings.max_seconds / (settings.blocks * seconds_a_run))
    return max(1, min(settings.runs_per_block, affordable))


def _summarize(
    blocks: Sequence[Sequence[float]],
    latencies_ms: np.ndarray,
    block_figures_ms: Sequence[float] | np.ndarray,
    control_p20_ms: float | None,
) -> Timing:
    p20, median, p90 = (float(value) for value in np.percentile(latencies_ms, (20, 50, 90)))
    return Timing(
        median_ms=median,
        p20_ms=p20,
        p90_ms=p90,
        n=sum(map(len, blocks)),
        ci_percent=100 * _half_interval(block_figures_ms) / median,
        control_p20_ms=control_p20_ms,
    )


def _half_interval(values: Sequence[float] | np.ndarray) -> float:
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


def _p20(runs: Sequence[float]) -> float:
    return float(np.percentile(runs, 20))
