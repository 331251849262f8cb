"""report.html: one self-contained page, drawn from results.json alone."""

import json
from html import escape
from importlib.resources import files
from shlex import quote

from donna_ray.report.answers import answers
from donna_ray.report.drawing import Drawing
from donna_ray.report.fronts import front_section, origin, title
from donna_ray.report.results import Results
from donna_ray.report.sections import (
    cost_section,
    farm_section,
    library_section,
    predictor_section,
)

__all__ = ["render"]

_SCRIPTS = ("d3.min.js", "plot.umd.min.js", "report.js")
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"


def render(results: Results) -> str:
    """The page as HTML."""
    results = results.in_own_precisions()
    page = files(__package__) / "page"
    style, *texts = (
        (page / name).read_text(encoding="utf-8") for name in ("report.css", *_SCRIPTS)
    )
    data = json.dumps(results.model_dump(mode="json"))
    data = data.replace("<", "\\u003c")  # so that no name in it ends the element
    scripts = "".join(f"<script>{text}</script>" for text in texts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(results.name)}</title>"
        f"<style>{style}</style></head><body>"
        f'{_head(results)}<main data-folder="{escape(quote(results.made.folder))}">'
        f"{_body(results)}</main>{_footer(results)}"
        f'<script type="application/json" id="results">{data}</script>'
        f"{scripts}</body></html>"
    )


def _head(results: Results) -> str:
    links = [("answer", "Answer")]
    links += [
        (f"front-{number}", title(results, each, "the front"))
        for number, each in enumerate(results.scenarios)
    ]
    present = {
        "predictor": results.predictor,
        "library": results.library,
        "farm": results.scenarios,
        "cost": True,
    }
    links += [(name, name.capitalize()) for name, there in present.items() if there]
    items = "".join(f'<li><a href="#{name}">{escape(words)}</a></li>' for name, words in links)
    devices = dict.fromkeys(
        f"{each.device.model} ({each.device.connector})" for each in results.scenarios
    )
    for_ = f", for {', '.join(devices)}" if devices else ""
    return (
        f"<header><h1>{escape(results.name)}</h1>"
        f"<p>{escape(results.reference.model)} on {escape(results.data)}{escape(for_)}</p>"
        f'<nav aria-label="Parts of this page"><ul>{items}</ul></nav></header>'
    )


def _body(results: Results) -> str:
    stages = results.library.stages if results.library else []
    drawing = Drawing([block.block for block in stage.blocks] for stage in stages)
    parts = [
        *(f'<p class="warning">{escape(each)}</p>' for each in _warnings(results)),
        *map(origin, results.scenarios),
        answers(results),
        *(front_section(results, number, drawing) for number in range(len(results.scenarios))),
        predictor_section(results, results.predictor) if results.predictor else "",
        library_section(results.library) if results.library else "",
        farm_section(results) if results.scenarios else "",
        cost_section(results),
        _templates(results, drawing),
    ]
    return "".join(parts)


def _warnings(results: Results) -> list[str]:
    if results.made.finished:
        return results.doubts
    done = ", ".join(results.cost)
    return [
        f"This run is not finished. Done: {done}. The end of each step writes this page anew.",
        *results.doubts,
    ]


def _templates(results: Results, drawing: Drawing) -> str:
    """Each block of the library, which the page's script puts together to networks."""
    stages = results.library.stages if results.library else []
    return "".join(
        f'<template id="block-{number}-{choice}">{drawing.block(block.block)}</template>'
        for number, stage in enumerate(stages)
        for choice, block in enumerate(stage.blocks)
    )


def _footer(results: Results) -> str:
    made = results.made
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    facts = (
        ("Written", f"{made.at} on {made.host} ({made.system}, {made.cpus} CPUs)"),
        ("Seed", str(results.seed)),
        ("Versions", versions),
    )
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return (
        f"<footer><dl>{rows}<dt>Command</dt><dd><code>{escape(made.command)}</code></dd></dl>"
        '<p>All of it is in <a href="results.json">results.json</a>, beside this page.</p></footer>'
    )
