"""What a person asks first: which network to take in the reference's place."""

from collections.abc import Iterator, Sequence
from typing import Any

from donna_ray.report.results import Answer, Results

__all__ = ["QUESTIONS", "headline", "headlines", "worded"]

QUESTIONS = {
    "fastest_as_accurate": "the fastest network that is not less accurate than the reference",
    "most_accurate_as_fast": "the most accurate network that is not slower than the reference",
}
"""In words, by their name in ``Headline``."""


def headline(
    points: Sequence[dict[str, Any]], accuracy: float, latency_ms: float
) -> dict[str, Any]:
    """``Headline`` of networks (``FrontPoint``), given the reference's figures."""
    answers = [
        {
            "id": point["id"],
            "accuracy": point["accuracy"],
            "median_ms": point["latency"]["median_ms"],
            "speed_up": latency_ms / point["latency"]["median_ms"],
        }
        for point in points
        if point["accuracy"] is not None
    ]
    accurate = [each for each in answers if each["accuracy"] >= accuracy]
    fast = [each for each in answers if each["median_ms"] <= latency_ms]
    return {
        "fastest_as_accurate": min(
            accurate, key=lambda each: (each["median_ms"], -each["accuracy"]), default=None
        ),
        "most_accurate_as_fast": max(
            fast, key=lambda each: (each["accuracy"], -each["median_ms"]), default=None
        ),
    }


def worded(answer: Answer | None) -> str:
    """Its figures, beside those of the reference."""
    if answer is None:
        return "none of those finetuned"
    return f"{answer.accuracy:.2%}, {answer.speed_up:.2f}x as fast"


def headlines(results: Results) -> Iterator[str]:
    """A line for each question, and for each network that was asked for, of each scenario."""
    for scenario in results.scenarios:
        of = f"{scenario.name}: " if len(results.scenarios) > 1 else ""
        for question, words in QUESTIONS.items():
            answer = getattr(scenario.headline, question)
            yield f"{of}{words}: {f'{answer.id}, ' if answer else ''}{worded(answer)}"
        for point in (*scenario.front, *scenario.asked):
            if "asked for" in point.roles:
                latency = f"{point.latency.median_ms:.4g} ms"
                yield f"{of}asked for: {point.id}, {point.accuracy:.2%}, {latency}, {point.onnx}"
