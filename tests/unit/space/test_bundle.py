"""Code of several modules in one file."""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path

import pytest

from donna_ray.errors import DonnaError
from donna_ray.space.bundle import Bundle


def test_function_in_a_function_cannot_be_bundled() -> None:
    def build() -> None: ...

    with pytest.raises(DonnaError, match="top level"):
        Bundle().add(build)


def test_own_names_of_a_function_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a top-level one is called otherwise, since the text around has its name."""
    text = """
        def model(x): return x + 1
        def item(x): return x * 10
        def within(model, *, item=item(1)): return (lambda item: model + item)(item)
        def nested(x):
            def item(x): return x + 100
            return item(model(x))
        def build(x): return within(x), nested(x)
    """
    (tmp_path / "shadowing.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    bundle, made = Bundle(names=["model", "item"]), {}
    name = bundle.add(importlib.import_module("shadowing").build)
    exec("\n".join(bundle.definitions), made)
    assert made["model_2"](1) == 2
    assert made[name](3) == (13, 104)


def test_name_that_no_statement_binds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        def make(size): return lambda x: x * size
        for size in (2, 3):
            globals()[f"times{size}"] = make(size)
            globals()[f"times{size}"].__name__ = f"times{size}"
    """
    (tmp_path / "looped.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DonnaError, match="looped must bind times2 by a statement that names it"):
        Bundle().add(importlib.import_module("looped").times2)


def test_names_of_two_modules_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative and renamed imports, an altered table, and a name that clashes in an f-string."""
    folder = tmp_path / "flattened"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .words import say as told\n")
    words = """
        import math as numbers
        import warnings
        TABLE, UNIT = {}, "m"
        TABLE["pi"] = numbers.pi
        warnings.filterwarnings("default", module="nothing")
        SHOWN = None
        def show():
            global SHOWN
            SHOWN = 2
        show()
        class Written: ...
        setattr(Written, "unit", UNIT)
        def say(name):
            return f"{TABLE[name]:.{SHOWN}f} {Written.unit}"
    """
    (folder / "words.py").write_text(textwrap.dedent(words))
    main = """
        from flattened import told as say
        import numpy as numbers
        UNIT = numbers.ones(2).sum()
        def both(name):
            return say(name), f"{UNIT}"
    """
    (folder / "main.py").write_text(textwrap.dedent(main))
    monkeypatch.syspath_prepend(tmp_path)
    both = importlib.import_module("flattened.main").both
    bundle, names = Bundle(["import math"], ["say"]), {}
    called = bundle.add(both)
    exec("\n".join([*sorted(bundle.imports), *bundle.definitions]), names)
    assert names[called]("pi") == both("pi") == ("3.14 m", "2.0")
    assert not any("flattened" in line for line in bundle.imports)
