"""The front is measured again: what a search chose by single measurements was partly lucky.

Of many networks near a limit, the one that is held to keep it is the one whose measurement erred
most. So the networks that may be on the front, by the surrogate's posterior, and the reference are
measured anew, in rounds: all of them once, then all once more, so that a slow phase of the host
hits all alike. Only these measurements count for the front, and each network has the interval that
its rounds give. The farm keeps each round under a number of its own: a process that goes on after
another measures only what is missing.

A host that does other work meanwhile slows some networks more than others, which the control model
does not see (`scripts/bench_timing.py`). What was measured so is measured again later, up to as
many rounds more, and those that were disturbed least count.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import t as student

from donna_ray.errors import DonnaError
from donna_ray.latency.farm import LatencyFarm, Unmeasured
from donna_ray.latency.figures import Latency, disturbed_percent, peak_memory
from donna_ray.latency.quantised import AnyLowering
from donna_ray.predictor.model import Floats
from donna_ray.search.ask_tell import Search
from donna_ray.search.exact.front import Indices, nondominated
from donna_ray.search.strategies.candidates import informative
from donna_ray.search.study.ledger import architecture_of
from donna_ray.search.surrogate.model import Surrogate
from donna_ray.search.surrogate.threads import one_thread
from donna_ray.space import Architecture

__all__ = [
    "ROUNDS",
    "Rounds",
    "Verification",
    "contenders",
    "most_verified",
    "repeated",
    "verify",
]

ROUNDS = 3
_MOST, _LEAST, _SHARE = 64, 8, 4  # networks: a fourth of the candidates, within these
_DRAWS = 256  # of all latencies, by the posterior
_UNLIKELY = 0.02  # probability of being on the front, below which a network is left out
_CONFIDENCE = 0.95
_DISTURBED = 25.0  # percent of the host's CPUs that other processes take; a search itself takes 5


def most_verified(candidates: int) -> int:
    """How many networks are measured again at most, after a search of so many candidates."""
    return min(max(candidates // _SHARE, _LEAST), _MOST)


def contenders(search: Search) -> list[Architecture]:
    """Measured networks that may be on the front, the fastest first; those likeliest to be, if
    there are many, evenly over the range of latency.

    The probability is that of draws of the surrogate's posterior, all networks at once. Some
    measured network keeps the limit on memory (see ``check_measured``).
    """
    limit_mb = search.setup.problem.memory_limit_mb
    trials = search.ledger.trials_measured()
    if limit_mb is not None:
        memory = [peak_memory(trial.user_attrs["latency"]) for trial in trials]
        trials = [trial for trial, own in zip(trials, memory, strict=True) if own <= limit_mb]
    rows = np.array([architecture_of(trial.params) for trial in trials])
    values = np.array([trial.values for trial in trials])
    with one_thread():
        mean, deviation = _posterior(search, rows, values)
    generator = np.random.default_rng(search.setup.seed)
    latencies = mean + deviation * generator.normal(size=(_DRAWS, len(rows)))
    chance = _chances(values, latencies, search.setup.problem.latency_limit_ms)
    likely = np.flatnonzero(chance >= min(_UNLIKELY, chance.max()))
    likely = likely[np.argsort(mean[likely], kind="stable")]
    groups = np.array_split(likely, min(most_verified(len(rows)), len(likely)))
    return [tuple(map(int, rows[group[chance[group].argmax()]])) for group in groups]


def _posterior(search: Search, rows: Indices, values: Floats) -> tuple[Floats, Floats]:
    surrogate = Surrogate(search.setup.problem.features)
    kept = informative(values[:, 0], values[:, 1])
    surrogate.fit(rows[kept], values[kept, 1])
    return surrogate.predict(rows)


def _chances(values: Floats, latencies: Floats, limit_ms: float | None) -> Floats:
    """Of each network, the share of draws in which it is on the front within the limit.

    Where none keeps the limit, the fastest is: an error is to name it.

    Args:
        values: (n, objectives); of latency only the draws count.
        latencies: (draws, n), in ms.
    """
    counts = np.zeros(len(values))
    limit = np.inf if limit_ms is None else limit_ms
    for latency in latencies:
        kept = np.flatnonzero(latency <= max(limit, latency.min()))
        costs = np.column_stack([latency, values[:, 2:]])[kept]
        counts[kept[nondominated(values[kept, 0], costs)]] += 1
    return counts / len(latencies)


Rounds = dict[Architecture | None, list[Latency]]
"""Measurements of each network, one a round; those of the reference under None."""


class Verification:
    """Measures the front of one search again.

    Attributes:
        rounds: what is measured so far.
        networks: see ``contenders``; of a record all that are measured.
        failure: why it cannot go on, or None.

    Args:
        search: it has measured something.
        reference: model of the reference.
        lowering: of networks to models.
        farm: the way to the search's device.
    """

    def __init__(
        self, search: Search, reference: bytes, lowering: AnyLowering, farm: LatencyFarm
    ) -> None:
        # Nothing is measured again of a record, so that a lucky measurement stays what it is.
        self.networks = contenders(search) if farm.repeats else list(search.ledger.measured)
        self.rounds: Rounds = {}
        self.failure: DonnaError | None = None
        self._is_over = False
        problem = search.setup.problem
        self._space, self._with_memory = problem.space, problem.memory_limit_mb is not None
        self._reference, self._lowering, self._farm = reference, lowering, farm
        self._asked: deque[tuple[Architecture | None, int, Any]] = deque()
        self._ahead = 2 * farm.devices() + 2  # so that none of them waits

    @property
    def rounds_due(self) -> int:
        """How often each is measured, unless it is disturbed."""
        return ROUNDS if self._farm.repeats else 1  # of a record all would be the same

    def due(self, repeat: int) -> list[Architecture | None]:
        """What is measured in a round: all, then what lacks rounds that were not disturbed."""
        if repeat <= self.rounds_due:
            return [None, *self.networks]
        if self._is_over or not self._farm.repeats:
            return []
        return [network for network, own in self.rounds.items() if self._lacks(own)]

    def _lacks(self, own: Sequence[Latency]) -> bool:
        disturbed = sum(disturbed_percent(each) >= _DISTURBED for each in own)
        return disturbed > 0 and len(own) - disturbed < ROUNDS

    def ask(self, network: Architecture | None, repeat: int) -> None:
        """Have a network measured, or the reference, unless the device is out."""
        if not self._is_over:
            asked = self._farm.submit(self._model(network), repeat)
            self._asked.append((network, repeat, asked))
            self.settle(self._ahead)

    def _model(self, network: Architecture | None) -> bytes:
        return self._lowering.model(self._space.specs(network)) if network else self._reference

    def settle(self, most: int = 0) -> None:
        """Wait until at most so many of those asked for are under way."""
        while len(self._asked) > most:
            network, repeat, asked = self._asked.popleft()
            try:
                (latency,) = self._farm.settle([asked])
                if network and self._with_memory:
                    latency = self._farm.with_memory(self._model(network), latency)
            except DonnaError as error:
                self._end(repeat, error)
                continue
            if not isinstance(latency, Unmeasured):
                self.rounds.setdefault(network, []).append(latency)
            elif network is None:
                out = DonnaError(
                    f"The reference must be measured again, but cannot be: {latency.reason}. Mend "
                    "the device. What is measured is kept: the same command goes on."
                )
                self._end(repeat, out)

    def _end(self, repeat: int, error: DonnaError) -> None:
        """No more is asked for; the first rounds must be there, those beyond need not."""
        self._is_over = True
        if repeat <= ROUNDS:
            self.failure = self.failure or error

    def disturbed_percent(self) -> float | None:
        """What other work took of the host in the median round, if that disturbs; else None."""
        rounds = [disturbed_percent(each) for own in self.rounds.values() for each in own]
        typical = median(rounds) if rounds else 0.0
        return typical if typical >= _DISTURBED else None


def verify(
    verifications: Sequence[Verification], say: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Measure all rounds, of all at once; yields at each turn of the first ones.

    One that fails has its `failure`.

    Args:
        verifications: of searches that have ended.
        say: called with a line before networks are measured once more than that.
    """
    for repeat in range(1, ROUNDS + 1):
        for turn in zip_longest(*(each.due(repeat) for each in verifications), fillvalue=()):
            for each, network in zip(verifications, turn, strict=True):
                if network != ():
                    each.ask(network, repeat)
            yield
    for each in verifications:
        each.settle()
    for each in verifications:  # one after the other: devices of one host are other work, too
        _measure_disturbed(each, say)


