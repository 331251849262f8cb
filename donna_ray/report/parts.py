"""Pieces of HTML that the report is made of."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

__all__ = ["Cell", "chart", "command", "csv_link", "figure", "interval", "section", "table", "told"]

Value = str | float | None


@dataclass(frozen=True)
class Cell:
    """What a cell shows, as HTML, and what it is sorted by; None, at the end, where not told."""

    html: str
    value: Value

    @classmethod
    def text(cls, words: str) -> "Cell":
        """Words, escaped."""
        return cls(escape(words), words)


def section(name: str, title: str, text: str, content: str) -> str:
    """A titled box that a link can lead to; title and text are escaped."""
    words = f"<p>{escape(text)}</p>" if text else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{escape(title)}</h2>{words}{content}</section>'
    )


def chart(kind: str, label: str, number: int = 0) -> str:
    """The place of a chart that the page's script draws.

    Args:
        kind: how it is drawn.
        label: what it shows, for who does not see it.
        number: of the scenario or the stage.
    """
    return (
        f'<figure class="chart" data-chart="{kind}" data-number="{number}" '
        f'data-label="{escape(label)}"></figure>'
    )


def command(words: str) -> str:
    """A command, with a button that copies it."""
    text = escape(words)
    return (
        f'<span class="command"><code tabindex="0">{text}</code>'
        f'<button type="button" class="copy" aria-label="Copy {text}">Copy</button></span>'
    )


def table(
    name: str, caption: str, header: Sequence[str], rows: Iterable[Iterable[Cell]], tools: str = ""
) -> str:
    """A table that is sorted by the buttons of its header; `tools` go above it.

    Args:
        name: of it on the page.
        caption: what it holds.
        header: of each column.
        rows: cells, as many as the header has.
        tools: HTML.
    """
    heads = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape(each)}</button></th>'
        for each in header
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'{tools}<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table id="{name}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(cell: Cell) -> str:
    kind = "" if isinstance(cell.value, str) else ' class="n"'
    value = "" if cell.value is None else escape(str(cell.value))
    return f'<td{kind} data-value="{value}">{cell.html}</td>'


def csv_link(name: str, header: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    """A link that saves a table as NAME.csv, in full precision."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return (
        f'<a class="button" download="{name}.csv" '
        f'href="data:text/csv;charset=utf-8,{quote(text.getvalue())}">CSV</a>'
    )


def figure(value: float | None, form: str) -> Cell:
    """A number in the form that ``format`` takes, or that it is not told."""
    return Cell(told(value, form), value)


def told(value: float | None, form: str) -> str:
    """The same, as text."""
    return "not told" if value is None else format(value, form)


def interval(value: float | None, low: float | None, high: float | None, form: str = ".2%") -> Cell:
    """A number with the ends of its interval; empty where there is none."""
    if value is None or low is None or high is None:
        return Cell("", None)
    ends = f"[{low:{form}}, {high:{form}}]"
    return Cell(f'<b>{value:{form}}</b> <span class="ends">{ends}</span>', value)
