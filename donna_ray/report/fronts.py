"""The part of report.html that is about one scenario's front: chart, choice and table."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from scipy.stats import kendalltau

from donna_ray.report.drawing import Drawing
from donna_ray.report.parts import Cell, Value, chart, csv_link, figure, interval, section, table
from donna_ray.report.results import Results
from donna_ray.report.scenario import FrontPoint, Scenario

__all__ = ["front_section", "origin", "title"]

_LEAST_RANKED = 3  # networks, from which on their order says something
_LEGEND = (
    ("candidate", "●", "candidates, predicted"),
    ("front", "●", "front, measured again"),
    ("finetuned", "◆", "finetuned, on the test images"),
    ("reference", "★", "reference"),
    ("opponent", "☆", "reference, finetuned likewise"),
)
_IN_PRECISION = {
    "fp32": "",
    "fp16": ", networks in fp16: so are their accuracies; predictions are of fp32's",
    "int8": ", networks in int8: so are their accuracies and predictions",
}
_HEADER = (
    *("network", "blocks", "latency, ms", "± %", "test accuracy", "predicted", "raw prediction"),
    *("validation", "p90, ms", "p99, ms", "peak MB", "params", "MACs", "files"),
)
_CSV = (
    *("id", "roles", "architecture", "blocks", "median_ms", "ci_percent", "p90_ms", "p99_ms"),
    *("test_accuracy", "test_low", "test_high", "predicted_accuracy", "predicted_low"),
    *("predicted_high", "raw_accuracy", "raw_low", "raw_high", "accuracy", "peak_memory_mb"),
    *("params", "macs", "weights", "onnx"),
)


def front_section(results: Results, number: int, drawing: Drawing) -> str:
    """The front of the scenario of that number."""
    scenario = results.scenarios[number]
    device = scenario.device
    words = (
        f"On {device.model} ({device.connector}){_IN_PRECISION[device.precision]}. "
        "Each point is a network: click or tap it, or go along the front with the arrow keys."
    )
    return section(
        f"front-{number}",
        title(results, scenario, "the front"),
        words,
        f"<details><summary>How to read it</summary><p>{escape(_reading(results))}</p></details>"
        f"{_legend(number)}"
        f'<div class="choice">{chart("front", _label(results, scenario), number)}'
        f'<div class="picked" data-picked="{number}"></div></div>'
        f'<p class="said" role="status" data-said="{number}"></p>'
        f"<p>{escape(_search_text(scenario))}</p>"
        f"<h3>The networks</h3><p>Fastest first; what was asked for is last. Files are beside this "
        f"page.{escape(_predicted_against_real(scenario))}</p>{_table(scenario, number, drawing)}",
    )


def _reading(results: Results) -> str:
    return (
        "With Shift the arrow keys go along all candidates, Enter keeps a network beside the next, "
        "Escape lets it go. Dashed lines are the reference's. Predictions are of the validation "
        f"images. {_calibrated(results)} Finetuned networks are trained longer and measured on the "
        "test images, which nothing else looks at. Brackets and bars are 95% intervals."
    )


def title(results: Results, scenario: Scenario, words: str) -> str:
    """Words for a heading, of which scenario if there are several."""
    if len(results.scenarios) > 1:
        return f"{scenario.name}: {words}"
    return words[0].upper() + words[1:]


def origin(scenario: Scenario) -> str:
    """A warning where latency was not measured by this run; else nothing."""
    device = scenario.device
    origins = ["a simulated device"] if device.simulated else []
    if device.connector == "recorded":
        origins.append(f"a record, and was not measured by this run: {device.model}")
    return "".join(
        f'<p class="warning">Latency of {escape(scenario.name)} comes from {escape(each)}.</p>'
        for each in origins
    )


def _label(results: Results, scenario: Scenario) -> str:
    return (
        f"Accuracy against latency of {len(scenario.search.measured)} networks and the reference "
        f"{results.reference.model} on {scenario.device.model}. Arrow keys move along the front."
    )


def _legend(number: int) -> str:
    keys = "".join(
        f'<span class="key {name}"><i>{sign}</i> {words}</span>' for name, sign, words in _LEGEND
    )
    return (
        f'<p class="legend">{keys}<label class="key"><input type="checkbox" '
        f'data-near="{number}"> only the front and the reference</label></p>'
    )


def _calibrated(results: Results) -> str:
    made = results.predictor.calibration if results.predictor else None
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
    text = f"{search.measured_architectures} candidates measured by {search.strategy}"
    text += f", {len(search.failed)} failed." if search.failed else "."
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


def _table(scenario: Scenario, number: int, drawing: Drawing) -> str:
    networks = [*scenario.front, *scenario.asked]
    name = f"networks-{number}"
    tools = (
        f'<p class="tools"><label>Filter <input type="search" data-filter="{name}" '
        'placeholder="kernel=3, asked for, …"></label> '
        f"{csv_link(name, _CSV, map(_csv_row, networks))} "
        f'<span role="status" data-count="{name}">{len(networks)} networks</span></p>'
    )
    rows = (_row(point, number, drawing) for point in networks)
    return table(name, f"The networks of {scenario.name}", _HEADER, rows, tools)


def _row(point: FrontPoint, number: int, drawing: Drawing) -> Iterator[Cell]:
    found = point.latency
    show = (
        f'<button type="button" class="show" data-show="{number}:{escape(point.id)}">'
        f"{escape(point.id)}</button><br><small>{', '.join(point.roles)}</small>"
    )
    yield Cell(show, point.id)
    yield Cell(drawing.network(point.blocks), " ".join(map(str, point.blocks)))
    yield figure(found.median_ms, ".4f")
    yield figure(found.ci_percent, ".2f")
    yield interval(point.test_accuracy, point.test_low, point.test_high)
    yield interval(point.predicted_accuracy, point.predicted_low, point.predicted_high)
    yield interval(point.raw_accuracy, point.raw_low, point.raw_high)
    yield Cell("", None) if point.accuracy is None else figure(point.accuracy, ".2%")
    yield figure(found.p90_ms, ".4f")
    yield figure(found.p99_ms, ".4f")
    yield figure(found.peak_memory_mb, ".2f")
    yield figure(point.params, ",")
    yield figure(point.macs, ",")
    yield Cell(_files(point), "")


def _files(point: FrontPoint) -> str:
    paths = (("weights", point.weights), ("ONNX", point.onnx))
    return " ".join(f'<a href="{escape(path)}">{name}</a>' for name, path in paths if path)


def _csv_row(point: FrontPoint) -> Sequence[Value]:
    facts = point.model_dump() | point.latency.model_dump()
    facts |= {
        "roles": " ".join(point.roles),
        "architecture": "-".join(map(str, point.architecture)),
        "blocks": " ".join(map(str, point.blocks)),
    }
    return [facts[name] for name in _CSV]