def _measure_disturbed(verification: Verification, say: Callable[[str], None]) -> None:
    for repeat in range(ROUNDS + 1, 2 * ROUNDS + 1):
        if due := verification.due(repeat):
            say(f"  {len(due)} networks were measured beside other work on the host: once more")
        for network in due:
            verification.ask(network, repeat)
        verification.settle()
    rounds = verification.rounds.items()
    verification.rounds = {network: _quietest(own) for network, own in rounds}


def _quietest(own: Sequence[Latency]) -> list[Latency]:
    """The rounds that were disturbed least, in their order."""
    numbers = sorted(range(len(own)), key=lambda number: disturbed_percent(own[number]))
    return [own[number] for number in sorted(numbers[:ROUNDS])]


def repeated(rounds: Sequence[Sequence[Latency]]) -> list[Latency]:
    """The rounds of each network as one measurement.

    Its figures are the means of the rounds', its runs their sum, and its interval Student's, by
    how much the rounds differ: half by its own, half by those of all networks, in percent. Of a
    single round the interval is at least its own.

    Args:
        rounds: of each network, one or more.
    """
    medians = [np.array([each["median_ms"] for each in own]) for own in rounds]
    squares = [float(((own / own.mean() - 1) ** 2).sum()) for own in medians]
    freedom = sum(len(own) - 1 for own in medians)
    shared = sum(squares) / max(freedom, 1)
    return [
        {**_mean(own), "ci_percent": _interval(own, square, shared, freedom)}
        for own, square in zip(rounds, squares, strict=True)
    ]


def _interval(own: Sequence[Latency], square: float, shared: float, freedom: int) -> float:
    """Half of it in percent; the freedom of the mixed variance is Satterthwaite's."""
    more = len(own) - 1
    if not more:
        width = student.ppf((1 + _CONFIDENCE) / 2, max(freedom, 1)) * np.sqrt(shared)
        return max(100 * float(width), *(each.get("ci_percent", 0.0) for each in own))
    variance = (square / more + shared) / 2
    quantile = student.ppf((1 + _CONFIDENCE) / 2, min(4 * more, freedom))
    return float(100 * quantile * np.sqrt(variance / len(own)))


def _mean(own: Sequence[Latency]) -> Latency:
    """The last one's facts, but of each figure the mean, and of `n` the sum."""
    figures = {
        name: float(np.mean([each[name] for each in own]))
        for name in own[-1]
        if all(isinstance(each.get(name), float) for each in own)
    }
    return {**own[-1], **figures, "n": sum(each.get("n", 1) for each in own)}
