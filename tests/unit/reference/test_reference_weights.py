"""Weights that are asked for are there, or the run stops: they are never silently random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from donna_ray.config import ReferenceConfig
from donna_ray.errors import ConfigError
from donna_ray.reference.timm_models import create_timm_model, preprocessing_of


def reference(**values: Any) -> ReferenceConfig:
    return ReferenceConfig.model_validate({"model": "mobilenetv3_small_050", **values})


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_checkpoint_is_loaded(tmp_path: Path, suffix: str) -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=5)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    loaded = create_timm_model(reference(weights=str(path)), classes=5)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {}, "callback": Path.cwd}, path)
    with pytest.raises(ConfigError, match="cannot be had"):
        create_timm_model(reference(weights=str(path)))


def test_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    model = timm.create_model("mobilenetv3_small_050", num_classes=5)
    safetensors.torch.save_file(model.state_dict(), path)
    with pytest.raises(ConfigError, match="number of classes"):
        create_timm_model(reference(weights=str(path)), classes=6)


@pytest.mark.parametrize("name", ["mobilenetv2_035", "donna_micro"])
def test_pretrained_weights_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no pretrained weights"):
        create_timm_model(ReferenceConfig(model=name, weights="pretrained"))


def test_pretrained_weights_of_other_classes_want_training() -> None:
    with pytest.raises(ConfigError, match=r"knows 1000 classes.*have 10.*reference\.training"):
        create_timm_model(reference(weights="pretrained"), classes=10)


def test_pretrained_weights_that_cannot_be_fetched_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="cannot be had"):
        create_timm_model(reference(weights="pretrained", training={"epochs": 1}), classes=10)


def test_unknown_model_gets_similar_names() -> None:
    with pytest.raises(ConfigError, match=r"'resnet51'.*Similar ones: .*resnet"):
        create_timm_model(ReferenceConfig(model="resnet51"))


def test_image_size_reaches_models_that_are_built_for_one() -> None:
    model = create_timm_model(ReferenceConfig(model="vit_tiny_patch16_224"), image_size=64)
    assert preprocessing_of(model, 3, 64)["input_size"] == (3, 64, 64)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_model_that_timm_cannot_build_is_named() -> None:
    with pytest.raises(ConfigError, match="must be a model that timm can build"):
        create_timm_model(reference(), channels=-1)


def test_preprocessing_is_timms() -> None:
    model = create_timm_model(ReferenceConfig(model="vit_tiny_patch16_224"))
    assert preprocessing_of(model, 3, None) == {
        "input_size": (3, 224, 224),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    }
