"""Checkpoints as people have them: the model's weights are found, or the remedy works."""

from __future__ import annotations

import collections
import json
import logging
import pathlib
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed

from donna_ray.config import ReferenceConfig
from donna_ray.errors import ConfigError
from donna_ray.reference.checkpoint_file import read_checkpoint
from donna_ray.reference.timm_models import create_timm_model

SMALL = "test_resnet"
State = dict[str, torch.Tensor]
CALLED: list[str] = []


class Own:
    """Whose code must not run."""

    def __setstate__(self, state: Any) -> None:
        CALLED.append("set")

    def __reduce__(self) -> Any:
        return (call, ("made",), {"a": 1})


def call(word: str) -> None:
    CALLED.append(word)


@pytest.fixture(scope="module")
def small() -> State:
    """Weights of a small model for 5 classes."""
    return timm.create_model(SMALL, num_classes=5).state_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.pth"


def load(path: Path, classes: int = 5, model: str = SMALL, **values: Any) -> State:
    size = values.pop("image_size", None)
    config = ReferenceConfig.model_validate({"model": model, "weights": str(path), **values})
    return create_timm_model(config, classes=classes, image_size=size).state_dict()


def same(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
        lambda state: {"net": under("module.", state), "acc": 0.9, "epoch": 3},
        lambda state: {"checkpoint": {"state_dict": state}},
        lambda state: (state, 3),
        lambda state: {"model": state, "teacher": other(state)},
        lambda state: {"state_dict": other(state), "state_dict_ema": state},
        lambda state: {"net": other(state), "ema": {"module": state}},
        lambda state: {"state_dict": state, "state_dict_ema": None},
        lambda state: {
            "state_dict": {**under("model.", state), **under("old.", {"x": state["fc.bias"]})}
        },
    ],
)
def test_weights_are_found_below_any_keys(path: Path, small: State, nest: Any) -> None:
    torch.save(nest(small), path)
    assert same(load(path), small)


def test_several_models_in_a_file_are_named(path: Path, small: State) -> None:
    torch.save({"student": under("module.", small), "teacher": small}, path)
    with pytest.raises(ConfigError, match=r"has it 2 times \(student\.module\., teacher\.\)"):
        load(path)


@pytest.mark.parametrize(
    "beside",
    [
        pathlib.PurePosixPath("/x"),
        Path("x"),
        np.float64(3.0),
        np.ones(3),
        collections.defaultdict(list, {"loss": [1.0]}),
        Own(),
    ],
)
def test_objects_beside_the_weights_are_not_made(path: Path, small: State, beside: Any) -> None:
    CALLED.clear()
    torch.save({"model": small, "beside": beside}, path)
    assert same(load(path), small)
    assert CALLED == []


def test_safetensors_are_told_by_their_content(path: Path, small: State) -> None:
    safetensors.torch.save_file(small, path)
    assert same(load(path), small)
    named = path.with_suffix(".safetensors")
    torch.save(small, named)
    assert same(load(named), small)


def _script(path: Path, model: torch.nn.Module) -> None:
    torch.jit.trace(model, torch.zeros(1, 3, 32, 32)).save(str(path))


def _cut(path: Path, model: torch.nn.Module) -> None:
    torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])


def _cut_safetensors(path: Path, model: torch.nn.Module) -> None:
    safetensors.torch.save_file(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])


def _old(path: Path, model: torch.nn.Module) -> None:
    whole = {"a": model.state_dict(), "b": Own()}
    torch.save(whole, path, _use_new_zipfile_serialization=False)


def _archive(path: Path, model: torch.nn.Module) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.ones(3))


def _bytes(content: bytes) -> Any:
    return lambda path, model: path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_bytes(b""), ["is empty", "again"]),
        (_bytes(b"\n<!DOCTYPE html>"), ["web page", "Download"]),
        (_bytes(b"version https://git-lfs.github.com/spec/v1\n"), ["git lfs pull"]),
        (_bytes(b"\x89HDF\r\n\x1a\n"), ["HDF5"]),
        (_bytes(b"\x08\x08\x12\x07pytorch"), ["ONNX"]),
        (_bytes(b"\x1f\x8b\x08"), ["gzip", "Unpack"]),
        (_bytes(b'{"a": 1}'), ["is JSON", "Download"]),
        (
            _bytes(b'{"metadata": {}, "weight_map": {"a": "x-1-of-2.safetensors", "b": "y"}}'),
            ["index of 2 shards (x-1-of-2.safetensors, y)", "Merge", "merged.safetensors"],
        ),
        (_bytes(b"?" * 99), ["cut off", "model.state_dict()"]),
        (_cut, ["cut off"]),
        (_cut_safetensors, ["cut off"]),
        (_script, ["TorchScript", "torch.jit.load(FILE).state_dict()"]),
        (_archive, ["zip archive"]),
        (_old, ["test_checkpoint_files.call", "model.state_dict()"]),
        (lambda path, model: torch.save(model, path), ["timm.models", "model.state_dict()"]),
        (
            lambda path, model: torch.save({"m": model, "o": {"x": torch.ones(1)}}, path),
            ["timm.models"],
        ),
        (lambda path, model: torch.save(torch.ones(3), path), ["by the model's names"]),
        (lambda path, model: path.write_bytes(pickle.dumps({"a": 1})), ["other means"]),
    ],
)
def test_files_that_are_no_checkpoints_say_what_they_are(
    path: Path, write: Callable[[Path, torch.nn.Module], Any], words: list[str]
) -> None:
    CALLED.clear()
    write(path, timm.create_model(SMALL, num_classes=5).eval())
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert "its weights cannot be had" in message
    assert all(word in message for word in words), message
    assert "weights_only" not in message
    assert "\n" not in message
    assert CALLED == []


