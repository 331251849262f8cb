"""Gathers top-level functions, with all of their packages that they need, into one flat text.

Own code: the inliners of PyPI copy whole modules, which would need the rest of this package, too.
"""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import resolve_name
from operator import attrgetter
from types import ModuleType
from typing import Any, cast

from donna_ray.errors import DonnaError

__all__ = ["Bundle"]

_REGISTERING = ("register_block", "register_model")  # decorators that a bundle needs not
_Import = ast.Import | ast.ImportFrom
_Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Bindings = dict[str, list[ast.stmt]]  # the top-level statements that bind or alter each name


class Bundle:
    """Definitions and the imports that they need.

    Of a module of this package, or of the function's own, only what is used is taken, in the order
    in which it is needed; other packages stay imports. A name that two modules give to different
    things gets a number. Docstrings are kept, comments are not.

    Attributes:
        imports: lines, each of which binds one name.
        definitions: the text of each statement.
    """

    def __init__(self, imports: Sequence[str] = (), names: Sequence[str] = ()) -> None:
        """Start with the imports and names of the text around the bundle."""
        self.imports: set[str] = set()
        self.definitions: list[str] = []
        self._internal = {__name__.partition(".")[0]}
        self._modules: dict[str, _Bindings] = {}
        self._names: dict[tuple[str, str], str] = {}  # by module and name there
        self._taken: dict[str, object] = dict.fromkeys(names)  # what a name stands for
        self._emitted: set[ast.stmt] = set()
        for statement in ast.parse("\n".join(imports)).body:
            self._external(cast(_Import, statement))

    def add(self, function: Callable[..., Any]) -> str:
        """Gather a function; its name in the bundle.

        Raises:
            DonnaError: it is not defined at the top level of a module whose source can be read, or
                imports modules of these packages where names can be imported.
        """
        module, name = function.__module__, function.__name__
        self._internal.add(module.partition(".")[0])
        if getattr(importlib.import_module(module), name, None) is not function:
            raise DonnaError(
                "A function must be defined at the top level of its file to be exported, but "
                f"{function.__qualname__} of {module} is not. Move it there."
            )
        return self._resolve(module, name)

    def _bindings(self, module: str) -> _Bindings:
        if module not in self._modules:
            try:
                self._modules[module] = _parsed(module)
            except (ImportError, OSError, TypeError) as error:
                raise DonnaError(
                    f"The source of {module} must be readable to be exported, but is not ({error})."
                    " Install the package with its sources."
                ) from error
        return self._modules[module]

    def _resolve(self, module: str, name: str) -> str:
        """What a name of a module is called in the bundle, into which it is taken."""
        key = module, name
        if key not in self._names:
            statements = self._bindings(module).get(name)
            if statements is None:
                raise DonnaError(
                    f"To be exported, {module} must bind {name} by a statement that names it, but "
                    f"a loop, globals() or an `import *` does. Write `{name} = …` or import it."
                )
            if isinstance(statements[0], _Import):
                self._names[key] = self._imported(module, statements[0])
                for statement in statements[1:]:
                    if not isinstance(statement, _Import):
                        self._emit(module, statement)
            else:
                self._names[key] = self._allocate(name, key)
                for statement in statements:
                    self._emit(module, statement)
        return self._names[key]

    def _imported(self, module: str, statement: _Import) -> str:
        (alias,) = statement.names
        source = getattr(statement, "module", alias.name)
        if source.partition(".")[0] not in self._internal:
            return self._external(statement)
        if isinstance(statement, ast.Import) or alias.name not in self._bindings(source):
            raise DonnaError(
                f"To be exported, {module} must import functions and classes, but it imports the "
                f"module {alias.name}. Write `from {source} import …` of what it uses."
            )
        return self._resolve(source, alias.name)

    def _external(self, statement: _Import) -> str:
        """Keep an import of one name; what it is called."""
        (alias,) = statement.names
        bound = _bound_name(alias)
        plain = isinstance(statement, ast.Import) and not alias.asname  # `import a.b` binds `a`
        source = getattr(statement, "module", None)
        name = self._allocate(bound, (None, bound) if plain else (source, alias.name))
        if name != bound:
            alias.asname = name
        self.imports.add(ast.unparse(statement))
        return name

    def _allocate(self, name: str, meaning: object) -> str:
        candidate, number = name, 1
        while self._taken.setdefault(candidate, meaning) != meaning:
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def _emit(self, module: str, statement: ast.stmt) -> None:
        """Take a statement behind all that it uses, and before all that alters what it binds."""
        if statement in self._emitted:
            return
        self._emitted.add(statement)
        bindings, bound = self._bindings(module), dict.fromkeys(_bound(statement))
        used = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
        needed = [name for name in used if name in bindings and name not in bound]
        names = {name: self._resolve(module, name) for name in needed}
        place = len(self.definitions)
        self.definitions.append("")
        names |= {name: self._resolve(module, name) for name in bound}
        self.definitions[place] = _renamed(statement, names)


