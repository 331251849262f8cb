"""A commented configuration to start from: the shipped one with a person's own values in it."""

import math
import re

import yaml

from donna_ray.config.loading import shipped_config

__all__ = ["quoted", "starting_config"]


def starting_config(
    name: str, data: str, model: str, weights: str, device: str, latency_limit: str
) -> str:
    """The text of a YAML file.

    Args:
        name: of the run, and of its folder.
        data: `data.source`.
        model: of timm.
        weights: `train`, `pretrained` or a checkpoint file.
        device: a connector of the device farm.
        latency_limit: as `0.8x` or `2.5ms`.
    """
    values = {
        "name": name,
        "source": data,
        "model": model,
        "weights": weights,
        "connector": device,
        "latency_limit": latency_limit,
    }
    text = shipped_config("start").read_text(encoding="utf-8")
    for key, value in values.items():
        line = re.compile(rf"^( *{key}: )\S+", re.MULTILINE)
        written = _scalar(value).replace("\\", r"\\")
        text, count = line.subn(rf"\g<1>{written}", text)
        assert count == 1, key
    if weights == "pretrained":  # the data have classes of their own
        text = text.replace("  # training:", "  training:", 1)
    return text


def quoted(value: str) -> str:
    """A text in YAML, whatever characters it has: in JSON's notation some would be others."""
    written: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf)
    return written.rstrip("\n")


def _scalar(value: str) -> str:
    """As YAML has it, quoted where a plain word would be read as something else."""
    try:
        plain = not re.search(r"\s|[#:\[\]{},]", value) and yaml.safe_load(value) == value
    except yaml.YAMLError:
        plain = False
    return value if plain else quoted(value)
