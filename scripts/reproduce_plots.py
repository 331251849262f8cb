"""The plots of what `reproduce.py` found. Needs matplotlib, which `.[dev]` brings.

python scripts/reproduce_plots.py docs/results/cifar10.json docs/results
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

Network = dict[str, Any]
_MARKS = "ovs^D*"


def main() -> None:
    """Writes `NAME-scaled.svg` and `NAME-compress.svg`, of the rows that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("to", type=Path, help="the folder of the plots")
    arguments = parser.parse_args()
    rows = json.loads(arguments.results.read_text())["rows"]
    plt.rcParams["svg.hashsalt"] = "the same file for the same figures"
    for name, own, others in (
        ("scaled", "found", "scaled"),
        ("compress", "compress", "rivals"),
    ):
        if name in rows:
            target = arguments.to / f"{arguments.results.stem}-{name}.svg"
            _plot(target, {"donna": rows[name][own], **_families(rows[name][others])})
            print(target)


def _families(networks: Sequence[Network]) -> dict[str, list[Network]]:
    """By what stands before the size in their names."""
    families: dict[str, list[Network]] = {}
    for each in networks:
        name = each["name"].split(",")[0].split(" at ")[0]
        families.setdefault(name, []).append(each)
    return families


def _plot(target: Path, families: dict[str, list[Network]]) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for mark, (name, networks) in zip(_MARKS, families.items(), strict=False):
        rows = sorted(networks, key=lambda each: each["ms"])
        accuracy = [100 * each["test_accuracy"] for each in rows]
        below = [100 * (each["test_accuracy"] - each["test_low"]) for each in rows]
        above = [100 * (each["test_high"] - each["test_accuracy"]) for each in rows]
        axes.errorbar(
            [each["ms"] for each in rows],
            accuracy,
            yerr=[below, above],
            fmt=f"{mark}-" if name == "donna" else mark,
            label=name,
            capsize=2,
            linewidth=1,
        )
    axes.set_xlabel("ms an image, one thread of this CPU")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
