"""How good predictions of held-out architectures are, beside those of simple figures."""

from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap, rankdata
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from donna_ray.predictor.model import Floats

__all__ = [
    "baseline_quality",
    "comparable",
    "held_out_quality",
    "kendall_tau",
    "quality",
    "tau",
]

Estimate = dict[str, float]
"""`value`, and `low` and `high` of its 95% bootstrap interval."""

_RESAMPLES = 1000
_BATCH = 100  # of them at once, for the memory of all pairs of samples


def quality(predicted: Floats, measured: Floats, seed: int) -> dict[str, Estimate]:
    """Kendall's tau-b, Spearman's rho, mean squared error and R2 of held-out predictions.

    Args:
        predicted: (n,), by one fit to others.
        measured: (n,), fractions.
        seed: of the resamples.

    Returns:
        `kendall_tau`, `spearman`, `mse`, `r2`. Both correlations are 0 where all values of one side
        are equal, R2 where all measured ones are.
    """
    return {**_ranking(predicted, measured, seed), **_closeness(predicted, measured, seed)}


def held_out_quality(held_out: Floats, measured: Floats, seed: int) -> dict[str, Estimate]:
    """The same of leave-one-out predictions, which are ranked as ``comparable`` makes them."""
    ranking = _ranking(comparable(held_out, measured), measured, seed)
    return {**ranking, **_closeness(held_out, measured, seed)}


def comparable(held_out: Floats, measured: Floats) -> Floats:
    """Leave-one-out predictions (n,), each less the mean accuracy of the others.

    The fit without a good sample has a lower mean than that without a bad one, so the predictions
    as they are order even pure noise, and order it backwards.

    Args:
        held_out: (n,), each by a fit to the other samples.
        measured: (n,).
    """
    return held_out - (measured.sum() - measured) / (len(measured) - 1)


def baseline_quality(figure: Floats, measured: Floats, seed: int) -> dict[str, Estimate]:
    """The same of a figure that should rise with accuracy.

    Args:
        figure: (n,), such as params; it ranks as it is, and is close as a line through it is that
            was fitted to the other architectures.
        measured: (n,), fractions.
        seed: of the resamples.
    """
    line = cross_val_predict(LinearRegression(), figure[:, None], measured, cv=LeaveOneOut())
    return {**_ranking(figure, measured, seed), **_closeness(line, measured, seed)}


def kendall_tau(predicted: Floats, measured: Floats, seed: int) -> Estimate:
    """Kendall's tau-b with its 95% bootstrap interval (percentiles over resampled samples).

    Returns:
        `value`, `low`, `high`; 0 where all values of one side are equal.
    """
    return _estimate(_tau, predicted, measured, seed)


def tau(predicted: Floats, measured: Floats) -> float:
    """Kendall's tau-b; 0 where all values of one side are equal."""
    return float(_tau(predicted, measured))


def _ranking(predicted: Floats, measured: Floats, seed: int) -> dict[str, Estimate]:
    statistics = {"kendall_tau": _tau, "spearman": _rho}
    return {name: _estimate(each, predicted, measured, seed) for name, each in statistics.items()}


def _closeness(predicted: Floats, measured: Floats, seed: int) -> dict[str, Estimate]:
    statistics = {"mse": _error, "r2": _share}
    return {name: _estimate(each, predicted, measured, seed) for name, each in statistics.items()}


def _estimate(
    statistic: Callable[..., Floats], predicted: Floats, measured: Floats, seed: int
) -> Estimate:
    low, high = bootstrap(
        (predicted, measured),
        statistic,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    value = float(statistic(predicted, measured))
    return {"value": value, "low": float(low), "high": float(high)}


# Statistics of all resamples at once, (..., n) to (...): scipy's and sklearn's own take one after
# the other, which is a hundred times as long.


def _tau(predicted: Floats, measured: Floats, axis: int = -1) -> Floats:
    one, other = (
        np.sign(each[..., :, None] - each[..., None, :]) for each in (predicted, measured)
    )
    agreeing, first, second = (
        pairs.sum((axis - 1, axis)) for pairs in (one * other, one**2, other**2)
    )
    return _ratio(agreeing, np.sqrt(first * second))


def _rho(predicted: Floats, measured: Floats, axis: int = -1) -> Floats:
    one, other = (rankdata(values, axis=axis) for values in (predicted, measured))
    one -= one.mean(axis=axis, keepdims=True)
    other -= other.mean(axis=axis, keepdims=True)
    variances = (one**2).sum(axis=axis) * (other**2).sum(axis=axis)
    return _ratio((one * other).sum(axis=axis), np.sqrt(variances))


def _error(predicted: Floats, measured: Floats, axis: int = -1) -> Floats:
    return np.mean((predicted - measured) ** 2, axis=axis)


def _share(predicted: Floats, measured: Floats, axis: int = -1) -> Floats:
    variances = measured.var(axis=axis)
    left = _ratio(_error(predicted, measured, axis), variances)
    return np.where(variances > 0, 1 - left, 0.0)


def _ratio(upper: Floats, lower: Floats) -> Floats:
    """0 where the lower one is 0, as where all values of one side are equal."""
    return np.divide(upper, lower, out=np.zeros_like(upper), where=lower > 0)
