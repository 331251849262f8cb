"""What the preset `compress` could make smaller of a model."""

from __future__ import annotations

import pytest

from donna_ray.errors import ConfigError
from scripts.compressible import compression_facts


def test_a_stage_that_stays_is_not_counted() -> None:
    """MobileNetV3's last stage is one convolution."""
    facts = compression_facts("mobilenetv3_small_050", image_size=64)
    *others, last = facts["stages"]
    assert (last["choices"], last["least"]) == (1, 1)
    assert facts["shrinkable"] == pytest.approx(
        sum(stage["share"] for stage in others if stage["choices"] > 1)
    )
    saved = sum(stage["share"] * (1 - stage["least"]) for stage in facts["stages"])
    assert facts["least"] == pytest.approx(1 - saved)
    assert facts["networks"] > 1000


def test_unknown_model_is_named() -> None:
    with pytest.raises(ConfigError, match="no_such_model"):
        compression_facts("no_such_model")
