"""The parts of report.html that are about the run: predictor, library, farm and cost."""

from collections.abc import Iterator
from html import escape

from donna_ray.report.fronts import origin
from donna_ray.report.fronts import title as title_of
from donna_ray.report.parts import Cell, chart, csv_link, figure, interval, section, table
from donna_ray.report.results import Library, Predictor, Results
from donna_ray.report.scenario import Scenario

__all__ = ["cost_section", "farm_section", "library_section", "predictor_section"]

_ROUNDS = ("id", "first_ms", "rounds_ms", "median_ms", "ci_percent", "on_front_before", "on_front")


def predictor_section(results: Results, predictor: Predictor) -> str:
    """Predicted against real accuracies, and how well each ordering ranks."""
    words = (
        f"{predictor.samples} networks, finetuned for a short while, each predicted by a fit to "
        "the others; a simple figure ranks by itself, and its error is that of a line through it. "
        "Regret: by how much the network that is ranked first is less accurate than the best of "
        f"them. Brackets and bars are 95% intervals.{_kept(results, predictor)}"
    )
    header = ("by", "Kendall tau", "Spearman", "R2", "error, root mean square", "regret")
    rows = (
        [
            Cell.text(name),
            *(
                interval(each.value, each.low, each.high, ".2f")
                for each in (quality.kendall_tau, quality.spearman, quality.r2)
            ),
            figure(quality.mse.value**0.5, ".2%"),
            figure(predictor.regret[name], ".2%"),
        ]
        for name, quality in predictor.quality.items()
    )
    plots = chart(
        "predictor", "Measured against predicted accuracy of networks left out of the fit"
    )
    plots += chart("tau", "Kendall tau of the predictor and of simpler orderings")
    return section(
        "predictor",
        "The accuracy predictor",
        words,
        f'<p class="legend"><span class="key front"><i>●</i> samples, short finetuning</span>'
        f'<span class="key finetuned"><i>◆</i> networks, final finetuning</span></p>'
        f'<div class="pair">{plots}</div>'
        f"{table('orderings', 'How well networks are ranked', header, rows)}",
    )


def _kept(results: Results, predictor: Predictor) -> str:
    now = results.library.size if results.library else predictor.library_size
    if predictor.library_size == now:
        return ""
    return f" It was fitted when the library had {predictor.library_size} of its {now} blocks."


def library_section(library: Library) -> str:
    """NSR against cost, a panel a stage, and what is in no network."""
    panels = "".join(
        f"<div><h3>stage {number}: {len(stage.blocks)} blocks</h3>"
        f"{chart('library', f'NSR against MACs of the blocks of stage {number}', number)}</div>"
        for number, stage in enumerate(library.stages)
    )
    words = (
        f"{library.size} blocks: the noise-to-signal ratio of each, lower is nearer to the "
        "reference, against its multiply-accumulates."
    )
    return section(
        "library",
        "The block library",
        words,
        f'<div class="panels">{panels}</div>{_failed(library)}{_paused(library)}',
    )


def _failed(library: Library) -> str:
    rows = (
        [Cell(str(each.stage), each.stage), Cell.text(str(each.block)), Cell.text(each.reason)]
        for each in library.failed
    )
    found = table("failed", "Failed blocks", ("stage", "block", "reason"), rows)
    head = f"<h3>Could not be distilled: {len(library.failed)}</h3>"
    return head + found if library.failed else "<p>No block failed.</p>"


def _paused(library: Library) -> str:
    rows = (
        [Cell(str(each.stage), each.stage), Cell.text(str(each.block)), figure(each.nsr, ".3f")]
        for each in library.paused
    )
    found = table("paused", "Paused blocks", ("stage", "block", "NSR then"), rows)
    head = f"<h3>Paused in the early race: {len(library.paused)}</h3>"
    return head + found if library.paused else "<p>No block was paused in an early race.</p>"


def farm_section(results: Results) -> str:
    """The devices, and how far their measurements are to be trusted."""
    parts = [
        f"<h3>{escape(title_of(results, each, 'the device'))}</h3>{origin(each)}"
        f"{_device(each)}{_condition(each, number)}"
        f"{_rounds(each, number)}{_unmeasured(each, number)}"
        for number, each in enumerate(results.scenarios)
    ]
    words = (
        "What was measured on what. Drift: by how much the control model, which runs between the "
        "candidate's runs, was slower than at rest; it is divided out of the figures."
    )
    return section("farm", "The device farm", words, "".join(parts))


