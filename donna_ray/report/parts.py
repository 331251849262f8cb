"""Pieces of HTML that the report is made of."""

from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go

__all__ = ["BLUE", "GREY", "INK", "ORANGE", "plot", "section", "table"]

BLUE, ORANGE, GREY, INK = "#2563eb", "#ea580c", "#c3c8d0", "#1f2937"


def section(title: str, text: str, content: str) -> str:
    """A titled box; title and text are escaped."""
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{content}</section>"


def plot(figure: go.Figure, height: int) -> str:
    """A figure, in need of plotly's script on the page."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 10, "b": 50},
        legend={"orientation": "h", "y": 1.08},
        hoverlabel={"align": "left"},
    )
    html: str = figure.to_html(full_html=False, include_plotlyjs=False)
    return html


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int) -> str:
    """A table of cells of HTML; all but the first columns are figures."""

    def row(tag: str, cells: Sequence[str]) -> str:
        marked = (
            f"<{tag}{'' if number < text_columns else ' class=n'}>{cell}</{tag}>"
            for number, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    return f"<table>{row('th', header)}{''.join(row('td', cells) for cells in rows)}</table>"