def _parsed(module: str) -> _Bindings:
    loaded = importlib.import_module(module)
    found: _Bindings = {}
    body = ast.parse(inspect.getsource(loaded)).body
    setting = {each.name: list(_globals(each)) for each in body if isinstance(each, _Named)}
    for statement in body:
        called = _called(statement)
        changed = setting.get(called.func.id, []) if called else []
        for each in _split(statement, loaded):
            for name in dict.fromkeys([*_bound(each), *changed]):
                found.setdefault(name, []).append(each)
    return found


def _globals(definition: ast.stmt) -> Iterator[str]:
    """Names of the module that a call of a function may set."""
    for node in ast.walk(definition):
        if isinstance(node, ast.Global):
            yield from node.names


def _called(statement: ast.stmt) -> Any:
    """The call of a plain name that a statement is; None where it is something else."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    return call if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else None


def _split(statement: ast.stmt, loaded: ModuleType) -> Sequence[ast.stmt]:
    """Imports as absolute ones of one name each; a definition without registering decorators."""
    if isinstance(statement, ast.Import):
        return [ast.Import([alias]) for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        module = statement.module or ""
        if statement.level:
            module = resolve_name("." * statement.level + module, loaded.__package__ or "")
        return [ast.ImportFrom(module, [alias], 0) for alias in statement.names]
    if isinstance(statement, _Named):
        kept = [each for each in statement.decorator_list if not _registers(each, loaded)]
        statement.decorator_list = kept
    return [statement]


def _registers(decorator: ast.expr, loaded: ModuleType) -> bool:
    """Whether it makes a function known here or to timm, by whatever name its module has it."""
    named = decorator.func if isinstance(decorator, ast.Call) else decorator
    try:
        found = attrgetter(ast.unparse(named))(loaded)
    except AttributeError:
        return False
    return getattr(found, "__name__", "") in _REGISTERING


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement binds or alters: by `=`, `LIST.append(…)` or `setattr(CLASS, …)`."""
    if isinstance(statement, _Named):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, _Named):
            yield node.name
        elif isinstance(node, ast.alias):
            yield _bound_name(node)
        elif isinstance(getattr(node, "ctx", None), ast.Store):
            yield from _base(node)
    call = getattr(statement, "value", None) if isinstance(statement, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        yield from _base(call.func)
    if (called := _called(statement)) and called.func.id == "setattr":
        yield from _base(called.args[0])


def _base(node: ast.AST) -> Iterator[str]:
    """`a` of `a`, `a.b` and `a[b].c`."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _renamed(statement: ast.stmt, names: Mapping[str, str]) -> str:
    if isinstance(statement, _Named):
        statement.name = names[statement.name]
    _rename(statement, names)
    return ast.unparse(statement)


def _rename(node: ast.AST, names: Mapping[str, str]) -> None:
    """Rename in place, but not what a function has of its own by that name."""
    if isinstance(node, ast.Name):
        node.id = names.get(node.id, node.id)
    elif isinstance(node, ast.Global):
        node.names = [names.get(name, name) for name in node.names]
    body: Sequence[ast.AST] = ()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        body = [node.body] if isinstance(node.body, ast.expr) else node.body
        own = set(_own_names(node.args, body))
        for each in body:
            _rename(each, {name: new for name, new in names.items() if name not in own})
    for each in ast.iter_child_nodes(node):
        if each not in body:
            _rename(each, names)


def _own_names(arguments: ast.arguments, body: Sequence[ast.AST]) -> Iterator[str]:
    """Of a function, those that stand there otherwise than as a name alone."""
    found = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (each.arg for each in (*found, arguments.vararg, arguments.kwarg) if each)
    for node in (node for each in body for node in ast.walk(each)):
        if isinstance(node, _Named):
            yield node.name
        elif isinstance(node, ast.alias):
            yield _bound_name(node)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