def _device(scenario: Scenario) -> str:
    device, search = scenario.device, scenario.search
    simulated = " · <strong>simulated: no device was measured</strong>" if device.simulated else ""
    settings = ", ".join(f"{name} {value}" for name, value in device.settings.items())
    again = (
        f"measured again: {len(search.verified.networks)}, by {search.verified.measurements} "
        f"measurements; timed runs: {search.timed_seconds:.1f} s"
    )
    again = "none was measured again" if device.connector == "recorded" else again
    return (
        f"<p><b>{escape(device.model)}</b> ({escape(device.connector)}){simulated}<br>"
        f"Networks: {search.measured_architectures}, and the reference; {again}</p>"
        f"<details><summary>Settings</summary><p>{escape(settings) or 'none'}</p></details>"
    )


def _condition(scenario: Scenario, number: int) -> str:
    told = {
        "drift": ("Drift of the control model, in %", "drift_percent"),
        "temperature": ("Temperature of the device, in °C", "temperature_c"),
    }
    plots, missing = "", []
    for kind, (label, name) in told.items():
        if any(getattr(each, name) is not None for each in scenario.search.measured):
            plots += chart(kind, f"{label}, measurement by measurement", number)
        else:
            missing.append(kind)
    gaps = f"<p>The device tells no {' and no '.join(missing)}.</p>" if missing else ""
    return f'<div class="pair">{plots}</div>{gaps}'


def _rounds(scenario: Scenario, number: int) -> str:
    if scenario.device.connector == "recorded":  # nothing was measured again
        return ""
    name, again = f"rounds-{number}", scenario.search.verified
    header = ("network", "first, ms", "rounds, ms", "median, ms", "± %", "on the front")
    rows = (
        [
            Cell.text(each.id),
            figure(each.first_ms, ".4f"),
            Cell(" ".join(f"{one:.4f}" for one in each.rounds_ms), each.rounds_ms[0]),
            figure(each.latency.median_ms, ".4f"),
            figure(each.latency.ci_percent, ".2f"),
            Cell.text(_before_and_after(each.on_front_before, each.on_front)),
        ]
        for each in again.networks
    )
    saved = (
        [
            facts[name] if name != "rounds_ms" else " ".join(map(str, facts[name]))
            for name in _ROUNDS
        ]
        for facts in (each.latency.model_dump() | each.model_dump() for each in again.networks)
    )
    tools = f'<p class="tools">{csv_link(name, _ROUNDS, saved)}</p>'
    found = table(name, f"What was measured again on {scenario.name}", header, rows, tools)
    head = f"<summary>Networks measured again: {len(again.networks)}</summary>"
    return f"<details>{head}{found}</details>"


def _before_and_after(before: bool, after: bool) -> str:
    return {(True, True): "stayed", (True, False): "left", (False, True): "joined"}.get(
        (before, after), "no"
    )


def _unmeasured(scenario: Scenario, number: int) -> str:
    failed = scenario.search.failed
    rows = ([Cell.text(each.id), Cell.text(each.reason)] for each in failed)
    found = table(f"unmeasured-{number}", "Not measured", ("network", "reason"), rows)
    head = f"<summary>Networks that could not be measured: {len(failed)}</summary>"
    return f"<details>{head}{found}</details>" if failed else ""


def cost_section(results: Results) -> str:
    """What the steps took, against training each measured network."""
    largest = max(
        *(each.image_passes for each in results.cost.values()),
        results.training_each.image_passes if results.training_each else 0,
        1,
    )
    device = sum(each.search.timed_seconds for each in results.scenarios)
    rows = list(_cost_rows(results, largest, device))
    words = (
        "Seconds are wall time of the process that finished the step; image passes are images that "
        "went through a training or evaluation step."
    )
    header = ("step", "seconds", "image passes", "share of the most", "device, s", "reused")
    return section(
        "cost",
        "What it cost",
        words,
        table("steps", "What each step cost", header, rows) + _against(results),
    )


def _cost_rows(results: Results, largest: int, device: float) -> Iterator[list[Cell]]:
    for name, cost in results.cost.items():
        yield [
            Cell.text(name),
            figure(cost.seconds, ".1f"),
            figure(cost.image_passes, ","),
            _bar(cost.image_passes / largest),
            figure(device, ".1f") if name == "search" else Cell("", None),
            Cell.text("yes" if cost.reused else ""),
        ]
    if (each := results.training_each) is not None:
        yield [
            Cell.text(f"training each of {each.networks:,} instead"),
            Cell("", None),
            figure(each.image_passes, ","),
            _bar(each.image_passes / largest),
            Cell("", None),
            Cell.text(""),
        ]


def _bar(share: float) -> Cell:
    return Cell(f'<span class="share" style="--share:{share:.4f}"></span>', share)


def _against(results: Results) -> str:
    if (each := results.training_each) is None:
        return ""
    passes = sum(cost.image_passes for cost in results.cost.values())
    times = each.image_passes / max(passes, 1)
    return (
        f"<p>All steps together took {passes:,} image passes. Training each of the "
        f"{each.networks:,} measured networks by the recipe of the final finetuning would take "
        f"{each.image_passes:,}, {times:.1f} times that.</p>"
    )
