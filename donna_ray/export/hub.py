"""What an exported folder says of itself to timm and Hugging Face, and to a person."""

from collections.abc import Mapping
from typing import Any

from donna_ray.export.folder import EXECUTORCH, LITERT, LITERT_INT8

__all__ = ["model_card", "timm_config"]

Card = Mapping[str, Any]

_HEAD = """---
tags:
- image-classification
- timm
- donna-ray
library_name: timm
pipeline_tag: image-classification
---
# {architecture}

An image classifier of {classes} classes, found by a search for a device: {stages} stages of blocks
between stem and head of {reference}, distilled from it block by block and finetuned.
"""
_USE = """
## How to use it

With ONNX Runtime: `model.onnx` takes `input`, {batch} x {shape}, float32, and gives the logits
`output`. {torch}

{phones}Images are prepared as `pretrained_cfg` of `config.json` says: {interpolation} to {size},
crop {crop_pct}, values from 0 to 1, less {mean}, divided by {std}. To see that the figures above
hold: `donna evaluate FOLDER --data IMAGES` (a folder of images for each class).
"""
_PHONES = """On phones and boards, the layout of images as above (channels first):

{files}
"""
_LITERT_FLOAT = "- LiteRT: `model.tflite` takes `input`, {shape}; gives the logits `output`."
_LITERT_INT8 = (
    "- LiteRT: `model-int8.tflite` takes and gives int8: round(value / scale) + zero point, as the "
    "details of its input and output have them. Of the validation images it answers {accuracy} "
    "right (in float {float_accuracy}), {agreement} as the float network does; its logits differ "
    "by {error} of theirs (root mean square)."
)
_EXECUTORCH = "- ExecuTorch: `forward` of `model.pte` takes {shape}, and gives the logits."
_TORCH = """With PyTorch and timm:

```python
{code}
```"""
_WEIGHTS = """`model.safetensors` has the weights, under the names of the modules that the
code of its block families makes; without that code PyTorch and timm do not know the network."""
_TIMM = """import timm

network = timm.create_model("local-dir:FOLDER", pretrained=True).eval()"""
_ALONE = """import timm
import network  # network.py of this folder; needs torch, timm and safetensors

own = network.load()
# or by timm, which knows the name once network.py is imported:
own = timm.create_model("local-dir:FOLDER", pretrained=True).eval()"""


def timm_config(card: Card, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as ``timm.models._hub.save_config_for_hf`` writes it.

    Args:
        card: of ``export_network``.
        arguments: `architecture`, and `model_args` of a model of timm's own.
    """
    own = {
        **card["preprocessing"],
        "fixed_input_size": "img_size" in arguments.get("model_args", {}),
        "num_classes": card["classes"],
    }
    labels = {"label_names": card["class_names"]} if card["class_names"] else {}
    return {**arguments, "num_classes": card["classes"], **labels, "pretrained_cfg": own}


def model_card(card: Card, *, is_timms: bool, has_source: bool) -> str:
    """README.md: what it is, its figures, its recipe, how to use it.

    Args:
        card: of ``export_network``.
        is_timms: timm makes it without the Python file.
        has_source: there is a Python file.
    """
    preparing = card["preprocessing"]
    channels, height, width = preparing["input_size"]
    head = _HEAD.format(
        architecture=card["architecture"],
        classes=card["classes"],
        stages=len(card["blocks"]),
        reference=card["reference"]["model"],
    )
    use = _USE.format(
        phones=_phones(card["phones"], f"{channels} x {height} x {width}"),
        batch="N" if card["dynamic_batch"] else 1,
        shape=f"{channels} x {height} x {width}",
        torch=_TORCH.format(code=_TIMM if is_timms else _ALONE) if has_source else _WEIGHTS,
        interpolation=preparing["interpolation"],
        size=f"{height} x {width}",
        crop_pct=preparing["crop_pct"],
        mean=list(preparing["mean"]),
        std=list(preparing["std"]),
    )
    return "\n".join((head, _figures(card), _recipe(card))) + use


def _phones(files: Card, shape: str) -> str:
    shape = f"1 x {shape}, float32"
    lines = [_LITERT_FLOAT.format(shape=shape)] if LITERT in files else []
    if LITERT_INT8 in files:
        shares = {name: _percent(share) for name, share in files[LITERT_INT8].items()}
        lines.append(_LITERT_INT8.format(**shares))
    lines += [_EXECUTORCH.format(shape=shape)] if EXECUTORCH in files else []
    return _PHONES.format(files="\n".join(lines)) + "\n" if lines else ""


def _figures(card: Card) -> str:
    reference = card["reference"]
    rows = [
        ("accuracy on the test images", _accuracy(card), _accuracy(reference)),
        ("on the validation images", _percent(card["accuracy"]), _percent(reference["accuracy"])),
        ("params", f"{card['params']:,}", ""),
        ("MACs", f"{card['macs']:,}", ""),
        *((f"latency on {_device(each)}", _milliseconds(each), "") for each in card["latency"]),
    ]
    lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join(("## Figures", "", "| | it | reference |", "|---|---|---|", *lines, ""))


def _recipe(card: Card) -> str:
    blocks = (
        f"{number}. {block['family']}: {', '.join(f'{k} {v}' for k, v in block['options'].items())}"
        for number, block in enumerate(card["blocks"])
    )
    recipe = ", ".join(f"{name} {value}" for name, value in card["recipe"].items())
    return "\n".join(
        (
            "## What it is made of",
            "",
            *blocks,
            "",
            f"Data: {card['data']['source']}. Finetuned under distillation for {card['epochs']} "
            f"epochs ({recipe}), seed {card['seed']}; `card.json` has all of it, and the versions.",
        )
    )


def _accuracy(facts: Card) -> str:
    if "test_accuracy" not in facts:
        return "not tested"
    low, high = (_percent(facts[name]) for name in ("test_low", "test_high"))
    return f"{_percent(facts['test_accuracy'])} (95%: {low} to {high})"


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _device(latency: Card) -> str:
    threads = latency.get("settings", {}).get("threads")
    name = latency.get("device", "the device")
    return name if threads is None else f"{name} (threads: {threads})"


def _milliseconds(latency: Card) -> str:
    spread = f" ± {latency['ci_percent']:.1f}%" if "ci_percent" in latency else ""
    return f"{latency['median_ms']:.3g} ms{spread}"
