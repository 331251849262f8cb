"""A family whose code alone does not make its blocks is told before anything is trained."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from donna_ray.config import RunConfig, SpaceConfig, load_config, shipped_config
from donna_ray.pipeline import check
from donna_ray.reference.facts import space_facts
from donna_ray.space import StageShape, build_space, doubt_code

SHAPE = StageShape((4, 8, 8), (6, 4, 4))
SOUND = """
    import dataclasses
    import inspect
    from torch import nn
    from donna_ray.space import register_block
    from donna_ray.space.blocks.common import activation_layer

    @dataclasses.dataclass
    class Sizes:
        kernel: int
        stride: int = 1

    class Layer(nn.Conv2d):
        def __init__(self, channels, out, sizes):
            assert inspect.getsource(Layer)
            super().__init__(channels, out, sizes.kernel, sizes.stride, sizes.kernel // 2)

    def made(channels, out, kernel, stride):
        layer = Layer(channels, out, Sizes(kernel, stride))
        return nn.Sequential(layer, activation_layer("silu")())

    @register_block("NAME", ("kernel",))
    def build(in_channels, out_channels, stride, *, kernel):
        return made(in_channels, out_channels, kernel, stride)
"""
REGISTRY = """
    class Base(nn.Module):
        kinds = {}

        def __init_subclass__(cls):
            super().__init_subclass__()
            Base.kinds[cls.__name__] = cls

    class Plain(Base):
        def __init__(self, channels, out, stride):
            super().__init__()
            self.conv = nn.Conv2d(channels, out, 3, stride, 1)

        def forward(self, x):
            return self.conv(x)

    def made(channels, out, kernel, stride):
        return Base.kinds["Plain"](channels, out, stride)
"""
WITHIN = """
    def made(channels, out, kernel, stride):
        from donna_ray.space.blocks.common import activation_layer as layer
        return nn.Sequential(nn.Conv2d(channels, out, kernel, stride, 1), layer("relu")())
"""
MODULE = """
    from donna_ray.space.blocks import common

    def made(channels, out, kernel, stride):
        common.check_one_of("kernel", kernel, (3, 5))
        return nn.Conv2d(channels, out, kernel, stride, kernel // 2)
"""
SET_BY_NAME = """
    SIZES = {}
    globals()["SIZES"] = {5: 3}  # of the option's last value alone

    def made(channels, out, kernel, stride):
        return nn.Conv2d(channels, out, SIZES.get(kernel, kernel), stride, 1)
"""


def config_of(folder: Path, name: str, made: str) -> RunConfig:
    """Of the demo, with a user's family alone, of which a part is given."""
    text = textwrap.dedent(SOUND)
    if made:
        start = text.index("def made")
        text = text[:start] + textwrap.dedent(made) + text[text.index("@register_block") :]
    path = folder / f"{name}.py"
    path.write_text(text.replace("NAME", name))
    blocks = [{"family": name, "options": {"kernel": [3, 5, 7]}}]
    space = {"preset": None, "modules": [str(path)], "blocks": blocks}
    return load_config(shipped_config("demo")).model_copy(
        update={"space": RunConfig.model_validate({"space": space}).space}
    )


def doubts_of(config: RunConfig) -> list[str]:
    said: list[str] = []
    doubt_code(build_space(config.space, [SHAPE] * 2), said.append)
    return said


@pytest.mark.parametrize(
    ("name", "made", "words"),
    [
        ("of_registry", REGISTRY, "a copy of it raised KeyError: 'Plain'"),
        ("of_import_within", WITHIN, "ImportError: donna_ray.space.blocks.common is imported wi"),
        ("of_module", MODULE, "needs more: To be exported, donna_ray_blocks_"),
        ("of_globals", SET_BY_NAME, "a copy of it makes another of_globals(kernel=5)"),
    ],
    ids=["registry", "import within", "module", "globals"],
)
def test_code_that_needs_more_is_told_once(
    tmp_path: Path, name: str, made: str, words: str
) -> None:
    [said] = doubts_of(config_of(tmp_path, name, made))
    assert said.startswith("warning: A block family must need no more than functions and classes")
    assert f"{name!r} needs more: " in said
    assert words in said
    assert "exported without that file. Change the family now" in said


def test_code_that_is_whole_is_not_doubted(tmp_path: Path) -> None:
    assert not doubts_of(config_of(tmp_path, "whole", ""))


def test_family_may_know_the_classes_of_the_references_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        import copy
        from torch import nn
        from donna_ray.space import register_block

        class Mine(nn.Conv2d): ...

        @register_block("narrowing", ("share",), of_stage=True)
        def build(stage, input_shape, *, share):
            if not isinstance(stage, Mine):
                raise ValueError("the stage is not of mine")
            return copy.deepcopy(stage)
    """
    (tmp_path / "of_stage.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("of_stage").Mine(4, 6, 3, 2, 1)
    shape = replace(SHAPE, own=own)
    blocks = [{"family": "narrowing", "options": {"share": [1, 2]}}]
    space = build_space(SpaceConfig.model_validate({"blocks": blocks}), [shape])
    said: list[str] = []
    doubt_code(space, said.append)
    assert not said


@pytest.mark.parametrize("asked", [check, space_facts])
def test_commands_tell_it_before_training(
    tmp_path: Path, asked: Callable[[RunConfig, Callable[[str], None]], object]
) -> None:
    name = f"told_by_{getattr(asked, '__name__', '')}"
    said: list[str] = []
    asked(config_of(tmp_path, name, REGISTRY), said.append)
    assert [line for line in said if f"{name!r} needs more" in line]
