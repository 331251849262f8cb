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
the marginal likelihood; they are found anew only when there are a fifth more measurements.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from donna_ray.predictor.model import Floats
from donna_ray.search.block_features import BlockFeatures
from donna_ray.search.exact import Indices

__all__ = ["Surrogate"]

_CONSTANT = 10.0  # variance of the mean, in variances of the latencies
_PRIOR_SPREAD = 2.0  # standard deviation of each logarithm of a scale
_GROWTH = 1.2  # of the measurements, before scales are found anew
_STEPS = 25  # of the search for scales
_JITTER = 1e-9


@dataclass(frozen=True)
class _Fit:
    """What a fit leaves; of `count` standardised latencies."""

    architectures: Indices
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
        with threadpool_limits(1):  # the device may be this very CPU
            self._do_fit(architectures, np.asarray(latencies, dtype=float))

    def _do_fit(self, architectures: Indices, latencies: Floats) -> None:
        centre, spread = float(latencies.mean()), float(latencies.std()) or abs(latencies[0]) or 1.0
        scaled = (latencies - centre) / spread
        noise = (latencies / spread) ** 2
        parts = self._parts(architectures)
        if len(latencies) >= max(_GROWTH * self._scaled_at, 4):
            self._scales = _likeliest(parts, noise, scaled, self._prior, self._scales)
            self._scaled_at = len(latencies)
        covariance, _ = _covariance(parts, noise, self._scales)
        factor = cho_factor(covariance, lower=True)
        weights = cho_solve(factor, scaled)
        self._fit = _Fit(architectures, latencies, factor, weights, centre, spread)

    def tables(self) -> tuple[float, list[Floats]]:
        """A constant and the part of every block, (choices,) a stage, in ms: they add up.

        What neighbouring stages have in common is left out.
        """
        fit = self._known()
        tables = [
            fit.spread * (self._stage(number, fit.architectures).T @ fit.weights)
            for number in range(len(self._blocks))
        ]
        return fit.centre + fit.spread * _CONSTANT * float(fit.weights.sum()), tables

    def block_deviations(self) -> list[Floats]:
        """Standard deviation of what ``tables`` has of every block, (choices,) a stage, in ms."""
        fit = self._known()
        with threadpool_limits(1):
            found = []
            for number in range(len(self._blocks)):
                shared = self._stage(number, fit.architectures)
                explained = _explained(fit.factor, shared)
                work = np.exp(self._scales[-5]) * (self._shared[number] ** 2).sum(axis=1)
                variance = np.maximum(work + self._own_variance(number) - explained, 0)
                found.append(fit.spread * np.sqrt(variance))
        return found

    def predict(self, architectures: Indices, *, deviation: bool = True) -> tuple[Floats, Floats]:
        """Expected latency (m,) in ms of architectures (m, stages), and its standard deviation.

        The deviation is of the true latency, without the noise of a measurement; 0 if not asked
        for.
        """
        fit = self._known()
        with threadpool_limits(1):
            shared = self._cross(fit.architectures, architectures)
            mean = fit.centre + fit.spread * (shared.T @ fit.weights)
            if not deviation:
                return mean, np.zeros_like(mean)
            variance = self._prior_variance(architectures) - _explained(fit.factor, shared)
        return mean, fit.spread * np.sqrt(np.maximum(variance, 0))

    def pair_tables(self, kept: Sequence[Indices]) -> list[Floats]:
        """What neighbours have in common, in ms: (kept, kept) for stages 0 and 1, 1 and 2, ….

        Args:
            kept: the choices of each stage that it is wanted for.
        """
        fit = self._known()
        if self._neighbour is None:
            return []
        sums = self._common(fit.architectures).T @ fit.weights
        width = self._neighbour[0].shape[1]
        weights = fit.spread * np.exp(self._scales[-2]) * sums.reshape(width, width)
        rows = [table[each] for table, each in zip(self._neighbour, kept, strict=True)]
        return [first @ weights @ second.T for first, second in pairwise(rows)]

    def held_out(self) -> Floats:
        """Latency (n,) in ms of the measured ones, each predicted by a fit without it.

        The scales are those of all (Rasmussen and Williams 2006, equation 5.12).
        """
        fit = self._known()
        inverse = cho_solve(fit.factor, np.eye(len(fit.weights)))
        found: Floats = fit.latencies - fit.spread * fit.weights / inverse.diagonal()
        return found

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
        with threadpool_limits(1):
            covariance = self._cross(rows, rows)
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
                column = shared / np.sqrt(max(shared[index], 0) + noise + _JITTER)
                columns = np.column_stack([columns, column])
                left = np.maximum(left - column**2, 0)
                left[index] = -1
        return chosen

    def _known(self) -> _Fit:
        assert self._fit is not None, "fit comes first"
        return self._fit

    def _parts(self, architectures: Indices) -> list[Floats]:
        """The matrices that the scales multiply: three a stage, that of work, that of pairs."""
        parts = [
            part
            for blocks, column in zip(self._blocks, architectures.T, strict=True)
            for part in blocks.parts(column)
        ]
        work, common = self._work(architectures), self._common(architectures)
        return [*parts, work @ work.T, common @ common.T]

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

    def _stage(self, number: int, architectures: Indices) -> Floats:
        """Covariance of the measured ones with what a stage's blocks add: (n, choices)."""
        work = np.exp(self._scales[-5]) * self._work(architectures) @ self._shared[number].T
        return work + self._own(number, architectures)

    def _own(self, number: int, architectures: Indices) -> Floats:
        """The same without the work that is shared."""
        return self._blocks[number].mixed(self._mix(number))[architectures[:, number]]

    def _own_variance(self, number: int) -> Floats:
        return self._blocks[number].mixed(self._mix(number)).diagonal()

    def _cross(self, rows: Indices, columns: Indices) -> Floats:
        """Covariance (rows, columns) of architectures."""
        common = self._common(rows) @ self._common(columns).T
        total = np.exp(self._scales[-5]) * self._work(rows) @ self._work(columns).T
        total += _CONSTANT + np.exp(self._scales[-2]) * common
        for number in range(len(self._blocks)):
            total += self._own(number, rows)[:, columns[:, number]]
        return total

    def _prior_variance(self, architectures: Indices) -> Floats:
        work = (self._work(architectures) ** 2).sum(axis=1)
        common = (self._common(architectures) ** 2).sum(axis=1)
        total = _CONSTANT + np.exp(self._scales[-5]) * work + np.exp(self._scales[-2]) * common
        for number in range(len(self._blocks)):
            total += self._own_variance(number)[architectures[:, number]]
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


