"""The part of report.html that is about one scenario: its device, its search and its front."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from scipy.stats import kendalltau

from donna_ray.report.headline import tested
from donna_ray.report.parts import BLUE, GREY, INK, ORANGE, plot, section, table
from donna_ray.report.results import Accuracies, FrontPoint, Results, Scenario

__all__ = ["scenario_sections"]

_LEAST_RANKED = 3  # networks, from which on their order says something


def scenario_sections(results: Results, scenario: Scenario) -> str:
    """Its plot and its table."""
    device = scenario.device
    name = f"{scenario.name}: " if len(results.scenarios) > 1 else ""
    return "".join(
        [
            _origin(scenario),
            section(
                _title(name, "accuracy against latency"),
                f"On {device.model} ({device.connector}), where the reference takes "
                f"{scenario.reference_latency.median_ms:.3f} ms. Each point is a network; hover "
                f"for its blocks. Predictions are of the validation images. {_calibrated(results)} "
                "Finetuned networks are trained longer and measured on the test images, which "
                "nothing else looks at. Brackets are 95% intervals: of a prediction, or of a share "
                "of the test images." + _search_text(scenario),
                plot(_figure(results, scenario), 520),
            ),
            section(
                _title(name, "the front"),
                f"Fastest first. Files are beside this page.{_predicted_against_real(scenario)}",
                _table(scenario.front),
            ),
            section(
                _title(name, "networks that were asked for"),
                "Beside the front, by `finetune.architectures` or `donna finetune`.",
                _table(scenario.asked),
            )
            if scenario.asked
            else "",
        ]
    )


def _title(name: str, words: str) -> str:
    return f"{name}{words}" if name else words.capitalize()


def _origin(scenario: Scenario) -> str:
    device = scenario.device
    origins = ["a simulated device"] if device.simulated else []
    if device.connector == "recorded":
        origins.append(f"a record, and was not measured by this run: {escape(device.model)}")
    return "".join(
        f'<section class="warning">Latency of {escape(scenario.name)} comes from {each}.</section>'
        for each in origins
    )


def _calibrated(results: Results) -> str:
    made = results.predictor.calibration
    if made is None:
        return (
            "They are not calibrated to the final finetuning, since fewer than 3 networks had it: "
            "they are raw, of the accuracy after the predictor's short finetuning."
        )
    return (
        f"They are calibrated to the final finetuning on {len(made.networks)} networks that had "
        "it; raw ones are of the accuracy after the predictor's short finetuning."
    )


def _predicted_against_real(scenario: Scenario) -> str:
    pairs = [
        (point.raw_accuracy, point.accuracy)
        for point in scenario.front
        if point.accuracy is not None
    ]
    if not pairs:
        return ""
    above = sum(real - predicted for predicted, real in pairs) / len(pairs)
    text = f" {len(pairs)} are finetuned: on average {above:+.2%} off their raw prediction"
    if len(pairs) >= _LEAST_RANKED:
        tau = float(kendalltau(*zip(*pairs, strict=True)).statistic)
        if math.isfinite(tau):  # it is not where all are equal
            text += f", in an order with Kendall tau {tau:.2f} to the predicted one"
    return f"{text}."


def _search_text(scenario: Scenario) -> str:
    search = scenario.search
    failed = search.candidates - search.measured_architectures
    text = f" {search.measured_architectures} candidates measured by {search.strategy}"
    text += f", {failed} failed." if failed else "."
    again = search.verified
    if scenario.device.connector != "recorded":
        text += (
            f" {len(again.networks)} of them and the reference were measured again, {again.rounds} "
            f"times in turn, and the front is of these: {again.left} of {again.front_before} left "
            f"it, {again.joined} joined it, and {again.limits_broken} took over 1% more than the "
            "first measurement said."
        )
    if (rated := search.yardstick) is None:
        return text
    if rated.hypervolume_share is not None:
        text += (
            f" Their front has {rated.hypervolume_share:.1%} of the hypervolume of the exact front "
            "of an additive latency model."
        )
    return f"{text} That model is off the measured latencies by {rated.error_percent:.1f}%."


def _figure(results: Results, scenario: Scenario) -> go.Figure:
    front, reference = scenario.front, results.reference
    finetuned = [each for each in (*front, *scenario.asked) if each.accuracy is not None]
    figure = go.Figure()
    points = scenario.search.points
    figure.add_scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        name="candidates, predicted",
        mode="markers",
        marker={"color": GREY, "size": 6},
        hovertemplate="%{x:.4f} ms, predicted %{y:.2%}<extra></extra>",
    )
    figure.add_scatter(
        x=[point.latency.median_ms for point in front],
        y=[point.predicted_accuracy for point in front],
        text=[_words(point) for point in front],
        name="front, predicted",
        mode="lines+markers",
        line={"color": BLUE, "shape": "hv"},
        marker={"size": 9},
        hovertemplate="%{text}<extra></extra>",
    )
    figure.add_scatter(
        x=[point.latency.median_ms for point in finetuned],
        y=[point.test_accuracy for point in finetuned],
        error_y=_bars(finetuned),
        text=[_words(point) for point in finetuned],
        name="finetuned, on the test images",
        mode="markers",
        marker={"color": ORANGE, "size": 13, "symbol": "diamond"},
        hovertemplate="%{text}<extra></extra>",
    )
    figure.add_scatter(
        x=[scenario.reference_latency.median_ms],
        y=[reference.test_accuracy],
        error_y=_bars([reference]),
        text=[f"<b>reference {escape(reference.model)}</b>"],
        name="reference",
        mode="markers",
        marker={"color": INK, "size": 16, "symbol": "star"},
        hovertemplate="%{text}<br>%{x:.4f} ms, on the test images %{y:.2%}<extra></extra>",
    )
    figure.update_xaxes(title="latency in ms, median, batch 1")
    figure.update_yaxes(title="accuracy", tickformat=".1%")
    return figure


def _bars(networks: Sequence[Accuracies | FrontPoint]) -> dict[str, Any]:
    """Of the intervals of test accuracies."""
    ends = [
        (each.test_high - each.test_accuracy, each.test_accuracy - each.test_low)
        for each in networks
        if each.test_accuracy is not None
        and each.test_low is not None
        and each.test_high is not None
    ]
    above, below = zip(*ends, strict=True) if ends else ((), ())
    return {"array": above, "arrayminus": below, "color": GREY, "thickness": 1}


def _words(point: FrontPoint) -> str:
    measured = "" if point.accuracy is None else f", test {tested(point)}"
    stages = [f"stage {number}: {escape(block)}" for number, block in enumerate(point.blocks)]
    lines = [
        f"<b>{point.id}</b> ({', '.join(point.roles)})",
        f"{point.latency.median_ms:.4f} ms, predicted {point.predicted_accuracy:.2%} "
        f"{_interval(point.predicted_low, point.predicted_high)}, raw {point.raw_accuracy:.2%}"
        f"{measured}",
        *stages,
    ]
    return "<br>".join(lines)


def _table(points: Sequence[FrontPoint]) -> str:
    rows = []
    for point in points:
        files = " ".join(
            f'<a href="{escape(path)}">{name}</a>'
            for name, path in (("weights", point.weights), ("onnx", point.onnx))
            if path is not None
        )
        rows.append(
            [
                f"<code>{point.id}</code><br>{', '.join(point.roles)}<br>{files}",
                "<br>".join(escape(block) for block in point.blocks),
                f"{point.latency.median_ms:.4f}",
                "" if point.accuracy is None else f"<b>{tested(point).replace(' ', '</b><br>', 1)}",
                f"{point.predicted_accuracy:.2%}<br>"
                f"{_interval(point.predicted_low, point.predicted_high)}",
                f"{point.raw_accuracy:.2%}<br>{_interval(point.raw_low, point.raw_high)}",
                "" if point.accuracy is None else f"{point.accuracy:.2%}",
                " / ".join(map(_told, (point.latency.p90_ms, point.latency.p99_ms))),
                _told(point.latency.peak_memory_mb, 2),
                f"{point.params:,}",
                f"{point.macs:,}",
            ]
        )
    header = ["network", "blocks", "median ms", "test", "predicted", "raw prediction"]
    header += ["validation", "p90 / p99", "peak MB", "params", "MACs"]
    return table(header, rows, text_columns=2)


def _interval(low: float, high: float) -> str:
    return f"[{low:.2%}, {high:.2%}]"


def _told(figure: float | None, digits: int = 4) -> str:
    return "not told" if figure is None else f"{figure:.{digits}f}"
