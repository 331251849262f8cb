"""Which networks of the fronts are finetuned: by budgets, or spread over each front.

By prediction they are the best that are as fast. A prediction knows the blocks one by one. The
accuracy of a network before its finetuning knows them together, for two passes forward over some
images, so of the networks that are predicted to be the best those are chosen that both figures
together say to be (`scripts/bench_chosen.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import linregress

from donna_ray.config import DevicePrecision, amount_of
from donna_ray.errors import DonnaError
from donna_ray.finetune.scored import score
from donna_ray.latency.figures import Latency, surely_ms
from donna_ray.predictor.model import Floats
from donna_ray.run.run import Run
from donna_ray.space import Architecture
from donna_ray.storage.artifacts import Artifact, Files

__all__ = [
    "Choice",
    "Estimate",
    "chosen_architectures",
    "chosen_of_all",
    "spread_over",
    "within_budget",
]

Point = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """A network of a front to be finetuned.

    Attributes:
        scenario: whose front it is.
        point: the one of the highest predicted accuracy within a budget, or of the spread.
        within: all that are as fast as it must be, itself among them; itself alone in searches of
            before networks were scored, so that what was finetuned of them stays.
    """

    scenario: str
    point: Point
    within: Sequence[Point]

    def shortlist(self, count: int) -> list[Point]:
        """Those of the highest predicted accuracy; the first is the point."""
        others = [each for each in self.within if each["id"] != self.point["id"]]
        others.sort(key=lambda each: -each["predicted_accuracy"])
        return [self.point, *others[: count - 1]]


@dataclass(frozen=True)
class Estimate:
    """Accuracy after the predictor's finetuning, by two figures, each as good as it was for its
    samples: their weights are inverse to their leave-one-out errors.

    Attributes:
        weight: of the prediction, 0 to 1; what is left is that of a line through the accuracy
            before any finetuning.
        intercept: of the line.
        slope: of the line; above 0 where it has a weight.
    """

    weight: float
    intercept: float
    slope: float

    @classmethod
    def of(cls, fitted: Mapping[str, Any]) -> "Estimate":
        """By the samples of a predictor's step, and their `quality`."""
        samples = fitted["samples"]
        before, after = (
            np.array([each[name] for each in samples])
            for name in ("zero_shot_accuracy", "accuracy")
        )
        if np.ptp(before) == 0:
            return cls(1.0, 0.0, 0.0)
        line = linregress(before, after)
        own, other = (
            fitted["quality"][name]["mse"]["value"] for name in ("predictor", "zero_shot_accuracy")
        )
        weight = other / (own + other) if line.slope > 0 and own > 0 else 1.0
        return cls(float(weight), float(line.intercept), float(line.slope))

    def __call__(self, predicted: Floats, before: Floats) -> Floats:
        """Of networks (n,)."""
        return self.weight * predicted + (1 - self.weight) * (self.intercept + self.slope * before)


def chosen_architectures(
    run: Run,
    reference: Artifact,
    library: Artifact,
    search: Artifact,
    predictors: Mapping[DevicePrecision, Artifact],
) -> tuple[list[Architecture], int]:
    """The networks to be finetuned, each once, and how many image passes it took to choose them.

    Args:
        run: for the configuration, the folder and the workers.
        reference: of ``reference_step``.
        library: of ``library_step``; networks are scored in fp32, whatever a scenario has.
        search: of ``search_step``.
        predictors: in the precision of each scenario; none: the choice is by prediction alone.

    Raises:
        DonnaError: no front has a network for any budget.
    """
    choices = chosen_of_all(run, search.result["scenarios"])
    count = run.config.finetune.shortlist if predictors else 1
    if all(len(each.shortlist(count)) == 1 for each in choices):
        points, passes = [each.point for each in choices], 0
    else:
        scored = _chosen_by_score(run, reference, library, predictors, choices)
        points, passes = scored.result["choices"], scored.result["cost"]["image_passes"]
    return list(dict.fromkeys(tuple(each["architecture"]) for each in points)), passes


def chosen_of_all(run: Run, scenarios: Mapping[str, dict[str, Any]]) -> list[Choice]:
    """By prediction; a budget for which a front has no network is said, and the others count.

    Raises:
        DonnaError: no front has a network for any budget.
    """
    chosen, errors = list[Choice](), list[str]()
    for name, found in scenarios.items():
        if run.config.finetune.budgets is None:
            chosen += _spread(name, found["front"], run.config.finetune.networks)
        for budget in run.config.finetune.budgets or ():
            try:
                chosen.append(_within(name, found, budget))
            except DonnaError as error:
                whose = "" if name == "default" else f"Scenario {name}: "
                errors.append(f"{whose}{error}")
    if errors and not chosen:
        raise DonnaError("\n".join(errors))
    for each in errors:
        run.say(f"  none is finetuned for a budget. {each}")
    return [
        each if "scores_choose" in scenarios[each.scenario] else replace(each, within=[each.point])
        for each in chosen
    ]


def _spread(scenario: str, front: Sequence[Point], count: int) -> Iterator[Choice]:
    for point in spread_over(front, count):
        limit_ms = point["latency"]["median_ms"]
        within = [each for each in front if each["latency"]["median_ms"] <= limit_ms]
        yield Choice(scenario, point, within)


