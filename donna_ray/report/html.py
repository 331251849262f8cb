"""report.html: one self-contained page, drawn from results.json alone."""

from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from donna_ray.report.fronts import scenario_sections
from donna_ray.report.headline import QUESTIONS, tested, worded
from donna_ray.report.parts import BLUE, GREY, plot, section, table
from donna_ray.report.results import Estimate, Results

__all__ = ["render"]

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
        f"<p>{escape(results.reference.model)} on {escape(results.data)}, for {_devices(results)}"
        "</p>",
        *(f'<section class="warning">{escape(each)}</section>' for each in results.doubts),
        _tiles(results),
        *(scenario_sections(results, each) for each in results.scenarios),
        section("The accuracy predictor", _predictor_text(results), _predictor(results)),
        section(
            "The block library",
            "Every block of every stage: its noise-to-signal ratio, lower is nearer to the "
            "reference, against its multiply-accumulates.",
            plot(_library_figure(results), 380) + _left_out(results),
        ),
        section("What it cost", "", _cost_table(results)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(results.name)}</title><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><main>{''.join(body)}</main></body></html>"
    )


def _devices(results: Results) -> str:
    names = (f"{each.device.model} ({each.device.connector})" for each in results.scenarios)
    return ", ".join(map(escape, dict.fromkeys(names)))


def _tiles(results: Results) -> str:
    reference = results.reference
    tiles = [
        (tested(reference), f"the reference on {reference.test_images} test images"),
        (tested(reference.finetuned), "the reference, finetuned by the networks' recipe"),
        (f"{results.predictor.kendall_tau.value:.2f}", "Kendall tau of the predictor"),
    ]
    for scenario in results.scenarios:
        name = f" ({escape(scenario.name)})" if len(results.scenarios) > 1 else ""
        latency = scenario.reference_latency.median_ms
        tiles.append((f"{latency:.3f} ms", f"latency of the reference{name}"))
        tiles += [
            (worded(getattr(scenario.headline, question)), words + name)
            for question, words in QUESTIONS.items()
        ]
    cells = (f'<div class="tile"><b>{big}</b><span>{small}</span></div>' for big, small in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _predictor_text(results: Results) -> str:
    return (
        f"Kendall tau {_estimate(results.predictor.kendall_tau)} over {results.predictor.samples} "
        "architectures after the short finetuning, each predicted by a fit to the others; brackets "
        "are 95% bootstrap intervals, bars 95% prediction intervals. A simple figure ranks by "
        f"itself, and its error is that of a line through it.{_kept(results)}"
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
        marker={"color": BLUE, "size": 9},
        error_x={
            "array": [sample.predicted_high - sample.predicted for sample in samples],
            "color": GREY,
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
    return plot(figure, 340) + table(header, rows, text_columns=1)


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
        table(["could not be distilled", "reason", "stage"], failed, text_columns=2)
        if failed
        else ""
    ) + (
        table(["paused in the early race", "stage", "NSR then"], paused, text_columns=1)
        if paused
        else ""
    )


def _cost_table(results: Results) -> str:
    rows = [
        [name, f"{cost.seconds:.1f}", f"{cost.image_passes:,}", "yes" if cost.reused else ""]
        for name, cost in results.cost.items()
    ]
    return table(["step", "seconds", "image passes", "reused in this run"], rows, text_columns=1)


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
