"""YAML as people mean it: a key that is there twice is a mistake, not a change of mind."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

__all__ = ["read_yaml"]

_INT = "tag:yaml.org,2002:int"


def read_yaml(text: bytes | str) -> Any:
    """The value in a YAML document of plain types.

    Raises:
        ValueError: with the line, in one line.
    """
    try:
        value = yaml.load(text, _Loader)
        _refuse_circles(value, (), set())
        return value
    except RecursionError as error:
        raise ValueError("it is nested too deeply; take some of its levels out") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(filter(None, (error.context, error.problem)))
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ValueError(f"{where}{words}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _refuse_circles(value: Any, within: tuple[int, ...], known: set[int]) -> None:
    parts = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(parts, list) or id(value) in known:
        return
    if id(value) in within:
        raise ValueError("an anchor (&) must not contain itself (*); write out what it stands for")
    for part in parts:
        _refuse_circles(part, (*within, id(value)), known)
    known.add(id(value))


class _Loader(yaml.SafeLoader):
    """Whole numbers are decimal: YAML 1.1 takes 0224 for 148 and 1:30 for 90."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        known: set[str] = set()  # a key and the same in quotes are one
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<` gives way to keys of the same name
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(
                    problem="a key must be text or a number; is this a template to be filled in?",
                    problem_mark=key_node.start_mark,
                )
            if str(key) in known:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is there twice; remove or rename one of them",
                    problem_mark=key_node.start_mark,
                )
            known.add(str(key))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != _INT]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
