"""Latency as a sum over the stages, learnt from the measurements so far.

A Gaussian process (Bayesian regression in its dual form: a fit costs the cube of the number of
measurements, whatever the number of blocks). The covariance of two architectures is

    work * linear(sums of the shared features)
    + sum_s scale_s (linear_s + smooth * rbf_s + own * same_s)
    + pairs * linear(sums over s of the products of features of stages s and s + 1)

of their blocks: linear in what costs the same in every stage (work, by its kind); in stage s
linear in the blocks' features, a smooth deviation from that and a deviation of each block by
itself, all of them growing with the block's size; and what two neighbouring stages have in common.
All but the last adds up over the stages: blocks that were never measured have an estimate by their
features, and the exact front can be had. The noise is a share of the latency. The scales maximise
the marginal likelihood of 300 measurements at most; they are found anew only when there are a fifth
more, and from 200 on half as many more.

Callers limit the threads of the linear algebra (``one_thread``).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from donna_ray.predictor.model import Floats
from donna_ray.search.exact.front import Indices
from donna_ray.search.surrogate.block_features import BlockFeatures
from donna_ray.search.surrogate.likelihood import CONSTANT, JITTER, likeliest

__all__ = ["Surrogate"]

_GROWTH = 1.2  # of the measurements, before scales are found anew
_GROWTH_OF_MANY = 1.5  # likewise, from `_MANY` on
_MANY = 200
_SCALED = 300  # measurements that scales are found from, at most
_SURPRISE = 3.0  # standard deviations, beyond which a normal error is not expected


@dataclass(frozen=True)
class _Fit:
    """What a fit leaves; `work` and `common` are those of the architectures."""

    architectures: Indices
    work: Floats
    common: Floats
    latencies: Floats
    factor: tuple[Floats, bool]
    weights: Floats
    centre: float
    spread: float


class Surrogate:
    """Learns latency in ms. Not for several threads at once.

    Args:
        blocks: of the space.
        pairs: whether neighbouring stages may have something in common; if not, all adds up.
    """

    def __init__(self, blocks: BlockFeatures, *, pairs: bool = True) -> None:
        stages = len(blocks.own)
        self._blocks = [
            _StageKernels(own, size) for own, size in zip(blocks.own, blocks.sizes, strict=True)
        ]
        self._shared = [each / np.sqrt(max(each.shape[1], 1)) for each in blocks.shared]
        self._neighbour = None
        if pairs and stages > 1:
            width = np.sqrt(max(blocks.neighbour[0].shape[1], 1))
            self._neighbour = [each / width for each in blocks.neighbour]
        # logarithms of: a scale a stage, work, smooth, own, pairs, noise
        self._prior = np.log([*np.full(stages, 0.1 / stages), 1.0, 0.3, 0.1, 0.02, 0.02**2])
        self._scales = self._prior.copy()
        self._scaled_at = 0
        self._fit: _Fit | None = None
        self._tables: tuple[float, list[Floats]] | None = None  # of the fit, once asked for

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` was called."""
        return self._fit is not None

    def fit(self, architectures: Indices, latencies: Floats) -> None:
        """Learn from all measurements so far.

        Args:
            architectures: (n, stages), choice indices; n > 0.
            latencies: (n,), in ms.
        """
        latencies = np.asarray(latencies, dtype=float)
        centre, spread = float(latencies.mean()), float(latencies.std()) or abs(latencies[0]) or 1.0
        scaled = (latencies - centre) / spread
        noise = (latencies / spread) ** 2
        self._rescale(architectures, noise, scaled)
        work, common = self._work(architectures), self._common(architectures)
        covariance = self._shared_with(work, common, work, common)
        self._add_own(covariance, architectures, architectures)
        covariance[np.diag_indices(len(noise))] += np.exp(self._scales[-1]) * noise + JITTER
        factor = cho_factor(covariance, lower=True)
        weights = cho_solve(factor, scaled)
        self._tables = None
        self._fit = _Fit(architectures, work, common, latencies, factor, weights, centre, spread)

    def _rescale(self, architectures: Indices, noise: Floats, scaled: Floats) -> None:
        """Find the scales anew, if there are enough more measurements; from some, if many."""
        count = len(scaled)
        growth = _GROWTH if self._scaled_at < _MANY else _GROWTH_OF_MANY
        if count < max(growth * self._scaled_at, 4):
            return
        some = np.linspace(0, count - 1, min(count, _SCALED)).round().astype(int)
        parts = self._parts(architectures[some])
        self._scales = likeliest(parts, noise[some], scaled[some], self._prior, self._scales)
        self._scaled_at = count

    def tables(self) -> tuple[float, list[Floats]]:
        """A constant and the part of every block, (choices,) a stage, in ms: they add up.

        What neighbouring stages have in common is left out.
        """
        fit = self._known()
        if self._tables is None:
            constant = fit.centre + fit.spread * CONSTANT * float(fit.weights.sum())
            stages = range(len(self._blocks))
            own = [fit.spread * (self._stage(number).T @ fit.weights) for number in stages]
            self._tables = constant, own
        return self._tables

    def mean(self, architectures: Indices) -> Floats:
        """Expected latency (m,) in ms of architectures (m, stages); soon done for any number."""
        fit = self._known()
        constant, tables = self.tables()
        pairs = np.exp(self._scales[-2]) * (fit.common.T @ fit.weights)
        total = constant + fit.spread * self._common(architectures) @ pairs
        for table, choices in zip(tables, architectures.T, strict=True):
            total += table[choices]
        found: Floats = total
        return found

    def predict(self, architectures: Indices) -> tuple[Floats, Floats]:
        """The ``mean`` (m,) of architectures (m, stages), and its standard deviation.

        The deviation is of the true latency, without the noise of a measurement.
        """
        fit = self._known()
        work, common = self._work(architectures), self._common(architectures)
        shared = self._shared_with(fit.work, fit.common, work, common)
        self._add_own(shared, fit.architectures, architectures)
        mean = fit.centre + fit.spread * (shared.T @ fit.weights)
        prior = self._prior_variance(architectures, work, common)
        variance = prior - _explained(fit.factor, shared)
        return mean, fit.spread * np.sqrt(np.maximum(variance, 0))

    def held_out(self) -> Floats:
        """Latency (n,) in ms of the measured ones, each predicted by a fit without it.

        The scales are those of all (Rasmussen and Williams 2006, equation 5.12).
        """
        fit = self._known()
        inverse = cho_solve(fit.factor, np.eye(len(fit.weights)))
        found: Floats = fit.latencies - fit.spread * fit.weights / inverse.diagonal()
        return found

    def surprise(self) -> float:
        """How far errors are from normal: the share of their squares beyond 3 deviations.

        Errors are those of each measurement given the ones before it, in their deviations. Normal
        ones give 0.03; where a device does what the model does not know, a few have most of it.
        """
        fit = self._known()
        scaled = (fit.latencies - fit.centre) / fit.spread
        squares = solve_triangular(fit.factor[0], scaled, lower=True) ** 2
        return float(squares[squares > _SURPRISE**2].sum() / max(squares.sum(), JITTER))

    def spread_out(self, pool: Indices, taken: Indices, count: int) -> list[int]:
        """Rows of a pool whose latencies would tell most about those of the others.

        Each next one is that of the largest variance given those before (a pivoted Cholesky
        factor), with the scales that are known by now.

        Args:
            pool: (n, stages).
            taken: (m, stages), known already.
            count: rows wanted; at most n.
        """
        rows = np.concatenate([taken, pool])
        covariance = self._cross(rows)
        columns = np.empty((len(rows), 0))
        left = covariance.diagonal().copy()
        noise = np.exp(self._scales[-1])
        chosen: list[int] = []
        for step in range(len(taken) + min(count, len(pool))):
            index = step
            if step >= len(taken):
                index = len(taken) + int(left[len(taken) :].argmax())
                chosen.append(index - len(taken))
            shared = covariance[:, index] - columns @ columns[index]
            column = shared / np.sqrt(max(shared[index], 0) + noise + JITTER)
            columns = np.column_stack([columns, column])
            left = np.maximum(left - column**2, 0)
            left[index] = -1
        return chosen

    def _known(self) -> _Fit:
        assert self._fit is not None, "fit comes first"
        return self._fit

    def _parts(self, architectures: Indices) -> Floats:
        """The matrices that the scales multiply: three a stage, that of work, that of pairs."""
        count = len(architectures)
        parts = np.empty((3 * len(self._blocks) + 2, count, count))
        for number, blocks in enumerate(self._blocks):
            parts[3 * number : 3 * number + 3] = blocks.parts(architectures[:, number])
        for place, sums in ((-2, self._work(architectures)), (-1, self._common(architectures))):
            np.matmul(sums, sums.T, out=parts[place])
        return parts

    def _common(self, architectures: Indices) -> Floats:
        """Sums over neighbouring stages of their features' products, (n, features squared)."""
        if self._neighbour is None:
            return np.zeros((len(architectures), 1))
        columns = zip(self._neighbour, architectures.T, strict=True)
        rows = [table[choices] for table, choices in columns]
        pairs = pairwise(rows)
        total: Floats = sum(np.einsum("na,nb->nab", first, second) for first, second in pairs)
        return total.reshape(len(architectures), -1)

    def _work(self, architectures: Indices) -> Floats:
        """Sums of the shared features, (n, features)."""
        columns = zip(self._shared, architectures.T, strict=True)
        total: Floats = np.asarray(sum(table[each] for table, each in columns), dtype=float)
        return total

    def _mix(self, number: int) -> Floats:
        """What linear, smooth and own are multiplied by in a stage."""
        scale, (smooth, own) = np.exp(self._scales[number]), np.exp(self._scales[-4:-2])
        return scale * np.array([1.0, smooth, own])

    def _stage(self, number: int) -> Floats:
        """Covariance of the measured ones with what a stage's blocks add: (n, choices)."""
        fit = self._known()
        work = np.exp(self._scales[-5]) * fit.work @ self._shared[number].T
        own: Floats = work + self._own(number, fit.architectures)
        return own

    def _own(self, number: int, architectures: Indices) -> Floats:
        """The same without the work that is shared."""
        return self._blocks[number].mixed(self._mix(number))[architectures[:, number]]

    def _cross(self, rows: Indices) -> Floats:
        """Covariance (n, n) of architectures."""
        work, common = self._work(rows), self._common(rows)
        total = self._shared_with(work, common, work, common)
        self._add_own(total, rows, rows)
        return total

    def _shared_with(
        self, work: Floats, common: Floats, other_work: Floats, other_common: Floats
    ) -> Floats:
        """Covariance (rows, columns) without what a stage's blocks have by themselves.

        A column lies in one piece, as LAPACK takes it and as ``_add_own`` fills it.
        """
        total = other_work @ (np.exp(self._scales[-5]) * work).T
        total += other_common @ (np.exp(self._scales[-2]) * common).T
        total += CONSTANT
        shared: Floats = total.T
        return shared

    def _add_own(self, total: Floats, rows: Indices, columns: Indices) -> None:
        by_column = total.T
        for number in range(len(self._blocks)):
            by_column += np.ascontiguousarray(self._own(number, rows).T)[columns[:, number]]

    def _prior_variance(self, architectures: Indices, work: Floats, common: Floats) -> Floats:
        shared = np.exp(self._scales[-5]) * (work**2).sum(axis=1)
        total = CONSTANT + shared + np.exp(self._scales[-2]) * (common**2).sum(axis=1)
        for number in range(len(self._blocks)):
            own = self._blocks[number].mixed(self._mix(number)).diagonal()
            total += own[architectures[:, number]]
        return total


