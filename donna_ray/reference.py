"""The reference (teacher): a timm model cut into stem, stages and head.

Stem and head of every candidate are the reference's, and a stage's blocks learn to stand in for the
reference's own stage (DONNA, section 3.1).
"""

import copy
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from donna_ray import models
from donna_ray.artifacts import Artifact, Files, StepFolder, file_sha256, write_atomic
from donna_ray.complexity import complexity
from donna_ray.config import RunConfig
from donna_ray.data import ImageData, class_count, image_format, load_data
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.network import StagedNetwork
from donna_ray.run import Run
from donna_ray.space import SearchSpace, StageShape, build_space
from donna_ray.training import accuracy, seeded, train

__all__ = ["build_reference", "calibrate", "load_reference", "reference_step", "space_of"]

_WEIGHTS = "weights.safetensors"
_VARIANCE = "variance.safetensors"
_CUT_TOLERANCE = 1e-5
_OWN_MODELS = models.__all__  # importing them registers them with timm


def build_reference(
    config: RunConfig, *, load_weights: bool = True
) -> tuple[StagedNetwork, dict[str, Any]]:
    """Build the model and cut it.

    Args:
        config: names the model, the data's format and the weights.
        load_weights: load what `reference.weights` names (nothing for `train`); else the weights
            are left random, for a caller that loads them itself.

    Returns:
        The reference in eval mode, and timm's data configuration of it (input_size, mean, …).

    Raises:
        ConfigError: timm does not know the model, it cannot be cut, or its weights cannot be had.
    """
    image = image_format(config.data)
    weights = config.reference.weights if load_weights else "train"
    model = _create_model(config, image["channels"], weights)
    asked = {"input_size": (image["channels"], image["size"], image["size"])}
    resolved = resolve_data_config(asked if image["size"] else {}, model=model)
    reference = _cut(model, config.reference.model, resolved["input_size"])
    _check_cut(model, reference)
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
    return reference, {key: resolved[key] for key in keys}


def reference_step(run: Run) -> Artifact:
    """Step 1: build, train where asked to, calibrate.

    The artifact holds the weights and the per-channel variance of every stage's output over the
    training data; its result the accuracy, the stages' shapes, params and MACs.
    """
    config = run.config
    inputs = {
        "data": config.data.model_dump(exclude={"loader_workers"}),
        "reference": config.reference.model_dump(),
        "checkpoint": _checkpoint_digest(config.reference.weights),
        "seed": config.seed,
    }
    return run.step("reference", inputs, lambda folder: _compute(run, folder))


def load_reference(config: RunConfig, artifact: Artifact) -> tuple[StagedNetwork, list[Tensor]]:
    """The reference of an artifact, in eval mode and without gradients.

    Returns:
        The reference and, for each stage, the variance (channels,) of its output.
    """
    reference, _ = build_reference(config, load_weights=False)
    reference.load_state_dict(safetensors.torch.load((artifact.path / _WEIGHTS).read_bytes()))
    variance = safetensors.torch.load((artifact.path / _VARIANCE).read_bytes())
    reference.requires_grad_(False)
    reference.to(memory_format=torch.channels_last)
    return reference.eval(), [variance[str(n)] for n in range(len(reference.stages))]


def space_of(config: RunConfig, artifact: Artifact) -> SearchSpace:
    """The search space on the stages of a finished reference."""
    shapes = [
        StageShape(tuple(stage["input"]), tuple(stage["output"]))
        for stage in artifact.result["stages"]
    ]
    return build_space(config.space, shapes)


@torch.no_grad()
def calibrate(reference: StagedNetwork, data: ImageData) -> list[Tensor]:
    """Variance of each channel of each stage's output over the training images, in one pass.

    Returns:
        (channels,) a stage, float32; accumulated in float64.
    """
    reference.eval()
    sums: list[Tensor] = []
    for images, _ in data.train.batches(256):
        outputs = reference.features(images)[1:]
        moments = [_moments(output.double()) for output in outputs]
        sums = [a + b for a, b in zip(sums, moments, strict=True)] if sums else moments
    return [(squares / count - (total / count) ** 2).float() for count, total, squares in sums]


