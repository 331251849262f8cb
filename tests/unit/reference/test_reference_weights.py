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

SMALL = "test_resnet"


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
    with pytest.raises(ConfigError, match=r"cannot be had: .*pathlib.*whose code is not run"):
        create_timm_model(reference(weights=str(path)))


@pytest.fixture(scope="module")
def small() -> dict[str, torch.Tensor]:
    """Weights of a small model for 5 classes."""
    return timm.create_model(SMALL, num_classes=5).state_dict()


def saved(path: Path, state: dict[str, Any]) -> str:
    torch.save({"state_dict": state, "epoch": 3}, path / "last.ckpt")
    return str(path / "last.ckpt")


def loaded(weights: str, classes: int, **values: Any) -> torch.nn.Module:
    config = ReferenceConfig.model_validate({"model": SMALL, "weights": weights, **values})
    return create_timm_model(config, classes=classes)


def test_checkpoint_of_other_classes_wants_training(
    tmp_path: Path, small: dict[str, torch.Tensor]
) -> None:
    weights = saved(tmp_path, small)
    with pytest.raises(ConfigError, match=r"knows 5 classes.*have 6.*reference\.training"):
        loaded(weights, 6)
    model = loaded(weights, 6, training={"epochs": 1})
    state = model.state_dict()
    other = {name for name in small if not torch.equal(state[name], small[name])}
    assert other == {"fc.weight", "fc.bias"}
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 6)


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [("model.", ["loss.weight"]), ("module.", []), ("_orig_mod.", []), ("network.backbone.", [])],
)
def test_prefix_of_all_names_is_taken_off(
    tmp_path: Path, small: dict[str, torch.Tensor], prefix: str, beside: list[str]
) -> None:
    state = {prefix + name: value for name, value in small.items()}
    state |= dict.fromkeys(beside, torch.ones(5))
    model = loaded(saved(tmp_path, state), 5)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in small.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layer2.0.bn1.running_var", "fc.weight"])
def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, small: dict[str, torch.Tensor], name: str, value: float
) -> None:
    damaged = {**small, name: small[name].clone()}
    damaged[name].view(-1)[0] = value
    with pytest.raises(ConfigError, match=rf"finite, but .*last\.ckpt has NaN .*\({name}\)"):
        loaded(saved(tmp_path, damaged), 5)


def test_counters_of_batches_may_lack(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    state = {name: each for name, each in small.items() if "num_batches" not in name}
    assert torch.equal(loaded(saved(tmp_path, state), 5).state_dict()["fc.bias"], small["fc.bias"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: timm.create_model("test_vit").state_dict(),
            ["lacks 77 of", "80 others (cls_token,"],
        ),
        (
            lambda state: {**state, "ema.x": torch.ones(1)},
            ["1 others (ema.x) beside all of its 77"],
        ),
        (
            lambda state: {a + name: each for name, each in state.items() for a in ("a.", "b.")},
            ["has it 2 times (a., b.)"],
        ),
        (
            lambda state: {**state, "fc.bias": torch.ones(5), "bn1.weight": torch.ones(2)},
            ["1 weights", "bn1.weight (2,)"],
        ),
    ],
    ids=["another model", "more", "twice", "shape"],
)
def test_checkpoint_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, small: dict[str, torch.Tensor], change: Any, words: list[str]
) -> None:
    weights = saved(tmp_path, change(small))
    with pytest.raises(ConfigError) as caught:
        loaded(weights, 5)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message) - message.count(weights) * len(weights) < 400
    assert "\n" not in message


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
    with pytest.raises(ConfigError, match=r"cannot be had \(LocalEntryNotFoundError: "):
        create_timm_model(reference(weights="pretrained", training={"epochs": 1}), classes=10)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet51", r"'resnet51'.*Similar ones: resnet51q, .*resnet50"),
        ("tf_efficientnet_lite", "Similar ones: tf_efficientnet_lite0, tf_efficientnet_lite1"),
        ("efficentnet_b0", "Similar ones: efficientnet_b0"),
        ("resnet18.nosuchtag", r"no 'resnet18.nosuchtag'. It has resnet18.a1_in1k, "),
        ("donna_micro.nosuchtag", "Of donna_micro it has none"),
        ("resnet18.", r"no 'resnet18.'. It has resnet18.a1_in1k, "),
    ],
)
def test_unknown_model_gets_similar_names(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        create_timm_model(ReferenceConfig(model=name))


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
        "crop_mode": "center",
    }


def test_older_name_of_timms_is_its_model_at_any_size() -> None:
    config = ReferenceConfig(model="vit_tiny_patch16_224_in21k")
    model = create_timm_model(config, classes=5, image_size=64)
    assert preprocessing_of(model, 3, 64)["input_size"] == (3, 64, 64)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_weights_of_an_older_name_are_converted(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224.augreg_in21k", num_classes=5).state_dict()
    torch.save(state, tmp_path / "a.pth")
    named = {"model": "vit_tiny_patch16_224_in21k", "weights": str(tmp_path / "a.pth")}
    config = ReferenceConfig.model_validate(named)
    assert create_timm_model(config, classes=5, image_size=64).pos_embed.shape == (1, 17, 192)
