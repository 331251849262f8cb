"""Images are transformed for an evaluation as timm does it, whatever the pretrained weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from donna_ray.config import DataConfig
from donna_ray.data.loading import _transforms
from donna_ray.reference.timm_models import preprocessing_of

_DECIDES = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


@pytest.fixture(scope="module")
def configurations() -> list[dict[str, Any]]:
    """One of each kind that any pretrained classifier has."""
    found = {}
    for name in timm.list_pretrained():
        settings = timm.get_pretrained_cfg(name).to_dict()
        resolved = resolve_data_config(pretrained_cfg=settings)
        found[tuple(resolved[each] for each in _DECIDES)] = settings
    return list(found.values())


def both(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Our transform and timm's."""
    model: Any = nn.Module()
    model.pretrained_cfg = settings
    ours, _ = _transforms(DataConfig(augmentation=None), preprocessing_of(model, 3, None))
    return ours, create_transform(**resolve_data_config(pretrained_cfg=settings))


def test_every_pretrained_configuration_has_timms_transforms(
    configurations: list[dict[str, Any]],
) -> None:
    assert {each.get("crop_mode") for each in configurations} >= {"center", "squash", "border"}
    for settings in configurations:
        ours, timms = both(settings)
        assert repr(ours) == repr(timms), settings


def test_an_image_comes_out_the_same(configurations: list[dict[str, Any]]) -> None:
    """Of each way to crop and to interpolate, at its smallest; of an image that is no square."""
    kinds: dict[Any, dict[str, Any]] = {}
    for settings in sorted(configurations, key=lambda each: -each["input_size"][-1]):
        kinds[settings.get("crop_mode"), settings["interpolation"]] = settings
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    image = Image.fromarray(pixels)
    found = []
    for settings in kinds.values():
        ours, timms = both(settings)
        assert torch.equal(ours(image), timms(image)), settings
        found.append(ours(image))
    assert len(found) >= 4
