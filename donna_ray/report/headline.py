"""What a person asks first: which network to take in the reference's place."""

from collections.abc import Iterator, Sequence
from typing import Any

from donna_ray.latency.figures import Latency, speed_up
from donna_ray.report.results import Accuracies, Reference, Results
from donna_ray.report.scenario import Answer, FrontPoint

__all__ = ["QUESTIONS", "headline", "headlines", "tested", "worded"]

QUESTIONS = {
    "fastest_as_accurate": "the fastest network that is not less accurate than the reference",
    "most_accurate_as_fast": "the most accurate network that is not slower than the reference",
}
"""In words, by their name in ``Headline``."""


def headline(points: Sequence[dict[str, Any]], accuracy: float, latency: Latency) -> dict[str, Any]:
    """``Headline`` of networks (``FrontPoint``), given what the reference has.

    The validation images choose, and the test images tell of the one that is chosen: the best of
    several by the test would be told too good.

    Args:
        points: those that are not finetuned answer nothing.
        accuracy: of the reference on the validation images.
        latency: of the reference.
    """
    known = [point for point in points if point["accuracy"] is not None]
    accurate = [each for each in known if each["accuracy"] >= accuracy]
    fast = [each for each in known if _ms(each) <= latency["median_ms"]]
    fastest = min(accurate, key=lambda each: (_ms(each), -each["accuracy"]), default=None)
    best = max(fast, key=lambda each: (each["accuracy"], -_ms(each)), default=None)
    return {
        "fastest_as_accurate": fastest and _answer(fastest, latency),
        "most_accurate_as_fast": best and _answer(best, latency),
    }


def _ms(point: dict[str, Any]) -> float:
    found: float = point["latency"]["median_ms"]
    return found


def _answer(point: dict[str, Any], latency: Latency) -> dict[str, Any]:
    ratio, low, high = speed_up(point["latency"], latency)
    return {
        "id": point["id"],
        **{name: point[name] for name in ("test_accuracy", "test_low", "test_high")},
        "median_ms": _ms(point),
        "speed_up": ratio,
        "speed_up_low": low,
        "speed_up_high": high,
    }


def worded(answer: Answer | None) -> str:
    """Its test accuracy, and its latency beside the reference's, with their intervals."""
    if answer is None:
        return "none of those finetuned"
    return (
        f"{tested(answer)}, {answer.speed_up:.2f}x as fast "
        f"[{answer.speed_up_low:.2f}, {answer.speed_up_high:.2f}]"
    )


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
            words += ", by the validation images"
            yield f"{of}{words}: {f'{answer.id}, ' if answer else ''}{worded(answer)}"
        for point in (*scenario.front, *scenario.asked):
            if "asked for" in point.roles:
                latency = f"{point.latency.median_ms:.4g} ms"
                if point.test_accuracy is None:
                    found = f"{point.int8_failed or 'its training failed'}; {latency}"
                else:
                    found = f"{tested(point)}, {latency}, {point.onnx}"
                yield f"{of}asked for: {point.id}, {found}"
