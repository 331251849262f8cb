"""The linear accuracy predictor: second order in the stages' NSR (DONNA, section 3.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from donna_ray.artifacts import Artifact, Files, StepFolder, finished_inputs, write_json
from donna_ray.assemble import library_space
from donna_ray.finetune import FinetuneJob, finetune, jobs_of, network_store
from donna_ray.run import Run
from donna_ray.space import encode

__all__ = ["AccuracyPredictor", "choice_table", "fit", "kendall_tau", "predictor_step"]

Floats = NDArray[np.float64]

_ALPHAS = np.logspace(-3, 3, 13)  # of the ridge; leave-one-out cross-validation chooses
_RESAMPLES = 1000


@dataclass(frozen=True)
class AccuracyPredictor:
    """accuracy = intercept + sum over terms of coefficient * product of NSR ** power.

    Attributes:
        powers: (terms, stages), the exponent of each stage's NSR in each term.
        coefficients: (terms,), on the unscaled terms.
        intercept: a fraction.
    """

    powers: tuple[tuple[int, ...], ...]
    coefficients: tuple[float, ...]
    intercept: float

    def predict(self, nsr: Floats) -> Floats:
        """Accuracy (n,) as a fraction, from NSR (n, stages)."""
        terms = np.ones((len(nsr), len(self.powers)))
        for stage, exponents in enumerate(np.array(self.powers).T):
            terms *= nsr[:, stage, None] ** exponents
        return terms @ np.array(self.coefficients) + self.intercept

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; ``from_json`` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AccuracyPredictor":
        """The inverse of ``to_json``."""
        powers = tuple(tuple(row) for row in value["powers"])
        return cls(powers, tuple(value["coefficients"]), value["intercept"])


def predictor_step(run: Run, reference: Artifact, library: Artifact) -> Artifact:
    """Step 3: finetune sampled architectures for a short while and fit accuracy to NSR.

    The result holds the predictor, its samples, and Kendall tau by leave-one-out cross-validation
    with a bootstrap interval, beside tau of simpler orderings of the same samples.
    """
    config = run.config
    space = library_space(library)
    architectures = space.sample(config.predictor.samples, config.seed)
    jobs = jobs_of(run, reference, library, space, architectures, config.predictor)
    nsr = encode(architectures, choice_table(library, "nsr"))
    inputs = {
        "settings": {**config.predictor.model_dump(), "seed": config.seed},
        "samples": [
            {"key": job.key, "blocks": dict(zip(job.blocks, row.tolist(), strict=True))}
            for job, row in zip(jobs, nsr, strict=True)
        ],
    }
    kept = _kept(run, library, inputs)
    if kept is not None:
        run.say("  the library has every block to which the predictor was fitted: it is kept")
        return kept

    def compute(folder: StepFolder) -> tuple[dict[str, Any], Files]:
        records = finetune(run, "predictor", reference, jobs, config.predictor)
        result = _result(jobs, nsr, records, library, config.seed)
        file = folder.path / "predictor.json"
        write_json(file, result["predictor"])
        store = network_store(run)
        return result, [file, *(path for job in jobs for path in store.paths(job.key))]

    return run.step("predictor", inputs, compute)


def _kept(run: Run, library: Artifact, inputs: dict[str, Any]) -> Artifact | None:
    """A predictor of the same settings, all of whose blocks are still in the library.

    It also ranks blocks that came after it (DONNA, section 3.2), so an extended space needs no new
    one. None where there is none, or one of exactly these inputs.
    """
    finished = finished_inputs(run.root, "predictor")
    if inputs in finished:
        return None
    ratios = {block["key"]: block["nsr"] for stage in library.result["stages"] for block in stage}
    for earlier in finished:
        fitted = [item for sample in earlier["samples"] for item in sample["blocks"].items()]
        same = all(ratios.get(key) == nsr for key, nsr in fitted)
        if earlier["settings"] == inputs["settings"] and same:
            return StepFolder(run.root, "predictor", earlier).load()
    return None


def _result(
    jobs: Sequence[FinetuneJob],
    nsr: Floats,
    records: Sequence[Mapping[str, Any]],
    library: Artifact,
    seed: int,
) -> dict[str, Any]:
    measured = np.array([record["accuracy"] for record in records])
    predictor, held_out = fit(nsr, measured)
    names = ("accuracy", "zero_shot_accuracy", "params", "macs")
    return {
        "predictor": predictor.to_json(),
        "samples": [
            {"id": job.architecture_id, "key": job.key, "nsr": list(row), "predicted": float(guess)}
            | {name: record[name] for name in names}
            for job, row, guess, record in zip(jobs, nsr, held_out, records, strict=True)
        ],
        "library_size": sum(len(stage) for stage in library.result["stages"]),
        "kendall_tau": kendall_tau(held_out, measured, seed),
        "baselines": _baselines(records, nsr, measured, seed),
        "cost": {"image_passes": sum(record["cost"]["image_passes"] for record in records)},
    }


def fit(nsr: Floats, accuracy: Floats) -> tuple[AccuracyPredictor, Floats]:
    """Fit a ridge on first- and second-order terms of the NSR.

    Args:
        nsr: (samples, stages).
        accuracy: (samples,), fractions.

    Returns:
        The predictor fitted to all samples, and for each sample (samples,) the prediction of one
        that was fitted to the others.
    """
    pipeline = make_pipeline(
        PolynomialFeatures(2, include_bias=False), StandardScaler(), RidgeCV(_ALPHAS)
    )
    held_out = cross_val_predict(pipeline, nsr, accuracy, cv=LeaveOneOut())
    polynomial, scaler, ridge = (step for _, step in pipeline.fit(nsr, accuracy).steps)
    coefficients = ridge.coef_ / scaler.scale_
    predictor = AccuracyPredictor(
        powers=tuple(tuple(int(power) for power in row) for row in polynomial.powers_),
        coefficients=tuple(float(value) for value in coefficients),
        intercept=float(ridge.intercept_ - coefficients @ scaler.mean_),
    )
    return predictor, held_out


def kendall_tau(predicted: Floats, measured: Floats, seed: int) -> dict[str, float]:
    """Kendall's tau-b with its 95% bootstrap interval (percentiles over resampled samples).

    Returns:
        `value`, `low`, `high`; 0 where all values of one side are equal.
    """
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(measured), size=(_RESAMPLES, len(measured)))
    taus = [_tau(predicted[draw], measured[draw]) for draw in draws]
    low, high = np.percentile(taus, [2.5, 97.5])
    return {"value": _tau(predicted, measured), "low": float(low), "high": float(high)}


def choice_table(library: Artifact, name: str) -> list[Floats]:
    """A figure of every block (`nsr`, `params`, `macs`): (choices,) a stage."""
    return [np.array([block[name] for block in stage]) for stage in library.result["stages"]]


def _baselines(
    records: Sequence[Mapping[str, Any]], nsr: Floats, measured: Floats, seed: int
) -> dict[str, dict[str, float]]:
    orderings = {
        "nsr_sum": -nsr.sum(axis=1),
        "params": np.array([record["params"] for record in records], dtype=float),
        "macs": np.array([record["macs"] for record in records], dtype=float),
        "zero_shot_accuracy": np.array([record["zero_shot_accuracy"] for record in records]),
    }
    return {name: kendall_tau(values, measured, seed) for name, values in orderings.items()}


def _tau(predicted: Floats, measured: Floats) -> float:
    value = float(kendalltau(predicted, measured).statistic)
    return 0.0 if np.isnan(value) else value