class _StageKernels:
    """Covariances of the blocks of a stage."""

    def __init__(self, features: Floats, sizes: Floats) -> None:
        self._features = features / np.sqrt(max(features.shape[1], 1))
        self._sizes = sizes
        self._mix, self._mixed = np.zeros(3), np.zeros((len(sizes), len(sizes)))

    def parts(self, choices: Indices) -> list[Floats]:
        """Linear, smooth and same of some of them, (n, n) each."""
        features, sizes = self._features[choices], self._sizes[choices]
        products, grown = features @ features.T, np.outer(sizes, sizes)
        squares = products.diagonal()
        distances = np.maximum(squares[:, None] + squares - 2 * products, 0)
        same = choices[:, None] == choices
        return [grown * products, grown * np.exp(-distances / 2), grown * same]

    def mixed(self, mix: Floats) -> Floats:
        """The sum of all three, each times its scale, (choices, choices)."""
        if not np.array_equal(mix, self._mix):
            self._mix = mix
            parts = self.parts(np.arange(len(self._sizes)))
            self._mixed = sum(
                (scale * part for scale, part in zip(mix, parts, strict=True)), np.zeros(())
            )
        return self._mixed


def _explained(factor: tuple[Floats, bool], shared: Floats) -> Floats:
    half = solve_triangular(factor[0], shared, lower=True)
    explained: Floats = np.einsum("nm,nm->m", half, half)
    return explained