@pytest.mark.parametrize("head", [{}, {"fc.0.weight": torch.ones(4, 4)}])
def test_backbone_gets_a_new_classifier_where_it_is_trained(
    path: Path, small: State, head: State
) -> None:
    body = {name: value for name, value in small.items() if not name.startswith("fc.")}
    torch.save({"teacher": under("backbone.", {**body, **head})}, path)
    with pytest.raises(ConfigError, match=r"lacks the model's classifier.*reference\.training"):
        load(path)
    assert same(load(path, training={"epochs": 1}), body)


def test_whole_model_goes_before_a_backbone(path: Path, small: State) -> None:
    body = {name: value for name, value in other(small).items() if not name.startswith("fc.")}
    torch.save({**under("model.", small), **under("target.", body)}, path)
    assert same(load(path, training={"epochs": 1}), small)


def test_vit_of_another_image_size_is_resampled_as_by_timm(path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=5).state_dict()
    torch.save(under("module.", state), path)
    new = load(path, model="test_vit", image_size=96)
    one = int((new["pos_embed"].shape[1] - 1) ** 0.5)
    assert new["pos_embed"].shape != state["pos_embed"].shape
    assert torch.equal(
        new["pos_embed"],
        resample_abs_pos_embed(state["pos_embed"], (one, one), num_prefix_tokens=1),
    )
    assert same(new, {name: value for name, value in state.items() if name != "pos_embed"})


def test_counts_beside_the_weights_are_ignored_and_named(
    path: Path, small: State, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {"conv1.total_ops": torch.zeros(1), "steps": torch.tensor(3)}
    torch.save(small | counts, path)
    with caplog.at_level(logging.WARNING):
        assert same(load(path), small)
    assert "2 counts that are no weights (conv1.total_ops, steps)" in caplog.text
    torch.save({"n_averaged": torch.tensor(3), **under("module.", small)}, path)
    assert same(load(path), small)


def test_learned_scalar_beside_the_weights_is_in_the_way(path: Path, small: State) -> None:
    torch.save({**small, "gain": torch.tensor(2.0)}, path)
    with pytest.raises(ConfigError, match=r"1 others \(gain\) beside all of its"):
        load(path)


def test_checkpoint_with_a_lost_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.randn(10_000)}, path)
    assert len(read_checkpoint(path).value["weight"]) == 10_000
    content = bytearray(path.read_bytes())
    content[20_000:24_096] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"is damaged: the checksum of weights/data/0 in it"):
        read_checkpoint(path)


def test_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    torch.save({"weight": torch.ones(5)}, tmp_path / "weights.pth")
    torch.serialization.set_crc32_options(before)
    assert len(read_checkpoint(tmp_path / "weights.pth").value["weight"]) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: (value * 50).to(torch.int8), "int8"),
        (lambda value: value > 0, "bool"),
        (lambda value: value.to(torch.complex64), "complex64"),
        (lambda value: torch.quantize_per_tensor(value, 0.01, 0, torch.qint8), "quantised"),
        (lambda value: value.to_sparse(), "sparse"),
        (lambda value: value.to("meta"), "without values"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_floats_are_refused(
    path: Path, small: State, change: Any, words: str
) -> None:
    changed = {name: change(each) if each.dim() > 1 else each for name, each in small.items()}
    torch.save(changed, path)
    with pytest.raises(
        ConfigError, match=rf"floating-point .*\(conv1.0.weight {words}, "
    ) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_length_are_taken(path: Path, small: State, kind: torch.dtype) -> None:
    halves = {
        name: each.to(kind) if each.is_floating_point() else each for name, each in small.items()
    }
    torch.save(halves, path)
    assert same(load(path), {name: each.to(small[name].dtype) for name, each in halves.items()})


def test_command_that_merges_shards_does_it(tmp_path: Path, small: State) -> None:
    names = list(small)
    for number, some in enumerate((names[:9], names[9:]), 1):
        part = {name: small[name] for name in some}
        safetensors.torch.save_file(part, tmp_path / f"model-0000{number}-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00002")}))
    with pytest.raises(ConfigError, match="index of 1 shards") as caught:
        load(index)
    [command] = re.findall("`(.+)`", str(caught.value))
    words = [sys.executable, *shlex.split(command)[1:]]
    subprocess.run(words, cwd=tmp_path, check=True)
    assert same(load(tmp_path / "merged.safetensors"), small)
