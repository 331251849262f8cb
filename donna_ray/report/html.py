"""report.html: one self-contained page, drawn from results.json alone."""

from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from donna_ray.report.results import Estimate, FrontPoint, Results

__all__ = ["render"]

_BLUE, _ORANGE, _GREY, _INK = "#2563eb", "#ea580c", "#c3c8d0", "#1f2937"
_STAGE_COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#ca8a04", "#0891b2", "#db2777")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #f6f7f9; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 0 0 4px; }
p { margin: 4px 0 10px; color: #4b5563; }
section { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; padding: 18px 20px;
          margin-top: 18px; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 14px;
         margin-top: 18px; }
.tile { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; padding: 12px 16px; }
.tile b { display: block; font-size: 22px; } .tile span { color: #6b7280; font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; color: #6b7280; font-weight: 600; }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid #eef0f3; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.warning { background: #fef3c7; border-color: #f59e0b; }
"""


def render(results: Results) -> str:
    """The page as HTML."""
    body = [
        f"<h1>{escape(results.name)}</h1>",
        f"<p>{escape(results.reference.model)} on {escape(results.data)}, for "
        f"{escape(results.device.model)} ({escape(results.device.connector)})</p>",
        _simulated(results),
        _tiles(results),
        _section(
            "Accuracy against latency",
            "Each point is a network; hover for its blocks. Predictions rank the candidates: they "
            "are of the accuracy after the predictor's short finetuning. Finetuned networks are "
            "trained longer and measured on the whole validation set. Brackets behind predictions "
            "are 95% prediction intervals." + _search_text(results),
            _plot(_front_figure(results), 520),
        ),
        _section("The front", "Fastest first. Files are beside this page.", _front_table(results)),
        _section("The accuracy predictor", _predictor_text(results), _predictor(results)),
        _section(
            "The block library",
            "Every block of every stage: its noise-to-signal ratio, lower is nearer to the "
            "reference, against its multiply-accumulates.",
            _plot(_library_figure(results), 380) + _left_out(results),
        ),
        _section("What it cost", "", _cost_table(results)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(results.name)}</title><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><main>{''.join(body)}</main></body></html>"
    )


def _simulated(results: Results) -> str:
    if not results.device.simulated:
        return ""
    return '<section class="warning">Latency comes from a simulated device.</section>'


def _tiles(results: Results) -> str:
    reference, latency = results.reference, results.reference.latency
    tiles = [
        (f"{reference.accuracy:.2%}", "accuracy of the reference"),
        (f"{latency.median_ms:.3f} ms", "latency of the reference"),
        (f"{results.predictor.kendall_tau.value:.2f}", "Kendall tau of the predictor"),
    ]
    finetuned = [point for point in results.front if point.accuracy is not None]
    if finetuned:
        best = max(finetuned, key=lambda point: point.accuracy or 0)
        ratio = latency.median_ms / best.latency.median_ms
        tiles.append(
            (f"{best.accuracy:.2%}, {ratio:.2f}x", "most accurate network, and its speed-up")
        )
    cells = (f'<div class="tile"><b>{big}</b><span>{small}</span></div>' for big, small in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _search_text(results: Results) -> str:
    search = results.search
    failed = search.candidates - search.measured_architectures
    text = f" {search.measured_architectures} candidates measured by {search.strategy}"
    text += f", {failed} failed." if failed else "."
    if (rated := search.yardstick) is None:
        return text
    if rated.hypervolume_share is not None:
        text += (
            f" Their front has {rated.hypervolume_share:.1%} of the hypervolume of the exact front "
            "of an additive latency model"
        )
        text += (
            f" ({rated.bound_share:.1%} of its bound)."
            if rated.bound_share != rated.hypervolume_share
            else "."
        )
    return f"{text} That model is off the measured latencies by {rated.error_percent:.1f}%."


def _front_figure(results: Results) -> go.Figure:
    front, reference = results.front, results.reference
    finetuned = [point for point in front if point.accuracy is not None]
    figure = go.Figure()
    points = results.search.points
    figure.add_scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        name="candidates, predicted",
        mode="markers",
        marker={"color": _GREY, "size": 6},
        hovertemplate="%{x:.4f} ms, predicted %{y:.2%}<extra></extra>",
    )
    figure.add_scatter(
        x=[point.latency.median_ms for point in front],
        y=[point.predicted_accuracy for point in front],
        text=[_words(point) for point in front],
        name="front, predicted",
        mode="lines+markers",
        line={"color": _BLUE, "shape": "hv"},
        marker={"size": 9},
        hovertemplate="%{text}<extra></extra>",
    )
    figure.add_scatter(
        x=[point.latency.median_ms for point in finetuned],
        y=[point.accuracy for point in finetuned],
        text=[_words(point) for point in finetuned],
        name="front, finetuned and measured",
        mode="markers",
        marker={"color": _ORANGE, "size": 13, "symbol": "diamond"},
        hovertemplate="%{text}<extra></extra>",
    )
    figure.add_scatter(
        x=[reference.latency.median_ms],
        y=[reference.accuracy],
        text=[f"<b>reference {escape(reference.model)}</b>"],
        name="reference",
        mode="markers",
        marker={"color": _INK, "size": 16, "symbol": "star"},
        hovertemplate="%{text}<br>%{x:.4f} ms, accuracy %{y:.2%}<extra></extra>",
    )
    figure.update_xaxes(title="latency in ms, median, batch 1")
    figure.update_yaxes(title="accuracy", tickformat=".1%")
    return figure


def _words(point: FrontPoint) -> str:
    measured = "" if point.accuracy is None else f", accuracy {point.accuracy:.2%}"
    stages = [f"stage {number}: {escape(block)}" for number, block in enumerate(point.blocks)]
    lines = [
        f"<b>{point.id}</b>",
        f"{point.latency.median_ms:.4f} ms, predicted {point.predicted_accuracy:.2%} "
        f"{_interval(point.predicted_low, point.predicted_high)}{measured}",
        *stages,
    ]
    return "<br>".join(lines)


def _front_table(results: Results) -> str:
    rows = []
    for point in results.front:
        files = " ".join(
            f'<a href="{escape(path)}">{name}</a>'
            for name, path in (("weights", point.weights), ("onnx", point.onnx))
            if path is not None
        )
        rows.append(
            [
                f"<code>{point.id}</code><br>{files}",
                "<br>".join(escape(block) for block in point.blocks),
                f"{point.latency.median_ms:.4f}",
                f"{point.latency.p20_ms:.4f} / {point.latency.p90_ms:.4f}",
                f"{point.predicted_accuracy:.2%}<br>"
                f"{_interval(point.predicted_low, point.predicted_high)}",
                "" if point.accuracy is None else f"<b>{point.accuracy:.2%}</b>",
                f"{point.params:,}",
                f"{point.macs:,}",
            ]
        )
    header = ["network", "blocks", "median ms", "p20 / p90", "predicted", "accuracy", "params"]
    return _table([*header, "MACs"], rows, text_columns=2)


def _predictor_text(results: Results) -> str:
    return (
        f"Kendall tau {_estimate(results.predictor.kendall_tau)} over {results.predictor.samples} "
        "finetuned architectures, each predicted by a fit to the others; brackets are 95% "
        "bootstrap intervals, bars 95% prediction intervals. A simple figure ranks by itself, and "
        f"its error is that of a line through it.{_kept(results)}"
    )


def _kept(results: Results) -> str:
    before, now = results.predictor.library_size, results.library.size
    if before == now:
        return ""
    return f" It was fitted when the library had {before} of its {now} blocks."


def _predictor(results: Results) -> str:
    samples = results.predictor.architectures
    figure = go.Figure()
    figure.add_scatter(
        x=[sample.predicted for sample in samples],
        y=[sample.accuracy for sample in samples],
        text=[sample.id for sample in samples],
        mode="markers",
        marker={"color": _BLUE, "size": 9},
        error_x={
            "array": [sample.predicted_high - sample.predicted for sample in samples],
            "color": _GREY,
            "thickness": 1,
        },
        hovertemplate="%{text}<br>predicted %{x:.2%}, measured %{y:.2%}<extra></extra>",
    )
    figure.update_xaxes(title="predicted", tickformat=".1%")
    figure.update_yaxes(title="measured", tickformat=".1%")
    rows = [
        [
            escape(name),
            *(_estimate(each) for each in (quality.kendall_tau, quality.spearman, quality.r2)),
            f"{quality.mse.value**0.5:.2%}",
        ]
        for name, quality in results.predictor.quality.items()
    ]
    header = ["by", "Kendall tau", "Spearman", "R2", "error (root mean square)"]
    return _plot(figure, 340) + _table(header, rows, text_columns=1)


def _library_figure(results: Results) -> go.Figure:
    figure = go.Figure()
    for number, stage in enumerate(results.library.stages):
        figure.add_scatter(
            x=[block.macs for block in stage.blocks],
            y=[block.nsr for block in stage.blocks],
            text=[escape(block.block) for block in stage.blocks],
            name=f"stage {number}",
            mode="markers",
            marker={"color": _STAGE_COLOURS[number % len(_STAGE_COLOURS)], "size": 8},
            hovertemplate="%{text}<br>NSR %{y:.3f}, %{x:,} MACs<extra></extra>",
        )
    figure.update_xaxes(title="MACs")
    figure.update_yaxes(title="NSR")
    return figure


def _left_out(results: Results) -> str:
    """Tables of the blocks that are in no network."""
    library = results.library
    failed = [[escape(one.block), escape(one.reason), str(one.stage)] for one in library.failed]
    paused = [[escape(one.block), str(one.stage), f"{one.nsr:.3f}"] for one in library.paused]
    return (
        _table(["could not be distilled", "reason", "stage"], failed, text_columns=2)
        if failed
        else ""
    ) + (
        _table(["paused in the early race", "stage", "NSR then"], paused, text_columns=1)
        if paused
        else ""
    )


def _cost_table(results: Results) -> str:
    rows = [
        [name, f"{cost.seconds:.1f}", f"{cost.image_passes:,}", "yes" if cost.reused else ""]
        for name, cost in results.cost.items()
    ]
    return _table(["step", "seconds", "image passes", "reused in this run"], rows, text_columns=1)


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _interval(low: float, high: float) -> str:
    return f"[{low:.2%}, {high:.2%}]"


def _section(title: str, text: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{content}</section>"


def _plot(figure: go.Figure, height: int) -> str:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 10, "b": 50},
        legend={"orientation": "h", "y": 1.08},
        hoverlabel={"align": "left"},
    )
    html: str = figure.to_html(full_html=False, include_plotlyjs=False)
    return html


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        marked = (
            f"<{tag}{'' if number < text_columns else ' class=n'}>{cell}</{tag}>"
            for number, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    return f"<table>{row('th', header)}{''.join(row('td', cells) for cells in rows)}</table>"
