"""A commented configuration to start from: the shipped one with a person's own values in it."""

import math
import re
from collections.abc import Mapping

import yaml

from donna_ray.config.loading import shipped_config

__all__ = ["quoted", "starting_config", "with_lengths"]


def starting_config(
    name: str,
    data: str,
    model: str,
    weights: str,
    device: str,
    latency_limit: str,
    workers: int,
    size: int | None = None,
) -> str:
    """The text of a YAML file.

    Args:
        name: of the run, and of its folder.
        data: `data.source`.
        model: of timm.
        weights: `train`, `pretrained` or a checkpoint file.
        device: a connector of the device farm.
        latency_limit: as `0.8x` or `2.5ms`.
        workers: of the run; four at most train the reference together.
        size: of the images; None is the model's own.
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
    if size is not None:
        text = text.replace("  # image_size: 224  ", f"  image_size: {size}")
    training = {"epochs": "20"}
    if weights == "pretrained":  # the data have classes of their own
        training["learning_rate"] = "0.001"
    together = 2 ** min(int(math.log2(workers)), 2)  # a divisor of the batch
    if together > 1:
        training["workers_per_network"] = str(together)
    if weights in ("pretrained", "train"):
        listed = ", ".join(f"{name}: {value}" for name, value in training.items())
        text = re.sub(r"# (training: ){.*?}.*", rf"\g<1>{{{listed}}}", text)
    return _set(text, "cluster", "workers", str(workers))


def with_lengths(text: str, settings: Mapping[str, float]) -> str:
    """The text of ``starting_config`` with other numbers, by their dotted names.

    `device.settings` may have none yet.
    """
    for name, value in settings.items():
        section, key = name.split(".")[-2:]
        if section == "settings" and "  settings:" not in text:
            line = re.compile(r"^(  connector: .*)$", re.MULTILINE)
            text = line.sub(r"\g<1>\n  settings: {max_seconds: 0}   # of a candidate", text)
        text = _set(text, section, key, f"{value:g}")
    return text


def _set(text: str, section: str, key: str, value: str) -> str:
    """With another value of a key, the first after the section's name."""
    found = re.compile(rf"^( *{section}:.*?\b{key}: )[^\s,}}]+", re.MULTILINE | re.DOTALL)
    text, count = found.subn(rf"\g<1>{value}", text, count=1)
    assert count == 1, (section, key)
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
