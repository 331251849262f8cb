"""A model is built as its weights were trained: as told beside or in their file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from donna_ray.config import ReferenceConfig, RunConfig
from donna_ray.errors import ConfigError
from donna_ray.reference.build import build_reference
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.preparation import preparation_beside
from donna_ray.reference.step import reference_inputs
from donna_ray.reference.timm_models import create_timm_model
from donna_ray.reference.told_arguments import told_arguments
from donna_ray.storage.artifacts import StepFolder

SMALL = "test_resnet"
HINTS = {"gp": "global_pool", "bn_eps": "bn_eps"}


def beside(folder: Path, model: nn.Module, **changed: Any) -> str:
    """As timm saves a model for Hugging Face, with other keys in its config.json."""
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    return str(folder / "model.safetensors")


def within(folder: Path, trained: nn.Module, **args: Any) -> str:
    """As timm's train.py keeps a checkpoint."""
    known = argparse.Namespace(**{"model": SMALL, "gp": None, "model_kwargs": {}, **args})
    torch.save({"state_dict": trained.state_dict(), "args": known}, folder / "last.pth")
    return str(folder / "last.pth")


def a_run(weights: str, model: str = SMALL) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"source": "hfds/photos"},
            "reference": {"model": model, "weights": weights},
            "space": {"preset": "compress"},
        }
    )


