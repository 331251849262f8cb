"""How good predictions of held-out architectures are, beside those of simple figures."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata, spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
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

Draws = NDArray[np.int64]
Estimate = dict[str, float]
"""`value`, and `low` and `high` of its 95% bootstrap interval."""

_RESAMPLES = 1000


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
    return _estimate(tau(predicted, measured), _taus, predicted, measured, seed)


def tau(predicted: Floats, measured: Floats) -> float:
    """Kendall's tau-b; 0 where all values of one side are equal."""
    value = float(kendalltau(predicted, measured).statistic)
    return 0.0 if np.isnan(value) else value


def _ranking(predicted: Floats, measured: Floats, seed: int) -> dict[str, Estimate]:
    constant = np.ptp(predicted) == 0 or np.ptp(measured) == 0
    rho = 0.0 if constant else float(spearmanr(predicted, measured).statistic)
    return {
        "kendall_tau": kendall_tau(predicted, measured, seed),
        "spearman": _estimate(rho, _rhos, predicted, measured, seed),
    }


def _closeness(predicted: Floats, measured: Floats, seed: int) -> dict[str, Estimate]:
    error = float(np.mean((predicted - measured) ** 2))
    share = 0.0 if np.ptp(measured) == 0 else float(r2_score(measured, predicted))
    return {
        "mse": _estimate(error, _errors, predicted, measured, seed),
        "r2": _estimate(share, _shares, predicted, measured, seed),
    }


def _estimate(
    value: float,
    of_draws: Callable[[Floats, Floats, Draws], Floats],
    predicted: Floats,
    measured: Floats,
    seed: int,
) -> Estimate:
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(measured), size=(_RESAMPLES, len(measured)))
    low, high = np.percentile(of_draws(predicted, measured, draws), [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


# One function for all resamples at once, as scipy's take them one by one: a hundred times as long.
# Each gives (resamples,) from (n,), (n,) and the drawn indices (resamples, n).


def _taus(predicted: Floats, measured: Floats, draws: Draws) -> Floats:
    """A pair counts as often as it was drawn; a sample drawn twice is a tie with itself."""
    often = np.stack([np.bincount(draw, minlength=len(measured)) for draw in draws]).astype(float)
    one = np.sign(predicted[:, None] - predicted)
    other = np.sign(measured[:, None] - measured)
    agreeing, first, second = (
        np.einsum("dn,nm,dm->d", often, pairs, often, optimize=True)
        for pairs in (one * other, one**2, other**2)
    )
    return _ratio(agreeing, np.sqrt(first * second))


def _rhos(predicted: Floats, measured: Floats, draws: Draws) -> Floats:
    one, other = (rankdata(values[draws], axis=1) for values in (predicted, measured))
    one -= one.mean(axis=1, keepdims=True)
    other -= other.mean(axis=1, keepdims=True)
    together = (one * other).sum(axis=1)
    return _ratio(together, np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1)))


def _errors(predicted: Floats, measured: Floats, draws: Draws) -> Floats:
    errors: Floats = ((predicted - measured) ** 2)[draws].mean(axis=1)
    return errors


def _shares(predicted: Floats, measured: Floats, draws: Draws) -> Floats:
    variances = measured[draws].var(axis=1)
    left = _ratio(_errors(predicted, measured, draws), variances)
    return np.where(variances > 0, 1 - left, 0.0)


def _ratio(upper: Floats, lower: Floats) -> Floats:
    return np.divide(upper, lower, out=np.zeros_like(upper), where=lower > 0)