def _moments(output: Tensor) -> Tensor:
    count = torch.full((output.shape[1],), output.numel() / output.shape[1], dtype=torch.float64)
    return torch.stack([count, output.sum((0, 2, 3)), output.square().sum((0, 2, 3))])


def _compute(run: Run, folder: StepFolder) -> tuple[dict[str, Any], Files]:
    config = run.config
    with seeded(config.seed):
        reference, preprocessing = build_reference(config)
    data = load_data(config.data, preprocessing)
    passes = 0
    if config.reference.weights == "train":
        passes = _train(run, reference, data)
    variance = {str(n): values for n, values in enumerate(calibrate(reference, data))}
    state = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    weights_file, variance_file = folder.path / _WEIGHTS, folder.path / _VARIANCE
    write_atomic(weights_file, safetensors.torch.save(state))
    write_atomic(variance_file, safetensors.torch.save(variance))
    result = {
        "model": config.reference.model,
        "classes": data.classes,
        "preprocessing": preprocessing,
        "accuracy": accuracy(reference, data.validation),
        **complexity(reference, reference.input_shape),
        "stages": _stage_facts(reference),
        "weights_sha256": file_sha256(weights_file),
        "images": {"train": len(data.train), "validation": len(data.validation)},
        "cost": {"image_passes": passes + len(data.train) + len(data.validation)},
    }
    return result, [weights_file, variance_file]


def _create_model(config: RunConfig, channels: int, weights: str) -> nn.Module:
    name = config.reference.model
    arguments: dict[str, Any] = {
        "num_classes": class_count(config.data),
        "in_chans": channels,
        "pretrained": weights == "pretrained",
    }
    if weights not in ("train", "pretrained"):
        arguments["checkpoint_path"] = str(Path(weights).expanduser())
    if not timm.is_model(name):
        raise ConfigError(
            f"reference.model must be one of timm's models, but is {name!r}. "
            "`python -c 'import timm; print(timm.list_models())'` lists them."
        )
    try:
        return timm.create_model(name, **arguments)
    except Exception as error:
        if weights == "train" or isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"reference.weights is {weights!r}, but these weights of {name} cannot be had "
            f"({type(error).__name__}: {error}). Give a checkpoint file, or 'train' to train the "
            "reference on the data."
        ) from error


def _cut(model: nn.Module, name: str, input_shape: tuple[int, int, int]) -> StagedNetwork:
    """Cut a model of timm's EfficientNet or MobileNetV3 class: its stages are the stages."""
    if not all(hasattr(model, part) for part in ("conv_stem", "bn1", "blocks")):
        raise ConfigError(
            f"reference.model must be of timm's EfficientNet or MobileNetV3 class, but {name} is a "
            f"{type(model).__name__}. Choose one of efficientnet_*, mobilenetv2_*, mobilenetv3_*, "
            "mnasnet_*."
        )
    head: Any = copy.deepcopy(model)
    head.conv_stem, head.bn1, head.blocks = nn.Identity(), nn.Identity(), nn.Sequential()
    parts: Any = model
    stem = nn.Sequential(parts.conv_stem, parts.bn1)
    return StagedNetwork(stem, list(parts.blocks), head, input_shape)


@torch.no_grad()
def _check_cut(model: nn.Module, reference: StagedNetwork) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *reference.input_shape, generator=generator)
    error = (model.eval()(images) - reference.eval()(images)).abs().max().item()
    if not error <= _CUT_TOLERANCE:
        raise DonnaError(
            f"The cut reference must equal the model to {_CUT_TOLERANCE}, but differs by "
            f"{error:.2e}. This model cannot be used as a reference."
        )


def _train(run: Run, reference: StagedNetwork, data: ImageData) -> int:
    recipe = run.config.reference.training
    with run.progress("reference", recipe.epochs, "epochs") as progress:
        train(reference, data.train, recipe, seed=run.config.seed, on_epoch=progress.advance)
    return recipe.epochs * len(data.train)


def _stage_facts(reference: StagedNetwork) -> list[dict[str, Any]]:
    return [
        {"input": shape.input, "output": shape.output, **complexity(stage, shape.input)}
        for stage, shape in zip(reference.stages, reference.shapes, strict=True)
    ]


def _checkpoint_digest(weights: str) -> str | None:
    if weights in ("train", "pretrained"):
        return None
    return file_sha256(Path(weights).expanduser())
