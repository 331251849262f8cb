"""Gathers top-level functions, with all of their packages that they need, into one flat text."""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from donna_ray.errors import DonnaError

__all__ = ["Bundle"]

_REGISTERING = ("register_block", "register_model")  # decorators that a bundle needs not
_Import = ast.Import | ast.ImportFrom
_Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Bundle:
    """Definitions and the imports that they need.

    Of a module of this package, or of the function's own, only what is used is taken, in the order
    in which it is needed; other packages stay imports. A name that two modules give to different
    things gets a number.
    """

    def __init__(self) -> None:
        self.definitions: list[str] = []
        self._modules_imported: set[str] = set()
        self._names_imported: dict[str, set[str]] = {}
        self._internal = {__name__.partition(".")[0]}
        self._modules: dict[str, _Module] = {}
        self._names: dict[tuple[str, str], str] = {}  # by module and name there
        self._taken: dict[str, object] = {}  # what a name stands for
        self._emitted: set[ast.stmt] = set()

    @property
    def imports(self) -> list[str]:
        """Lines, one a module."""
        lines = [
            f"from {module} import {', '.join(sorted(words))}"
            for module, words in sorted(self._names_imported.items())
        ]
        return [*sorted(self._modules_imported), *lines]

    def reserve(self, *names: str) -> None:
        """Keep names for the text around the bundle."""
        self._taken |= {name: object() for name in names}

    def need(self, line: str) -> None:
        """Add an import that binds one name, such as `from torch import nn`."""
        (statement,) = ast.parse(line).body
        assert isinstance(statement, _Import)
        self._external(statement, statement.names[0])

    def add(self, function: Callable[..., Any]) -> str:
        """Gather a function; its name in the bundle.

        Raises:
            DonnaError: it is not defined at the top level of a module whose source can be read, or
                imports modules of these packages where names can be imported.
        """
        module, name = function.__module__, function.__name__
        self._internal.add(module.partition(".")[0])
        if getattr(sys.modules[module], name, None) is not function:
            raise DonnaError(
                "A function must be defined at the top level of its file to be exported, but "
                f"{function.__qualname__} of {module} is not. Move it there."
            )
        return self._resolve(module, name)

    def _module(self, name: str) -> "_Module":
        if name not in self._modules:
            try:
                self._modules[name] = _Module(name)
            except (ImportError, OSError, TypeError) as error:
                raise DonnaError(
                    f"The source of {name} must be readable to be exported, but is not ({error}). "
                    "Install the package with its sources."
                ) from error
        return self._modules[name]

    def _resolve(self, module: str, name: str) -> str:
        """What a name of a module is called in the bundle, into which it is taken."""
        if (module, name) in self._names:
            return self._names[module, name]
        statements = self._module(module).bindings[name]
        if all(isinstance(each, _Import) for each in statements):
            found = [self._imported(module, each, name) for each in statements]
            self._names[module, name] = found[-1]
            return found[-1]
        self._names[module, name] = self._allocate(name, (module, name))
        for statement in statements:
            self._emit(module, statement)
        return self._names[module, name]

    def _imported(self, module: str, statement: ast.stmt, name: str) -> str:
        assert isinstance(statement, _Import)
        alias = next(each for each in statement.names if _bound_name(each) == name)
        source = _source(self._module(module), statement, alias)
        if source.partition(".")[0] not in self._internal:
            return self._external(statement, alias)
        if isinstance(statement, ast.Import) or alias.name not in self._module(source).bindings:
            raise DonnaError(
                f"To be exported, {module} must import functions and classes, but it imports the "
                f"module {name}. Write `from {source} import …` of what it uses."
            )
        return self._resolve(source, alias.name)

    def _external(self, statement: _Import, alias: ast.alias) -> str:
        if isinstance(statement, ast.Import):
            name = self._allocate(_bound_name(alias), alias.name if alias.asname else "import")
            self._modules_imported.add(
                f"import {alias.name}" + (f" as {name}" if alias.asname else "")
            )
            return name
        module = statement.module or ""
        name = self._allocate(_bound_name(alias), (module, alias.name))
        words = alias.name if name == alias.name else f"{alias.name} as {name}"
        self._names_imported.setdefault(module, set()).add(words)
        return name

    def _allocate(self, name: str, meaning: object) -> str:
        candidate, number = name, 1
        while self._taken.setdefault(candidate, meaning) != meaning:
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def _emit(self, module: str, statement: ast.stmt) -> None:
        if statement in self._emitted:
            return
        self._emitted.add(statement)
        source = self._module(module)
        used = dict.fromkeys([*_bound(statement), *_used(statement)])
        names = {name: self._resolve(module, name) for name in used if name in source.bindings}
        self.definitions.append(source.text(statement, names))