@pytest.mark.parametrize(
    ("own", "model"),
    [
        ({"global_pool": "max"}, SMALL),
        ({"act_layer": "gelu"}, SMALL),
        ({"bn_eps": 0.1, "act_layer": "relu"}, "test_efficientnet"),
        ({"global_pool": "avg", "reg_tokens": 2}, "test_vit"),
    ],
)
@pytest.mark.parametrize("where", ["beside", "within"])
def test_model_is_built_as_it_was_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str, own: dict[str, Any], model: str
) -> None:
    """Also by a worker, which lacks the file and knows only what an artifact has."""
    trained = timm.create_model(model, num_classes=3, **own).eval()
    renamed = {"global_pool": "gp", "bn_eps": "bn_eps"}
    args = {renamed[name]: value for name, value in own.items() if name in renamed}
    kwargs = {name: value for name, value in own.items() if name not in renamed}
    if where == "beside":
        weights = beside(tmp_path, trained)
    else:
        weights = within(tmp_path, trained, model=model, model_kwargs=kwargs, **args)
    config = a_run(weights, model)
    told = told_arguments(config.reference)
    assert told == own
    reference, used = build_reference(config, classes=3)
    name, value = next(iter(own.items()))
    assert f"says: {name} {value}" in caplog.text
    images = torch.randn(2, *reference.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(reference(images), trained(images))
        for path in tmp_path.iterdir():
            path.unlink()
        known = json.loads(json.dumps({"preprocessing": used, "arguments": told}))
        other, _ = build_reference(config, classes=3, load_weights=False, **known)
        other.load_state_dict(reference.state_dict())
        torch.testing.assert_close(other(images), reference(images))


def test_older_files_beside_tell_as_well(tmp_path: Path) -> None:
    """With the pool beside the arguments, and with all of timm's settings in one."""
    model = timm.create_model(SMALL, num_classes=3, global_pool="max")
    weights = beside(tmp_path, model, model_args={})
    config = ReferenceConfig(model=SMALL, weights=weights)
    assert told_arguments(config) == {"global_pool": "max"}
    whole = json.dumps({"architecture": SMALL, "mean": [0.1, 0.2, 0.3]})
    (tmp_path / "config.json").write_text(whole)
    assert preparation_beside(config) == {"mean": (0.1, 0.2, 0.3)}


def test_size_of_the_arguments_is_the_size_of_images(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=3)
    weights = beside(tmp_path, model, model_args={"img_size": 96})
    config = ReferenceConfig(model="test_vit", weights=weights)
    assert preparation_beside(config)["input_size"] == (3, 96, 96)


def test_what_is_as_timm_has_it_is_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor what the run decides, and drop rates; a backbone without a pool gets timm's."""
    args = {"num_classes": 9, "in_chans": 1, "global_pool": "", "drop_path_rate": 0.1, "pad": None}
    args |= {"act_layer": "relu", "zero_init_last": False, "output_stride": 32}
    model = timm.create_model(SMALL, num_classes=3)
    for changed in ({}, {"model_args": args}):
        config = ReferenceConfig(model=SMALL, weights=beside(tmp_path, model, **changed))
        assert told_arguments(config, say=True) == {}
    assert "is built as" not in caplog.text
    others = {"model": "test_vit", "gp": "max", "model_kwargs": {"act_layer": "gelu"}}
    (tmp_path / "config.json").unlink()
    config = ReferenceConfig(model=SMALL, weights=within(tmp_path, model, **others))
    assert told_arguments(config) == {}


@pytest.mark.parametrize(
    ("model", "same", "other"),
    [
        ("test_efficientnet", {"act_layer": "silu"}, {"bn_eps": 0.002}),
        ("test_vit", {"global_pool": "token"}, {"pool_include_prefix": True}),
    ],
)
def test_only_what_differs_is_told(
    tmp_path: Path, model: str, same: dict[str, Any], other: dict[str, Any]
) -> None:
    """Even where no weight shows it."""
    network = timm.create_model(model, num_classes=3)
    weights = beside(tmp_path, network, model_args={**same, **other})
    assert told_arguments(ReferenceConfig(model=model, weights=weights)) == other


@pytest.mark.parametrize(
    "settings",
    [
        {"bn_eps": 1e-5},  # of train.py, of models that timm builds with it
        {"bn_momentum": 0.1},
        {"gp": 1},
        {"gp": "gpu"},
        {"bn_eps": "small"},
        {"model_kwargs": ""},
        {"model_kwargs": [1]},
        {"model_kwargs": "act_layer=gelu"},
        {"model_kwargs": {"pretrained": True, "exportable": True, "cache_dir": "/x"}},
        {"model_kwargs": {"pretrained_cfg_overlay": {"file": "x"}, "pretrained_cfg": {"url": "x"}}},
        {"model_kwargs": {"bn_momentum": 0.1, "drop_block": 0.1, "scriptable": True}},
    ],
)
def test_what_changes_no_weights_or_is_of_other_programs_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    weights = within(tmp_path, timm.create_model(SMALL, num_classes=3), **settings)
    config = ReferenceConfig(model=SMALL, weights=weights)
    create_timm_model(config, classes=3)
    assert told_arguments(config) == {}
    hint = next((f"{name} {settings[key]}" for key, name in HINTS.items() if key in settings), "")
    assert (f"has {hint}, which timm cannot" if hint else "") in caplog.text


@pytest.mark.parametrize(
    "told",
    [
        {"input_size": 224, "epochs": 3, "mean": None},
        {"std": 0.5},
        {"model_args": [1]},
        {"model_args": ""},
        {"model_args": {"img_size": "big"}},
        {"global_pool": 1},
    ],
)
def test_file_beside_of_another_program_is_read_as_far_as_it_can_be(
    tmp_path: Path, told: dict[str, Any]
) -> None:
    model = timm.create_model(SMALL, num_classes=3)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    whole = json.dumps(told | {"architecture": SMALL, "crop_pct": 0.7})
    (tmp_path / "config.json").write_text(whole)
    config = ReferenceConfig(model=SMALL, weights=str(tmp_path / "model.safetensors"))
    create_timm_model(config, classes=3)
    assert told_arguments(config) == {}
    assert preparation_beside(config) == {"crop_pct": 0.7}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"act_layer": nn.GELU}, "args of .*last.pth has act_layer, which is no number"),
        ({"checkpoint_path": "/x.pth"}, "has checkpoint_path, which says how timm makes or loads"),
        ({"features_only": True}, "has features_only, which"),
        ({"colour": "red"}, r"TypeError.*colour.*weights or is in them says \{'colour': 'red'\}"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(tmp_path: Path, args: Any, words: str) -> None:
    model = timm.create_model(SMALL, num_classes=3)
    weights = within(tmp_path, model, model_kwargs=args)
    with pytest.raises(ConfigError, match=words):
        create_timm_model(ReferenceConfig(model=SMALL, weights=weights), classes=3)


def test_key_and_identity_have_what_is_told_and_only_then(tmp_path: Path) -> None:
    config, told = a_run("train"), {"act_layer": "gelu"}
    assert reference_inputs(config, "sha", {}, told)["arguments"] == told
    assert "arguments" not in reference_inputs(config, "sha", {}, {})
    made = [
        StepFolder(tmp_path, "reference", {"number": number}).commit(
            {"stages": [], **result}, [], 0
        )
        for number, result in enumerate(({}, {"arguments": {}}, {"arguments": told}))
    ]
    before, plain, other = map(reference_identity, made)
    assert before == plain != other
