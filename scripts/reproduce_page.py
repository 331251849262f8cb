"""What `reproduce.py` found, as a table, a line of JSON and a part of a page."""

import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from device_farm.connectors.cpu import cpu_name

__all__ = ["machine", "render", "summary_of", "table_of"]

Row = dict[str, Any]


def table_of(results: dict[str, Any]) -> Table:
    """One line a claim: the paper's, the target here, and what was measured."""
    table = Table("claim of the paper", "target here", "measured")
    for name, row in results["rows"].items():
        claim, target, words = _CLAIMS[name]
        table.add_row(claim, target, words(row))
    return table


def summary_of(results: dict[str, Any]) -> dict[str, Any]:
    """The figures that are held against targets."""
    found: dict[str, Any] = {"reference": results["reference"]["test_accuracy"]}
    for name, row in results["rows"].items():
        found |= {f"{name}_{key}": value for key, value in _SUMMARIES[name](row).items()}
    return found


def render(results: dict[str, Any], page: Path, name: str) -> None:
    """Write the results between the two marks of a page that have their name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = page.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{page} must have the lines {begin!r} and {end!r}, but lacks one")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n{_markdown(results)}\n{end}{after}")


def machine() -> dict[str, str | None]:
    """What the results are of."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu_name([0]), "system": platform.platform(), "gpu": gpu}


def _markdown(results: dict[str, Any]) -> str:
    reference, scale, machine = results["reference"], results["scale"], results["machine"]
    lines = [
        f"`--scale {scale['name']}`, seed {scale['seed']}, on {machine['gpu'] or machine['cpu']}: "
        f"{scale['images']:,} images of {scale['image_size']} pixels to train on; the reference "
        f"has {reference['test_accuracy']:.1%} "
        f"[{reference['test_low']:.1%}, {reference['test_high']:.1%}] of the test images.",
        "",
        "| claim of the paper | target here | measured |",
        "|---|---|---|",
    ]
    for name, row in results["rows"].items():
        claim, target, words = _CLAIMS[name]
        lines.append(f"| {claim} | {target} | {words(row)} |")
    for name, heads in (("scaled", ("found", "scaled")), ("compress", ("compress", "rivals"))):
        if name in results["rows"]:
            lines += ["", *_networks(results["rows"][name], heads)]
    return "\n".join(lines)


def _networks(row: Row, heads: Sequence[str]) -> list[str]:
    lines = ["| network | test accuracy | ms | params |", "|---|---|---|---|"]
    for head in heads:
        for each in sorted(row[head], key=lambda one: one["ms"]):
            own = f"{each['name']} ({head})" if head in ("found", "compress") else each["name"]
            lines.append(
                f"| {own} | {each['test_accuracy']:.1%} "
                f"[{each['test_low']:.1%}, {each['test_high']:.1%}] | {each['ms']:.3f} | "
                f"{each['params']:,} |"
            )
    return lines


def _median(values: Sequence[float]) -> str:
    if not values:
        return "no accuracies or latencies in common"
    return f"{statistics.median(values):.1%} [{min(values):.1%}, {max(values):.1%}]"


def _of_scaled(row: Row) -> str:
    return (
        f"{_median(row['faster_at_equal_accuracy'])} less latency at equal accuracy, "
        f"{_median(row['more_accurate_at_equal_latency'])} more accurate at equal latency"
    )


def _of_cost(row: Row) -> str:
    parts = []
    for name, count in row["candidates_needed"].items():
        times = row["times_cheaper"].get(name)
        if times is None:  # of an earlier form
            parts.append(f"{name}: not with {row['most']} candidates")
            continue
        needs = f"more than {row['most']}" if count is None else str(count)
        parts.append(
            f"{name} needs {needs} candidates: {'over ' if count is None else ''}"
            f"{times['1']:.1f}x, for four scenarios {times['4']:.1f}x, for ten {times['10']:.1f}x "
            "as many image passes"
        )
    return "; ".join(parts)


def _of_tau(row: Row) -> str:
    def words(each: Row) -> str:
        return f"{each['value']:.2f} [{each['low']:.2f}, {each['high']:.2f}]"

    others = ", ".join(f"{name} {words(each)}" for name, each in row["tau"].items())
    return (
        f"of {row['networks']} networks: {others}; two sets of images {words(row['noise_floor'])}"
    )


def _of_epochs(row: Row) -> str:
    def words(each: Row) -> str:
        more = each["times"] is None
        times = f"more than {row['longest']}" if more else f"{each['times']:g}"
        tried = ", ".join(
            f"{facts['test_accuracy']:.1%} after {round(float(length) * row['epochs'])}"
            for length, facts in each["from_random_weights"].items()
        )
        return f"{times} times for {each['from_blocks']['test_accuracy']:.1%} ({tried})"

    networks = "; ".join(map(words, row["networks"]))
    return f"epochs from random weights over {row['epochs']} from blocks: {networks}"


def _of_scenarios(row: Row) -> str:
    parts = []
    for cost, shares in row["shares"].items():
        others = ", ".join(f"{name} {value:.2f}" for name, value in shares.items() if name != cost)
        parts.append(f"under {cost}: {others}")
    return "hypervolume over that of the own front " + "; ".join(parts)


def _of_extension(row: Row) -> str:
    return (
        f"{row['blocks_added']} blocks, library {row['image_passes']['library']:,} image passes "
        f"(before {row['image_passes_before']['library']:,}); hypervolume "
        f"{row['hypervolume_over_before']:.3f} of the one before; on {row['on_the_front']} of "
        f"{row['front']} networks of the front"
    )


def _of_compress(row: Row) -> str:
    ms = row["reference_ms"]
    words = [
        f"{each['name']}: {each['test_accuracy']:.1%} at {each['ms'] / ms:.2f}x"
        for each in [*row["compress"], *row["rivals"]]
    ]
    return "; ".join(words)


_CLAIMS: dict[str, tuple[str, str, Callable[[Row], str]]] = {
    "scaled": ("20% faster at equal accuracy than known networks", "20%", _of_scaled),
    "cost": ("a search up to 100x cheaper", "10x for one, 30x for four scenarios", _of_cost),
    "tau": ("Kendall tau of about 0.9", "0.9, above every baseline", _of_tau),
    "epochs": ("finetuning in 9x fewer epochs", "9x", _of_epochs),
    "scenarios": ("any scenario from one library", "the own front is the best", _of_scenarios),
    "extension": ("more blocks afterwards", "a front that is no worse", _of_extension),
    "compress": ("compression for a device", "more accurate at equal latency", _of_compress),
}

_SUMMARIES: dict[str, Callable[[Row], dict[str, Any]]] = {
    "scaled": lambda row: {
        name: statistics.median(row[name]) if row[name] else None
        for name in ("faster_at_equal_accuracy", "more_accurate_at_equal_latency")
    },
    "cost": lambda row: {"candidates_needed": row["candidates_needed"]},
    "tau": lambda row: {"predictor": row["tau"]["predictor"]["value"]},
    "epochs": lambda row: {"times": [each["times"] for each in row["networks"]]},
    "scenarios": lambda row: {"shares": row["shares"]},
    "extension": lambda row: {"hypervolume_over_before": row["hypervolume_over_before"]},
    "compress": lambda row: {
        each["name"]: [round(each["test_accuracy"], 4), round(each["ms"], 4)]
        for each in [*row["compress"], *row["rivals"]]
    },
}
