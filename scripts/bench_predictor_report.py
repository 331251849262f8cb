"""What bench_predictor.py prints, and the section of a page that it writes."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

__all__ = ["Curve", "render", "summary", "table_of"]

Curve = dict[str, list[Any]]

_TAU, _RATIO = 0.9, 9  # the figures of the paper
_NEAR = 0.02  # of the whole pool's tau
_BEGIN, _END = "<!-- predictor: begin -->", "<!-- predictor: end -->"


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The figures that matter, rounded."""
    found = results["quality"]["kendall_tau"]
    return {
        "kendall_tau": round(found["value"], 3),
        "interval": [round(found["low"], 3), round(found["high"], 3)],
        "noise_floor_tau": round(results["noise_floor_tau"]["value"], 3),
        "baselines": {name: round(each["value"], 3) for name, each in results["baselines"].items()},
        "finetune_epoch_ratio": _epoch_ratio(results),
        "samples_informed": _needed(results["curves"], "informed"),
        "samples_random": _needed(results["curves"], "random"),
    }


def _epoch_ratio(results: dict[str, Any]) -> int | str:
    """The median over the networks; '>cap' where most of them did not get there."""
    cap = results["settings"]["cap"]
    ratios = [each["ratio"] or 2 * cap for each in results["finetune_epoch_ratios"]]
    middle = median(ratios)
    return f">{cap}" if middle > cap else int(middle)


def _needed(curves: Curve, name: str) -> int:
    """The fewest samples from which on tau stays near that of the whole pool."""
    near = [value >= curves["informed"][-1] - _NEAR for value in curves[name]]
    last = max((index for index, each in enumerate(near) if not each), default=-1)
    samples: int = curves["samples"][last + 1]
    return samples


def rows_of(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What and its figure, for people."""
    short, held_out = summary(results), results["held_out"]
    accuracies = [each["first"] for each in held_out]
    noise = median(abs(each["first"] - each["second"]) for each in held_out)
    quality = results["quality"]
    ratios = ", ".join(str(each["ratio"]) for each in results["finetune_epoch_ratios"])
    return [
        ("accuracy of the reference", f"{results['reference_accuracy']:.2%}"),
        ("held-out networks", str(len(held_out))),
        ("their accuracies", f"{min(accuracies):.2%} to {max(accuracies):.2%}"),
        ("difference between two seeds, median", f"{noise:.2%}"),
        ("Kendall tau of the predictor", _estimate(quality["kendall_tau"])),
        ("Spearman", _estimate(quality["spearman"])),
        ("R2", _estimate(quality["r2"])),
        ("error, root mean square", f"{quality['mse']['value'] ** 0.5:.2%}"),
        ("in their 95% interval", f"{results['interval_coverage']:.0%}"),
        ("Kendall tau between two seeds", _estimate(results["noise_floor_tau"])),
        *(
            (f"Kendall tau of {name}", _estimate(each))
            for name, each in results["baselines"].items()
        ),
        ("samples needed, informed", str(short["samples_informed"])),
        ("samples needed, random", str(short["samples_random"])),
        (
            "epochs from random weights over finetuning",
            f"{short['finetune_epoch_ratio']} ({ratios})",
        ),
    ]


def targets_of(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was aimed at (the first two figures are the paper's), what was found, and whether."""
    short = summary(results)
    found, ratio = short["kendall_tau"], short["finetune_epoch_ratio"]
    name, best = max(short["baselines"].items(), key=lambda each: float(each[1]))
    informed, random = short["samples_informed"], short["samples_random"]
    return [
        ("Kendall tau of 0.9", f"{found}", _word(found >= _TAU)),
        ("epoch ratio of 9", f"{ratio}", _word(isinstance(ratio, str) or ratio >= _RATIO)),
        ("tau above every baseline's", f"{found} against {best} of {name}", _word(found > best)),
        (
            "fewer samples informed than random",
            f"{informed} against {random}",
            _word(informed < random),
        ),
    ]


def _word(reached: bool) -> str:
    return "reached" if reached else "missed"


def table_of(results: dict[str, Any]) -> Table:
    """For a terminal."""
    table = Table("what", "figure")
    for row in rows_of(results):
        table.add_row(*row)
    return table


def render(source: Path, page: Path) -> None:
    """Write the results into their section of a page, which is made where it is missing."""
    section = f"{_BEGIN}\n{_section(json.loads(source.read_text())['details'])}{_END}\n"
    text = page.read_text() if page.exists() else "# Results\n\n"
    before, begin, rest = text.partition(_BEGIN)
    after = rest.partition(f"{_END}\n")[2] if begin else ""
    page.write_text(before + section + after)


def _section(results: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in results["settings"].items())
    curves = results["curves"]
    columns = zip(*(curves[name] for name in ("samples", "informed", "random")), strict=True)
    lines = [
        "## The accuracy predictor",
        "",
        "Networks of the micro space on CIFAR-10 that the predictor was not fitted to. Brackets",
        "are 95% bootstrap intervals. Made by `scripts/bench_predictor.py`, which says what each",
        "figure means.",
        "",
        f"Settings: {settings}.",
        "",
        "| what | figure |",
        "|---|---|",
        *(f"| {what} | {figure} |" for what, figure in rows_of(results)),
        "",
        "| aim | found | |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in targets_of(results)),
        "",
        "Kendall tau on the held-out networks by the number of finetuned samples:",
        "",
        "| samples | informed order | random orders, median |",
        "|---|---|---|",
        *(f"| {count} | {one:.3f} | {other:.3f} |" for count, one, other in columns),
        "",
    ]
    return "\n".join(lines)


def _estimate(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
