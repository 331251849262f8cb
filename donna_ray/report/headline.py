"""What a person asks first: which network to take in the reference's place."""

from collections.abc import Iterator, Sequence
from typing import Any

from donna_ray.report.results import Accuracies, Reference, Results
from donna_ray.report.scenario import Answer, FrontPoint

__all__ = ["QUESTIONS", "headline", "headlines", "tested", "worded"]

QUESTIONS = {
    "fastest_as_accurate": "the fastest network that is not less accurate than the reference",
    "most_accurate_as_fast": "the most accurate network that is not slower than the reference",
}
"""In words, by their name in ``Headline``."""


def headline(
    points: Sequence[dict[str, Any]], accuracy: float, latency_ms: float
) -> dict[str, Any]:
    """``Headline`` of networks (``FrontPoint``), given the reference's test and latency."""
    answers = [
        {
            "id": point["id"],
            **{name: point[name] for name in ("test_accuracy", "test_low", "test_high")},
            "median_ms": point["latency"]["median_ms"],
            "speed_up": latency_ms / point["latency"]["median_ms"],
        }
        for point in points
        if point["test_accuracy"] is not None
    ]
    accurate = [each for each in answers if each["test_accuracy"] >= accuracy]
    fast = [each for each in answers if each["median_ms"] <= latency_ms]
    return {
        "fastest_as_accurate": min(
            accurate, key=lambda each: (each["median_ms"], -each["test_accuracy"]), default=None
        ),
        "most_accurate_as_fast": max(
            fast, key=lambda each: (each["test_accuracy"], -each["median_ms"]), default=None
        ),
    }


def worded(answer: Answer | None) -> str:
    """Its test accuracy, and its latency beside the reference's."""
    if answer is None:
        return "none of those finetuned"
    return f"{tested(answer)}, {answer.speed_up:.2f}x as fast"


def tested(found: Accuracies | Answer | FrontPoint | Reference) -> str:
    """A test accuracy with its interval, of what is finetuned."""
    return f"{found.test_accuracy:.2%} [{found.test_low:.2%}, {found.test_high:.2%}]"


def headlines(results: Results) -> Iterator[str]:
    """The reference, the answers to each question, and each network that was asked for."""
    results = results.in_own_precisions()
    reference = results.reference
    if reference.finetuned is not None:
        yield (
            f"test accuracy of {reference.test_images} images ({reference.test_from}), with its "
            f"95% interval: the reference {tested(reference)}, finetuned like the networks "
            f"{tested(reference.finetuned)}"
        )
    for scenario in results.scenarios:
        of = f"{scenario.name}: " if len(results.scenarios) > 1 else ""
        for question, words in QUESTIONS.items():
            answer = getattr(scenario.headline, question)
            yield f"{of}{words}: {f'{answer.id}, ' if answer else ''}{worded(answer)}"
        for point in (*scenario.front, *scenario.asked):
            if "asked for" in point.roles:
                latency = f"{point.latency.median_ms:.4g} ms"
                found = f"{tested(point)}, {latency}, {point.onnx}"
                if point.test_accuracy is None:
                    found = f"its training failed; {latency}"
                yield f"{of}asked for: {point.id}, {found}"
