"""What the rooms below find, as tables for a terminal."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = [
    "print_blocks",
    "print_comparison",
    "print_diagnosis",
    "print_dry_run",
    "print_evaluation",
    "print_plan",
    "print_record",
    "print_reference",
    "print_space",
    "print_status",
    "print_suggestions",
]

Facts = dict[str, Any]

_SAME_UNIT = 0.05  # as far as baselines of one device may differ
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
    """A step's time, how many nodes it asks for where it could have more, and how busy its workers
    are."""
    time, nodes = _duration(line["seconds"][step]), line["nodes_asked"][step]
    some = f" on {nodes}" if 0 < nodes < line["nodes"] else ""
    busy = line["busy_share"][step]
    return f"{time}{some}, {busy:.0%} busy" if busy else f"{time}{some}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def print_diagnosis(findings: Sequence[Facts]) -> None:
    """The result of ``overview.doctor.diagnosis``."""
    rows = [(each["state"], each["check"], each["found"], each["remedy"]) for each in findings]
    _console().print(_table(("", "check", "found", "remedy"), rows))


def print_status(facts: Facts) -> None:
    """The result of ``overview.status.run_status``."""
    console = _console()
    holder = "" if facts["process"] is None else f" by process {facts['process']}"
    if facts["host"] is not None:
        holder += f" on {facts['host']} (below: what it had copied last)"
    console.print(
        f"{facts['run']}: {facts['state']}{holder}; begun {facts['started'] or 'unknown'}"
    )
    rows = [
        (
            row["step"],
            row["state"],
            _progress(row),
            "" if row["state"] == "waiting" else _duration(row["seconds"]),
            _known(row["seconds_left"], _duration),
            str(row["image_passes"] or ""),
        )
        for row in facts["steps"]
    ]
    console.print(_table(("step", "state", "progress", "time", "left", "image passes"), rows))
    cost = facts["cost"]
    console.print(
        f"cost of the finished steps: {_duration(cost['seconds'])}, "
        f"{cost['image_passes']:,} image passes"
    )


def _progress(row: Facts) -> str:
    if row["total"] is None:
        return ""
    phase = "" if row["phase"] in (None, row["step"]) else f"{row['phase']}: "
    return f"{phase}{row['done']}/{row['total']} {row['unit']}"


def print_comparison(facts: Facts) -> None:
    """The result of ``overview.compare.compared``."""
    console = _console()
    columns = ("", *facts["runs"])
    figures = [(each["name"], *map(_figure, each["values"])) for each in facts["figures"]]
    console.print(_table(columns, figures))
    settings = [(each["key"], *map(str, each["values"])) for each in facts["settings"]]
    console.print(
        _table(("settings that differ", "", ""), settings) if settings else "same settings"
    )
    for each in facts["scenarios"]:
        shares = " and ".join(f"{share:.1%}" for share in each["hypervolume"] if share is not None)
        other = "" if each["same_device"] else "; not measured on the same device"
        raw = "" if each["calibrated"] else " by raw predictions, since not both are calibrated"
        console.print(
            f"scenario {each['name']}: of the hypervolume of both fronts together they have "
            f"{shares or 'none'}{raw}; {len(each['networks'])} networks are on both{other}"
        )


def print_evaluation(facts: Facts) -> None:
    """The result of ``export.evaluate.evaluated``."""
    from device_farm.timing.sustained import in_words

    console, stated = _console(), facts["stated"]
    accuracy = facts["accuracy"]
    console.print(
        f"{facts['network']}: {accuracy['right']} of {accuracy['images']} images of "
        f"{facts['data']} are right: {accuracy['accuracy']:.2%} "
        f"[{accuracy['low']:.2%}, {accuracy['high']:.2%}]",
    )
    if stated["test_accuracy"] is not None:
        console.print(f"the card states {stated['test_accuracy']:.2%} of its test images")
    latency = facts["latency"]
    console.print(
        f"latency on {latency['device']}{_threads(latency)}: {latency['median_ms']:.3f} ms "
        f"± {latency['ci_percent']:.1f}%"
    )
    for name, words in in_words(facts["sustained"]).items() if facts["sustained"] else ():
        console.print(f"{name}: {words}")
    for each in stated["latency"]:
        console.print(f"the card states {each['median_ms']:.3f} ms on {_named_device(each)}")
        console.print(_why_they_differ(latency, each), end="")


def _why_they_differ(latency: Facts, stated: Facts) -> str:
    """A line where two latencies of one device are of other settings, or in other units."""
    if any(latency.get(name) != stated.get(name) for name in ("device", "connector")):
        return ""
    own, other = (each.get("settings") or {} for each in (latency, stated))
    names = [name for name in {**own, **other} if own.get(name) != other.get(name)]
    if not names:
        return _other_unit(latency, stated)
    theirs, here = (
        ", ".join(f"{name} {each.get(name)}" for name in names) for each in (other, own)
    )
    return f"  with other settings ({theirs}; here {here}): the two cannot be compared\n"


def _other_unit(latency: Facts, stated: Facts) -> str:
    """A line where two latencies are in other units, the control's baselines."""
    both = [each.get("environment", {}) for each in (latency, stated)]
    own, other = (each.get("control_baseline_ms") for each in both)
    if not (own and other) or abs(other / own - 1) <= _SAME_UNIT:
        return ""
    return (
        f"  with a baseline of {other:.3f} ms for the control model, which is {own:.3f} ms here: "
        f"by this one it is {stated['median_ms'] * own / other:.3f} ms\n"
    )


def print_dry_run(facts: Facts) -> None:
    """The result of ``overview.dry.dry_run``."""
    rows = [
        (
            row["step"],
            row["state"],
            row["work"],
            "" if row["image_passes"] is None else _count(row["image_passes"]),
        )
        for row in facts["steps"]
    ]
    console = _console()
    console.print(_table(("step", "state", "work", "image passes"), rows))
    console.print(f"in {facts['folder']}; nothing was done. `donna plan` measures what it takes.")


def _named_device(latency: Facts) -> str:
    name = f"{latency.get('device', 'its device')} ({latency.get('connector', '')})"
    return name + _threads(latency)


def _threads(latency: Facts) -> str:
    count = (latency.get("settings") or {}).get("threads")
    return "" if count is None else f" with {count} thread{'s' if count != 1 else ''}"


def _figure(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


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
    failed = sum(block["failed"] is not None for block in blocks)
    print("\n".join(_lines(columns, rows)))
    print(f"{len(blocks)} blocks, {failed} of them failed")


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


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of thousands of rows, for which rich takes a millisecond each."""
    table = [tuple(" ".join(cell.split()) for cell in row) for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = [column in _NUMBERS for column in columns]
    for row in table:
        cells = zip(row, widths, right, strict=True)
        yield "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width) for cell, width, is_right in cells
        ).rstrip()


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
