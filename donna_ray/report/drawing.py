"""Networks as small bars: a block's options are seen beside those of the whole library."""

from collections.abc import Iterable, Sequence
from html import escape

from donna_ray.report.scenario import Spec

__all__ = ["Drawing"]

Option = bool | int | float | str


class Drawing:
    """Draws blocks: a bar for each option, as high as its share of the option's largest value.

    Yes is a full bar, no an empty one; words are told apart by colour. report.css draws them small
    in a table, and large, with names and values, where one network is shown.
    """

    def __init__(self, stages: Iterable[Iterable[Spec]]) -> None:
        """Takes the blocks that may stand in each stage."""
        known: dict[str, set[Option]] = {}
        families = set()
        for spec in (spec for stage in stages for spec in stage):
            families.add(spec.family)
            for name, value in spec.options.items():
                known.setdefault(name, set()).add(value)
        self._families = sorted(families)
        self._words = {
            name: sorted(value for value in values if isinstance(value, str))
            for name, values in known.items()
        }
        self._largest = {
            name: max((float(each) for each in values if not isinstance(each, str)), default=1.0)
            for name, values in known.items()
        }

    def network(self, specs: Sequence[Spec]) -> str:
        """The blocks of a network, one a stage."""
        words = "; ".join(f"stage {number}: {spec}" for number, spec in enumerate(specs))
        blocks = "".join(map(self.block, specs))
        return f'<span class="net" role="img" aria-label="{escape(words)}">{blocks}</span>'

    def block(self, spec: Spec) -> str:
        """One block."""
        bars = "".join(self._bar(name, value) for name, value in spec.options.items())
        colour = self._families.index(spec.family) % 4
        return (
            f'<span class="block f{colour}" title="{escape(str(spec))}">'
            f"<em>{escape(_spaced(spec.family))}</em>{bars}</span>"
        )

    def _bar(self, name: str, value: Option) -> str:
        kind, share, text = "", 1.0, str(value)
        if isinstance(value, str):
            kind = f" w{self._words[name].index(value) % 4}"
        else:
            share = float(value) / (self._largest[name] or 1.0)
        if isinstance(value, bool):
            kind, text = " flag", "yes" if value else "no"
        return (
            f'<i class="bar{kind}" style="--share:{share:.3f}"><b>{escape(text)}</b>'
            f"<small>{escape(_spaced(name))}</small></i>"
        )


def _spaced(name: str) -> str:
    return name.replace("_", " ")
