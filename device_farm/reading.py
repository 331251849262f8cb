"""YAML as people mean it: a key that is there twice is a mistake, not a change of mind."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

__all__ = ["read_yaml"]


def read_yaml(text: bytes | str) -> Any:
    """The value in a YAML document of plain types.

    Raises:
        ValueError: with the line, in one line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(filter(None, (error.context, error.problem)))
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ValueError(f"{where}{words}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        known = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<` gives way to keys of the same name
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in known:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is there twice; remove or rename one of them",
                    problem_mark=key_node.start_mark,
                )
            known.add(key)
        return super().construct_mapping(node, deep)