@dataclass
class _Module:
    """The source of a module.

    Attributes:
        bindings: the top-level statements that bind or alter each name.
    """

    name: str
    lines: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._object = importlib.import_module(self.name)
        self._source = inspect.getsource(self._object)
        self.lines = self._source.encode().splitlines()

    @property
    def package(self) -> str:
        """What its relative imports start from."""
        return getattr(self._object, "__package__", "") or ""

    @cached_property
    def bindings(self) -> dict[str, list[ast.stmt]]:
        found: dict[str, list[ast.stmt]] = {}
        for statement in ast.parse(self._source).body:
            for name in dict.fromkeys(_bound(statement)):
                found.setdefault(name, []).append(statement)
        return found

    def text(self, statement: ast.stmt, names: Mapping[str, str]) -> str:
        """A statement's lines without registering decorators, with names changed."""
        lines = dict(enumerate(self.lines, start=1))
        for row, column, old, new in sorted(self._changes(statement, names), reverse=True):
            line = lines[row]
            if line[column : column + len(old.encode())] != old.encode():  # in an f-string of 3.11
                raise DonnaError(
                    f"A name that is used in an f-string must be its own to be exported, but "
                    f"{old!r} of {self.name} clashes with another module's. Rename it."
                )
            lines[row] = line[:column] + new.encode() + line[column + len(old.encode()) :]
        first = min([each.lineno for each in _decorators(statement)], default=statement.lineno)
        dropped = {
            row
            for each in getattr(statement, "decorator_list", [])
            if each not in _decorators(statement)
            for row in range(each.lineno, (each.end_lineno or each.lineno) + 1)
        }
        last = statement.end_lineno or first
        while b"  #" in lines[last] and lines.get(last + 1, b"").startswith(b"#"):
            last += 1  # its comment goes on
        rows = range(first, last + 1)
        return b"\n".join(lines[row] for row in rows if row not in dropped).decode()

    def _changes(
        self, statement: ast.stmt, names: Mapping[str, str]
    ) -> Iterator[tuple[int, int, str, str]]:
        changed = {old: new for old, new in names.items() if old != new}
        if isinstance(statement, _Named) and statement.name in changed:
            line = self.lines[statement.lineno - 1]
            match = re.search(rb"(?:def|class)\s+", line)
            assert match is not None
            yield statement.lineno, match.end(), statement.name, changed[statement.name]
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id in changed:
                yield node.lineno, node.col_offset, node.id, changed[node.id]


def _source(module: _Module, statement: _Import, alias: ast.alias) -> str:
    """The absolute name of the module that is imported or imported from."""
    if isinstance(statement, ast.Import):
        return alias.name
    relative = "." * statement.level + (statement.module or "")
    return importlib.util.resolve_name(relative, module.package) if statement.level else relative


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Names that a top-level statement binds or alters."""
    if isinstance(statement, _Named):
        yield statement.name
        return
    if isinstance(statement, ast.Expr | ast.Assign | ast.AugAssign | ast.AnnAssign):
        yield from _altered(statement)
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield _bound_name(node)
        elif isinstance(node, _Named):
            yield node.name


def _altered(statement: ast.stmt) -> Iterator[str]:
    """Names whose objects are altered, as in `TABLE["a"] = …` and `LIST.append(…)`."""
    value = getattr(statement, "value", None)
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    if isinstance(statement, ast.Expr) and isinstance(value, ast.Call):
        targets = [value.func]
    for target in targets:
        base = target
        while isinstance(base, ast.Attribute | ast.Subscript):
            base = base.value
        if isinstance(base, ast.Name) and base is not target:
            yield base.id


def _decorators(statement: ast.AST) -> list[ast.expr]:
    """Those that are kept."""
    return [
        each
        for each in getattr(statement, "decorator_list", [])
        if ast.unparse(each).partition("(")[0].rpartition(".")[2] not in _REGISTERING
    ]


def _used(statement: ast.AST) -> Iterator[str]:
    for name, value in ast.iter_fields(statement):
        if name == "decorator_list":
            value = _decorators(statement)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Name):
                yield child.id
            if isinstance(child, ast.AST):
                yield from _used(child)
