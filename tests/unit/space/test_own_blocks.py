"""A user's blocks: found in a file or an entry point, refused where they break the interface."""

from __future__ import annotations

import importlib
import sys
import textwrap
from functools import partial
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from device_farm import plugins
from donna_ray.config import SpaceConfig
from donna_ray.errors import ConfigError
from donna_ray.space import (
    BlockSpec,
    StageShape,
    block_family,
    build_space,
    check_space,
    record_id,
    register_block,
    register_modules,
)
from donna_ray.space.check import covering
from donna_ray.space.source import source_digest

SHAPE = StageShape((4, 8, 8), (6, 4, 4))
PLAIN = """
    from torch import nn
    from donna_ray.space import register_block

    @register_block("{name}", ("kernel", "width"), allowed=lambda kernel, width: kernel < width)
    def build(in_channels, out_channels, stride, *, kernel, width):
        return nn.Sequential(
            nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2),
            nn.ReLU(),
            nn.Conv2d(width, out_channels, 1),
        )
"""
BROKEN = """
    import torch
    from torch import nn
    from donna_ray.space import register_block

    class Odd(nn.Module):
        def __init__(self, channels, out, stride):
            super().__init__()
            self.conv = nn.Conv2d(channels, out, 3, stride, 1)

        def forward(self, x):
            return {forward}

    class Outside(Odd):
        def __init__(self, *shape):
            super().__init__(*shape)
            self.register_buffer("scale", torch.rand(1), persistent=False)

        def forward(self, x):
            return self.scale * self.conv(x)

    @register_block("{name}", ("size",))
    def build(in_channels, out_channels, stride, *, size):
        return {build}
"""


def write(path: Path, text: str, **words: str) -> str:
    path.write_text(textwrap.dedent(text).format(**words))
    return str(path)


def space_config(module: str, family: str, **options: list[Any]) -> SpaceConfig:
    blocks = [{"family": family, "options": options}]
    return SpaceConfig.model_validate({"modules": [module], "blocks": blocks})


def test_family_of_a_file_is_a_family(tmp_path: Path) -> None:
    module = write(tmp_path / "mine.py", PLAIN, name="of_a_file")
    config = space_config(module, "of_a_file", kernel=[3, 5], width=[4, 8])
    space = build_space(config, [SHAPE])
    words = [str(spec) for spec in space.stages[0].choices]
    assert words == [
        "of_a_file(kernel=3, width=4)",
        "of_a_file(kernel=3, width=8)",
        "of_a_file(kernel=5, width=8)",  # kernel 5 and width 4 is not allowed
    ]
    costs = check_space(space)
    assert costs == check_space(space)
    assert costs[0][0] == {"params": 4 * 4 * 9 + 4 + 6 * 4 + 6, "macs": 16 * (4 * 4 * 9 + 6 * 4)}
    assert not block_family("of_a_file").builtin


def test_entry_point_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "donna_test_package.py", PLAIN, name="of_a_package")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("nice_blocks", "donna_test_package", "donna_ray.blocks")
    monkeypatch.setattr(plugins, "entry_points", EntryPoints([point]).select)
    config = space_config("nice_blocks", "of_a_package", kernel=[3], width=[8])
    assert build_space(config, [SHAPE]).size == 1
    with pytest.raises(ConfigError, match=r"nice_blocks installed.*'nicer_blocks'"):
        register_modules(["nicer_blocks"])


