"""The code of a block family, as what its blocks are made from."""

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from donna_ray.storage.artifacts import digest

__all__ = ["source_digest"]


def source_digest(function: Callable[..., Any]) -> str:
    """Digest of the file of a function, and of those of its package beside it that it imports.

    Comments, docstrings and layout do not count.

    Raises:
        OSError: it has no file.
    """
    path, package = Path(inspect.getsourcefile(function) or ""), function.__module__.rpartition(".")
    codes: dict[Path, str] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in codes and (file == path or file.is_file()):
            tree = ast.parse(file.read_bytes())
            codes[file] = _code(tree)
            waiting += [path.with_name(f"{name}.py") for name in _imported(tree, package[0])]
    return digest(sorted(codes.values()))


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Names of modules of a package, from which something is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and package:
            inside = "" if node.level == 1 else package
            parent, _, name = (node.module or "").rpartition(".")
            if node.level < 2 and parent == inside:
                yield name
            if node.level < 2 and (node.module or "") == inside:
                yield from (alias.name for alias in node.names)


def _code(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            described = ast.get_docstring(node, clean=False) is not None
            node.body = (node.body[1:] or [ast.Pass()]) if described else node.body
    return ast.unparse(tree)
