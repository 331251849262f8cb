"""The timing protocol, by runs that are made up."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from device_farm import DeviceError
from device_farm.timing.protocol import (
    ProtocolSettings,
    Runs,
    Timed,
    baseline_ms,
    time_candidate,
)


def runs_of(seconds: Iterable[float]) -> Runs:
    """Runs that take the given seconds, one after the other, and the last ones for ever."""
    supply = iter(seconds)
    return lambda count: list(itertools.islice(supply, count))


def settings(**values: object) -> ProtocolSettings:
    plain = {"warmup_runs": 0, "precision_percent": 1000}
    return ProtocolSettings.model_validate({**plain, **values})


def fluctuating(host: Sequence[float], felt: float = 1.0) -> Iterator[float]:
    """Runs of 4 ms, 6 a block, on a host that is so many times slower in each."""
    yield 0.004  # to learn what a run takes
    yield from (0.004 * slowness**felt for slowness in host for _ in range(6))


def test_plain_figures_are_percentiles_in_milliseconds() -> None:
    block = [0.001, 0.002, 0.003, 0.004, 0.005, 0.006]
    candidate = runs_of(itertools.chain([0.001], itertools.cycle(block)))
    timing = time_candidate(
        candidate, None, None, settings(blocks=4, runs_per_block=6, interleave=False)
    )
    assert timing.blocks_p20_ms == timing.blocks_p90_ms == pytest.approx(3.5)
    assert timing.median_ms == pytest.approx(3.5)
    assert timing.p90_ms == pytest.approx(6.0)
    assert timing.p99_ms == pytest.approx(6.0)
    assert (timing.n, timing.ci_percent, timing.control_ms) == (24, 0.0, None)


def test_drift_of_the_control_is_divided_out() -> None:
    """The host slows down from block to block, by up to 2x; the figure does not change."""
    slowness = [1 + block / 10 for block in range(11)]
    candidate = runs_of([0.004, *(0.004 * s for s in slowness for _ in range(5))])
    control = runs_of(0.001 * s for s in slowness for _ in range(5))
    timing = time_candidate(candidate, control, 1.0, settings(blocks=11, runs_per_block=5))
    assert timing.blocks_p20_ms == pytest.approx(4.0)
    assert timing.median_ms == pytest.approx(4.0)
    assert timing.blocks_p90_ms == timing.p99_ms == pytest.approx(4.0)
    assert timing.ci_percent == pytest.approx(0.0, abs=1e-9)
    assert timing.control_ms == pytest.approx(1.5)


def test_runs_that_were_held_up_are_the_tail_but_do_not_count() -> None:
    """A third of the runs of each block waits for a neighbour."""
    candidate = runs_of([0.004, *([0.004] * 4 + [0.04] * 2) * 12])
    control = runs_of(([0.001] * 4 + [0.01] * 2) * 12)
    timing = time_candidate(candidate, control, 1.0, settings(runs_per_block=6))
    assert timing.median_ms == timing.blocks_p90_ms == pytest.approx(4.0)
    assert timing.p90_ms == timing.p99_ms == pytest.approx(40.0)


@pytest.mark.parametrize("single", [None, [0.003, 0.003, 0.003, 0.03, 0.06]])
def test_the_tail_is_of_single_runs_by_the_wall_clock(single: list[float] | None) -> None:
    """The figure is of CPU time. On a host half as fast as at rest both are as at rest."""

    def candidate(count: int) -> Timed:
        return Timed([0.002] * count, single)

    control = runs_of(itertools.repeat(0.001))
    timing = time_candidate(candidate, control, 0.5, settings(runs_per_block=5))
    facts = timing.control_facts(0.5)
    assert timing.median_ms == pytest.approx(1.0)
    assert facts["control_drift_percent"] == pytest.approx(100.0)
    if single is None:
        assert timing.p90_ms is timing.p99_ms is None
        assert "wall_p90_ms" not in facts
    else:
        assert facts["wall_p90_ms"] == pytest.approx(60.0)
        assert timing.p90_ms == pytest.approx(30.0)
        assert timing.p99_ms == pytest.approx(30.0)


def test_the_median_is_never_above_the_tail() -> None:
    """However far the control is off its baseline, and however few the runs."""
    random = np.random.default_rng(3)
    for runs in (1, 2, 7):
        candidate = runs_of(random.lognormal(-5, 0.5, 1000))
        control = runs_of(random.lognormal(-7, 0.3, 1000))
        limits = settings(blocks=2, runs_per_block=runs)
        timing = time_candidate(candidate, control, 2.0, limits)
        assert timing.p90_ms is not None
        assert timing.p99_ms is not None
        assert timing.median_ms <= timing.p90_ms <= timing.p99_ms


@pytest.mark.parametrize("lie", [[0.001, -0.002], [float("nan")] * 2, [0.0, 0.0], []])
@pytest.mark.parametrize("of_single_runs", [True, False])
def test_figures_that_cannot_be_seconds_are_refused(lie: list[float], of_single_runs: bool) -> None:
    told = Timed([0.001] * 2, lie or [0.0]) if of_single_runs else lie
    with pytest.raises(DeviceError, match="seconds greater than 0 of each of 1 runs"):
        time_candidate(lambda _: told, None, None, settings(interleave=False))


def test_the_spread_is_over_blocks() -> None:
    candidate = runs_of([0.01, *(1e-3 * m for m in range(1, 12) for _ in range(3))])
    control = runs_of(itertools.repeat(0.001))
    timing = time_candidate(candidate, control, 1.0, settings(blocks=11, runs_per_block=3))
    assert timing.blocks_p20_ms == pytest.approx(3.0)
    assert timing.median_ms == pytest.approx(6.0)
    assert timing.blocks_p90_ms == pytest.approx(10.0)


def test_figures_are_in_units_of_the_baseline() -> None:
    timing = time_candidate(
        runs_of(itertools.repeat(0.006)), runs_of(itertools.repeat(0.002)), 1.0, settings()
    )
    assert timing.blocks_p20_ms == timing.p99_ms == pytest.approx(3.0)


def test_confidence_interval_is_between_order_statistics() -> None:
    """Of 12 medians the third and the tenth enclose the true one in 96% of cases."""
    medians = [float(m) for m in range(1, 13)]
    candidate = runs_of([0.01, *(1e-3 * m for m in medians for _ in range(3))])
    timing = time_candidate(
        candidate, None, None, settings(blocks=12, runs_per_block=3, interleave=False)
    )
    assert timing.median_ms == pytest.approx(6.5)
    assert timing.ci_percent == pytest.approx(100 * (10 - 3) / 2 / 6.5)


def test_few_blocks_give_the_whole_range() -> None:
    candidate = runs_of([0.01, *(1e-3 * m for m in (2, 4, 3) for _ in range(2))])
    timing = time_candidate(
        candidate, None, None, settings(blocks=3, runs_per_block=2, interleave=False)
    )
    assert timing.ci_percent == pytest.approx(100 / 3)


def test_the_interval_is_no_narrower_than_what_figures_are_rounded_to() -> None:
    """A run takes 3.42 ms, of which a program prints whole ones; more blocks would not help."""
    random = np.random.default_rng(0)

    def candidate(count: int) -> Timed:
        figures = np.round(random.normal(3.42, 0.02, count)) / 1e3
        return Timed(figures.tolist(), figures.tolist(), resolution=1e-3)

    timing = time_candidate(candidate, None, None, settings(interleave=False, precision_percent=2))
    assert (timing.median_ms, timing.n) == (3.0, 12 * 15)
    assert timing.ci_percent == pytest.approx(100 / 3)


def test_a_slow_model_gets_fewer_runs_a_block() -> None:
    timing = time_candidate(
        runs_of(itertools.repeat(0.25)), None, None, settings(interleave=False, max_seconds=6)
    )
    assert timing.n == 12 * 2


def test_a_very_slow_model_gets_two_blocks_of_one_run() -> None:
    timing = time_candidate(
        runs_of(itertools.repeat(60.0)), None, None, settings(interleave=False, max_seconds=6)
    )
    assert timing.n == 2


def test_warm_up_is_not_counted_and_ends_early() -> None:
    asked: list[int] = []

    def candidate(count: int) -> list[float]:
        asked.append(count)
        return [0.4] * count

    protocol = ProtocolSettings(blocks=2, max_seconds=8, warmup_runs=10, interleave=False)
    assert time_candidate(candidate, None, None, protocol).n == 2 * 10
    assert asked == [1, 1, 1, 1, 10, 10]  # three for warm-up, one to learn what a run takes


def test_warm_up_goes_on_for_its_seconds() -> None:
    asked: list[int] = []

    def candidate(count: int) -> list[float]:
        asked.append(count)
        return [0.1] * count

    protocol = settings(blocks=2, max_seconds=8, warmup_seconds=0.45, interleave=False)
    time_candidate(candidate, None, None, protocol)
    assert asked == [1] * 5 + [1] + [15] * 2


def test_baseline_is_that_of_the_quiet_rounds() -> None:
    """A host that is busy for the first three of its rounds of 8 blocks, or in some runs."""
    rounds = [0.0013] * 50 * 8 * 3 + ([0.001] * 40 + [0.009] * 10) * 8 * 2
    assert baseline_ms(runs_of(rounds), settings()) == pytest.approx(1.0)


def test_baseline_of_rounds_that_never_agree_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    lengths = [0.001 * 1.05**number for number in range(20)]
    supply = runs_of(length for length in lengths for _ in range(50 * 8))
    assert baseline_ms(supply, settings()) == pytest.approx(1.0)
    assert "of 20 rounds of the control model at rest the two lowest, 1 and 1.05 ms" in caplog.text


def test_baseline_is_taken_until_two_rounds_agree() -> None:
    lengths = [0.003, 0.0026, 0.0023, 0.002, 0.0016, 0.0013, 0.001, 0.00101]
    asked = itertools.count()
    supply = runs_of(length for length in lengths for _ in range(50 * 8))

    def control(count: int) -> list[float]:
        next(asked)
        return supply(count)

    assert baseline_ms(control, settings()) == pytest.approx(1.0)
    assert next(asked) == 8 * len(lengths)


def test_a_model_that_feels_half_of_it_is_corrected_by_half() -> None:
    host = np.exp(np.random.default_rng(0).normal(0.2, 0.1, 48))
    control = runs_of(0.001 * slowness for slowness in host for _ in range(6))
    candidate = runs_of(fluctuating(host, felt=0.5))
    timing = time_candidate(candidate, control, 1.0, settings(blocks=48, runs_per_block=6))
    assert timing.median_ms == pytest.approx(4.0, rel=0.02)
    assert timing.sensitivity == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("noise", "least", "most"), [(0.001, 12, 12), (0.08, 13, 47), (1, 48, 48)])
def test_blocks_are_run_until_the_latency_is_known(noise: float, least: int, most: int) -> None:
    host = np.exp(np.random.default_rng(1).normal(0, noise, 48))
    timing = time_candidate(
        runs_of(fluctuating(host)),
        None,
        None,
        settings(runs_per_block=6, precision_percent=2, interleave=False, max_seconds=1e9),
    )
    assert least <= timing.n / 6 <= most
    assert (timing.ci_percent <= 2) == (most < 48)


def test_what_is_not_known_in_time_says_so() -> None:
    host = np.exp(np.random.default_rng(1).normal(0, 0.3, 48))
    limits = settings(runs_per_block=6, precision_percent=2, interleave=False, max_seconds=0.4)
    timing = time_candidate(runs_of(fluctuating(host)), None, None, limits)
    assert timing.n / 6 < 20
    assert timing.ci_percent > 2


def test_a_block_of_a_short_model_takes_5_ms() -> None:
    timing = time_candidate(runs_of(itertools.repeat(2e-5)), None, None, settings(interleave=False))
    assert timing.n == 12 * 250


def test_interleaving_without_baseline_is_refused() -> None:
    forever = runs_of(itertools.repeat(0.001))
    with pytest.raises(ValueError, match="calibrate"):
        time_candidate(forever, forever, None, settings())


@pytest.mark.parametrize("fault", [{"blocks": 1}, {"max_seconds": 0}, {"rounds": 3}])
def test_unusable_settings_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fault))):
        ProtocolSettings.model_validate(fault)