def test_record_of_a_block_depends_on_the_code_of_its_family(tmp_path: Path) -> None:
    register_modules([write(tmp_path / "a.py", PLAIN, name="source_a")])
    spec = BlockSpec.of("source_a", {"kernel": 3, "width": 8})
    assert record_id(spec) == f"{spec.id}-{block_family('source_a').source}"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("", "", True),
        ("return", "# a comment\n    return", True),
        ('"""Says what it is."""', '"""Says it otherwise."""', True),
        ("depth = 2", "depth=2", True),
        ("depth = 2", "depth = 3", False),
    ],
)
@pytest.mark.parametrize("file", ["family.py", "beside.py"])
@pytest.mark.parametrize("line", ["from .beside import depth", "from package.beside import depth"])
def test_code_is_told_from_words_about_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    line: str,
    old: str,
    new: str,
    same: bool,
) -> None:
    """Also in a module beside it that a family imports from."""

    def digest_of(name: str, text: dict[str, str]) -> str:
        folder = tmp_path / name
        (folder / "package").mkdir(parents=True)
        for each, content in {**text, "__init__.py": "", "unused.py": name}.items():
            (folder / "package" / each).write_text(content)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            for module in [each for each in sys.modules if each.split(".")[0] == "package"]:
                patch.delitem(sys.modules, module)
            return source_digest(importlib.import_module("package.family").build)

    plain = 'depth = 2\n\n\ndef build():\n    """Says what it is."""\n    return depth\n'
    texts = {"family.py": f"{line}\n\n{plain}", "beside.py": plain}
    changed = {**texts, file: texts[file].replace(old, new)}
    assert (digest_of("before", texts) == digest_of("after", changed)) is same


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not. Correct the path"),
        ("x = 1\n", "registers none"),
        ("import nothing_like_this\n", "raised ModuleNotFoundError"),
        ("x = (\n", "raised SyntaxError"),
    ],
)
def test_module_that_registers_nothing_is_named(
    tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "module.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=f"module.py.*{words}"):
        register_modules([str(path)])


def test_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    module = write(tmp_path / "thief.py", PLAIN, name="inverted_residual")
    with pytest.raises(ConfigError, match=r"'inverted_residual'.*is taken by donna_ray"):
        register_modules([module])


@pytest.mark.parametrize(
    ("name", "build", "forward", "words"),
    [
        ("too_wide", "nn.Conv2d(in_channels, out_channels + 1, 3, stride, 1)", "x", r"into \(7, "),
        ("no_stride", "nn.Conv2d(in_channels, out_channels, 3, 1, 1)", "x", r"into \(6, 8, 8\)"),
        ("nothing", "nn.AvgPool2d(2)", "x", r"into \(4, 4, 4\)"),
        (
            "untrained",
            "nn.Sequential(nn.AvgPool2d(2), nn.ConstantPad3d((0,0,0,0,0,2), 0.0))",
            "x",
            "no para",
        ),
        ("nan", "Odd(in_channels, out_channels, stride)", "self.conv(x).log()", "not finite"),
        (
            "no_export",
            "Odd(in_channels, out_channels, stride)",
            "torch.special.bessel_j0(self.conv(x)) + self.conv(x)",
            "running it raised",
        ),
        (
            "other_onnx",
            "Odd(in_channels, out_channels, stride)",
            "self.conv(x) * (2 if torch.onnx.is_in_onnx_export() else 1)",
            "differs by",
        ),
        (
            "in_place",
            "nn.Sequential(nn.ReLU(True), nn.Conv2d(in_channels, 6, 3, 2, 1))",
            "x",
            "in pl",
        ),
        (
            "in_place_in_eval",
            "Odd(in_channels, out_channels, stride)",
            "self.conv(x.relu() if self.training else x.relu_())",
            "in place",
        ),
        (
            "in_place_uncounted",
            "Odd(in_channels, out_channels, stride)",
            "self.conv(x.data.relu_())",
            "in place",
        ),
        (
            "outside",
            "Outside(in_channels, out_channels, stride)",
            "self.conv(x)",
            "same state_dict",
        ),
        ("raises", "nn.Conv2d(in_channels, out_channels, stride, size)", "x", "building it raised"),
    ],
)
def test_block_that_breaks_the_interface_is_named(
    tmp_path: Path, name: str, build: str, forward: str, words: str
) -> None:
    module = write(tmp_path / "broken.py", BROKEN, name=name, build=build, forward=forward)
    space = build_space(space_config(module, name, size=["x"]), [SHAPE])
    with pytest.raises(ConfigError, match=rf"{name}\(size=x\) must be .* stage 0, but .*{words}"):
        check_space(space)


def test_callbacks_that_raise_are_named(tmp_path: Path) -> None:
    text = PLAIN.replace("lambda kernel, width: kernel < width", "lambda kernel: True")
    module = write(tmp_path / "mine.py", text, name="bad_allowed")
    with pytest.raises(ConfigError, match=r"`allowed` of block family 'bad_allowed'.*TypeError"):
        build_space(space_config(module, "bad_allowed", kernel=[3], width=[8]), [SHAPE])
    with pytest.raises(ConfigError, match="must be a function"):
        register_block("partial", ("size",))(partial(print))


def test_every_value_of_every_option_is_run() -> None:
    specs = block_family("inverted_residual").specs(
        {
            "kernel": [3, 5, 7],
            "expansion": [2, 3, 4, 6],
            "depth": [1, 2, 3, 4],
            "activation": ["relu", "silu"],
            "squeeze_excite": [False, True],
        }
    )
    chosen = covering(specs)
    assert len(chosen) == 4
    assert {option for spec in chosen for option in spec.options} == {
        option for spec in specs for option in spec.options
    }


EXITING = """
    import sys
    from torch import nn
    from donna_ray.space import register_block

    def ended(where):
        if where == "{where}":
            sys.exit()
        return None

    @register_block(
        "exits_{where}",
        ("size",),
        allowed=lambda size: ended("allowed") is None,
        describe=lambda stage: ended("describe"),
    )
    def build(in_channels, out_channels, stride, *, size):
        ended("build")
        return nn.Conv2d(in_channels, out_channels, 3, stride, 1)

    ended("import")
"""


@pytest.mark.parametrize("where", ["import", "allowed", "build"])
def test_code_that_exits_is_refused(tmp_path: Path, where: str) -> None:
    module = write(tmp_path / f"{where}.py", EXITING, where=where)
    with pytest.raises(ConfigError, match=r"line \d+, ends the process by sys.exit\(None\).*main"):
        check_space(build_space(space_config(module, f"exits_{where}", size=[3]), [SHAPE]))