def _covariance(
    parts: Sequence[Floats], noise: Floats, scales: Floats
) -> tuple[Floats, list[Floats]]:
    """Of the measurements, (n, n), and its derivative by the logarithm of every scale."""
    values = np.exp(scales)
    work, smooth, own, pairs, level = values[-5:]
    stages = len(values) - 5
    by_scale, by_smooth, by_own = [], np.zeros_like(parts[0]), np.zeros_like(parts[0])
    for number in range(stages):
        linear, rbf, same = parts[3 * number : 3 * number + 3]
        by_scale.append(values[number] * (linear + smooth * rbf + own * same))
        by_smooth += values[number] * smooth * rbf
        by_own += values[number] * own * same
    shared, common = work * parts[-2], pairs * parts[-1]
    derivatives = [*by_scale, shared, by_smooth, by_own, common, np.diag(level * noise)]
    total = sum(by_scale) + shared + common + derivatives[-1] + _CONSTANT
    total[np.diag_indices(len(noise))] += _JITTER
    return total, derivatives


def _likeliest(
    parts: Sequence[Floats], noise: Floats, values: Floats, prior: Floats, start: Floats
) -> Floats:
    """Logarithms of the scales that maximise the marginal likelihood times a prior."""

    def loss(scales: Floats) -> tuple[float, Floats]:
        covariance, derivatives = _covariance(parts, noise, scales)
        factor = cho_factor(covariance, lower=True)
        weights = cho_solve(factor, values)
        inverse = cho_solve(factor, np.eye(len(values)))
        inner = inverse - np.outer(weights, weights)
        slopes = np.array([0.5 * np.einsum("nm,nm->", inner, each) for each in derivatives])
        likelihood = 0.5 * values @ weights + np.log(factor[0].diagonal()).sum()
        off = (scales - prior) / _PRIOR_SPREAD
        return float(likelihood + 0.5 * off @ off), slopes + off / _PRIOR_SPREAD

    bounds = [(each - 7, each + 7) for each in prior]
    bounds[-1] = (np.log(1e-3**2), np.log(0.3**2))
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
    )
    scales: Floats = found.x
    return scales
