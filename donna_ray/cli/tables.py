"""What the rooms below find, as tables for a terminal."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = [
    "print_blocks",
    "print_plan",
    "print_record",
    "print_reference",
    "print_space",
    "print_suggestions",
]

Facts = dict[str, Any]

_FALLS = ("variance falls by", "interval narrows by")
_NUMBERS = ("stride", "params", "MACs", "share", "NSR", "seconds", "bytes", *_FALLS)


def print_reference(facts: Facts) -> None:
    """The result of ``reference.facts.reference_facts``."""
    console = _console()
    console.print(
        f"{facts['model']}: input {_shape(facts['input'])}, {facts['classes']} classes, "
        f"{_count(facts['params'])} params, {_count(facts['macs'])} MACs"
    )
    columns = ("part", "modules", "input", "output", "stride", "params", "MACs", "share", "block")
    rows = [
        (
            part["part"],
            _names(part["modules"]),
            _shape(part["input"]),
            _shape(part["output"]),
            str(part["stride"]),
            _count(part["params"]),
            _count(part["macs"]),
            f"{100 * part['share']:.1f}%",
            part["block"] or "",
        )
        for part in facts["parts"]
    ]
    console.print(_table(columns, rows))
    console.print(f"head(stages(stem(x))) differs from the model by {facts['max_error']:.1e}")


def print_plan(lines: Sequence[Facts]) -> None:
    """``Line.to_json`` of several sizes of a cluster, which has `nodes` besides its head."""
    steps = tuple(lines[0]["seconds"])
    priced = ("price",) if "price" in lines[0] else ()
    rows = [
        (
            str(line["nodes"]),
            str(line["cluster.workers"]),
            *(_asked(line, step) for step in steps),
            _duration(line["total_seconds"]),
            f"{line['node_hours']:.3g}",
            *(f"{line[name]:,.2f}" for name in priced),
        )
        for line in lines
    ]
    columns = ("nodes", "cluster.workers", *steps, "total", "node-hours", *priced)
    _console().print(_table(columns, rows))


def _asked(line: Facts, step: str) -> str:
    """A step's time, and how many nodes it asks for where it could have more."""
    time, nodes = _duration(line["seconds"][step]), line["nodes_asked"][step]
    return f"{time} on {nodes}" if 0 < nodes < line["nodes"] else time


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def print_space(facts: Facts) -> None:
    """The result of ``reference.facts.space_facts``."""
    console = _console()
    for number, stage in enumerate(facts["stages"]):
        own = ", the reference's own stage among them" if stage["own"] else ""
        console.print(
            f"stage {number} ({_names(stage['modules'])}): {_shape(stage['input'])} to "
            f"{_shape(stage['output'])}, stride {stage['stride']}: {stage['choices']} blocks{own}"
        )
        if number and stage["families"] == facts["stages"][number - 1]["families"]:
            console.print("    the same blocks as in the stage before")
            continue
        for name, family in stage["families"].items():
            options = "; ".join(
                f"{option} {', '.join(map(str, values))}"
                for option, values in family["options"].items()
            )
            console.print(f"    {family['blocks']} {name}: {options}")
    rows = [
        (f"stage {number}", str(stage["choices"]), *_ranges(stage))
        for number, stage in enumerate(facts["stages"])
    ]
    rows.append(("network", f"{facts['size']:.3g}", *_ranges(facts)))
    console.print(_table(("", "choices", "params", "MACs"), rows))
    console.print(
        f"{facts['size']:,} networks of {facts['blocks']} blocks on {facts['reference']} with "
        f"{facts['classes']} classes; all blocks keep their stage's shape"
    )
    console.print("registered families:")
    for family in facts["families"]:
        yours = "" if family["builtin"] else " (yours)"
        console.print(f"    {family['name']}{yours}: {', '.join(family['options'])}")


def print_blocks(blocks: Sequence[Facts]) -> None:
    """The result of ``library.tools.blocks_of``."""
    rows = [
        (
            str(block["stage"]),
            block["block"],
            _known(block["nsr"], "{:.4g}".format),
            _known(block["params"], _count),
            _known(block["macs"], _count),
            _known(block["seconds"], "{:.1f}".format),
            block["key"],
            f"failed: {block['failed']}" if block["failed"] else "",
        )
        for block in blocks
    ]
    columns = ("stage", "block", "NSR", "params", "MACs", "seconds", "key", "")
    console = _console()
    console.print(_table(columns, rows))
    failed = sum(block["failed"] is not None for block in blocks)
    console.print(f"{len(blocks)} blocks, {failed} of them failed")


def print_record(facts: Facts) -> None:
    """The result of ``library.tools.record_of``."""
    console = _console()
    for name, value in facts["record"].items():
        console.print(f"{name}: {json.dumps(value)}")
    rows = [(file["name"], str(file["bytes"])) for file in facts["files"]]
    console.print(_table(("file", "bytes"), rows))


def print_suggestions(facts: Facts) -> None:
    """The result of ``predictor.suggestions.suggestions``."""
    rows = [
        (
            f"{each['id']}\n{'-'.join(map(str, each['architecture']))}",
            "\n".join(each["blocks"]),
            f"{each['variance_fall']:.1%}",
            f"{each['interval_fall']:.1%}",
        )
        for each in facts["architectures"]
    ]
    console = _console()
    console.print(_table(("id", "blocks", *_FALLS), rows))
    total = facts["samples"] + len(rows)
    console.print(
        f"{facts['samples']} architectures are finetuned. Gains are of the mean over the space, by "
        "an architecture and those before it. With predictor.sampling 'informed', and without "
        f"predictor.tau_interval, the run finetunes these once predictor.samples is {total}."
    )


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = 200  # a table in a file is not to be cut to a terminal's width
    return console


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None)
    for column in columns:
        justify: Any = "right" if column in _NUMBERS else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _known(value: float | None, words: Callable[[float], str]) -> str:
    return "" if value is None else words(value)


def _ranges(facts: Facts) -> tuple[str, str]:
    params, macs = (" to ".join(map(_count, facts[name])) for name in ("params", "macs"))
    return params, macs


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _names(names: Sequence[str]) -> str:
    return " ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]}"


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:  # what is rounded up to it
            return f"{value / size:.3g}{unit}"
    return str(value)