def _within(scenario: str, found: Mapping[str, Any], budget: str) -> Choice:
    reference = found["reference_latency"]
    limit_ms = amount_of(budget, reference["median_ms"])
    counts = "reference_interval_counts" in found  # not in searches of before it did
    unit = reference if counts and budget.endswith("x") else None
    point = within_budget(found["front"], limit_ms, unit)
    within = [each for each in found["front"] if surely_ms(each["latency"], unit) <= limit_ms]
    return Choice(scenario, point, within)


def within_budget(front: Sequence[Point], budget: float, unit: Latency | None = None) -> Point:
    """The point of the highest predicted accuracy within a latency in ms, with 95% confidence.

    Args:
        unit: the latency of which the budget is a multiple, if it is one.

    Raises:
        DonnaError: no point is within it.
    """
    within = [point for point in front if surely_ms(point["latency"], unit) <= budget]
    if not within:
        least = min(surely_ms(point["latency"], unit) for point in front)
        raise DonnaError(
            f"finetune.budgets must be ones that the front has a network for, but is {budget:.4g} "
            f"ms and the fastest takes up to {least:.4g} ms (95% interval). Raise it to at least "
            "that."
        )
    return max(within, key=lambda point: point["predicted_accuracy"])


def spread_over(front: Sequence[Point], count: int) -> list[Point]:
    """`count` points of a front, evenly spaced in rank and with both ends; all if it has fewer.

    A single one is that of the highest predicted accuracy.
    """
    if len(front) <= count:
        return list(front)
    if count == 1:
        return [max(front, key=lambda point: point["predicted_accuracy"])]
    ranks = [round(index * (len(front) - 1) / (count - 1)) for index in range(count)]
    return [front[rank] for rank in ranks]


def _chosen_by_score(
    run: Run,
    reference: Artifact,
    library: Artifact,
    predictors: Mapping[DevicePrecision, Artifact],
    choices: Sequence[Choice],
) -> Artifact:
    """Score what is predicted to be the best, and choose again.

    Returns:
        An artifact with `choices`: of each the `scenario`, the network `chosen` and that of
        `by_prediction` (ids), its `architecture`, and `networks`: `id`, `predicted_accuracy`,
        `zero_shot_accuracy` and `estimate`. Two of a spread are never one network.
    """
    count, config = run.config.finetune.shortlist, run.config
    precisions = {each.name: each.device.precision for each in config.all_scenarios()}
    shortlists = [each.shortlist(count) for each in choices]
    inputs = {
        "predictors": {name: each.digest for name, each in predictors.items()},
        "library": library.digest,
        "spread": config.finetune.budgets is None,
        "shortlists": [
            [choice.scenario, *([each["id"], each["predicted_accuracy"]] for each in points)]
            for choice, points in zip(choices, shortlists, strict=True)
        ],
    }

    def compute(_folder: Any) -> tuple[dict[str, Any], Files]:
        compared = [each for each in shortlists if len(each) > 1]
        every = {tuple(point["architecture"]): None for each in compared for point in each}
        found = score(run, reference, library, list(every))
        scores = {each["id"]: each["zero_shot_accuracy"] for each in found}
        result, taken = list[dict[str, Any]](), set[tuple[str, str]]()
        for choice, points in zip(choices, shortlists, strict=True):
            estimate = Estimate.of(predictors[precisions[choice.scenario]].result)
            networks = _estimated(points, scores, estimate)
            best = _best(choice, networks, taken if inputs["spread"] else set())
            taken.add((choice.scenario, best["id"]))
            result.append(_facts(choice, points, best, networks))
            _say(run, result[-1])
        passes = sum(each["image_passes"] for each in found)
        return {"choices": result, "cost": {"image_passes": passes}}, []

    return run.step("finetune/shortlist", inputs, compute)


def _estimated(
    points: Sequence[Point], scores: Mapping[str, float], estimate: Estimate
) -> list[dict[str, Any]]:
    """Those that could be scored."""
    kept = [each for each in points if each["id"] in scores]
    predicted = np.array([each["predicted_accuracy"] for each in kept])
    before = np.array([scores[each["id"]] for each in kept])
    return [
        {
            "id": each["id"],
            "predicted_accuracy": each["predicted_accuracy"],
            "zero_shot_accuracy": scores[each["id"]],
            "estimate": value,
        }
        for each, value in zip(kept, estimate(predicted, before).tolist(), strict=True)
    ]


def _best(
    choice: Choice, networks: Sequence[dict[str, Any]], taken: set[tuple[str, str]]
) -> dict[str, Any]:
    free = [each for each in networks if (choice.scenario, each["id"]) not in taken]
    return max(free, key=lambda each: each["estimate"], default=choice.point)


def _facts(
    choice: Choice,
    points: Sequence[Point],
    best: Mapping[str, Any],
    networks: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    [architecture] = [each["architecture"] for each in points if each["id"] == best["id"]]
    return {
        "scenario": choice.scenario,
        "by_prediction": choice.point["id"],
        "chosen": best["id"],
        "architecture": architecture,
        "networks": networks,
    }


def _say(run: Run, found: Mapping[str, Any]) -> None:
    if found["chosen"] != found["by_prediction"]:
        before = {each["id"]: each["zero_shot_accuracy"] for each in found["networks"]}
        one, other = (
            f"{found[name]} ({before[found[name]]:.2%})" if found[name] in before else found[name]
            for name in ("chosen", "by_prediction")
        )
        run.say(f"  {one} is chosen in place of {other}: their accuracies before finetuning")
