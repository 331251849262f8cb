"""The reference (teacher): a timm model cut into stem, stages and head.

Stem and head of every candidate are the reference's, and a stage's blocks learn to stand in for the
reference's own stage (DONNA, section 3.1).
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.utils import natural_key
from torch import Tensor, nn

from donna_ray.complexity import complexity
from donna_ray.config import ReferenceConfig, RunConfig, TrainingConfig
from donna_ray.data import (
    ImageData,
    Split,
    class_count,
    image_format,
    inputs_without_test,
    load_data,
    origin_of_validation,
    words_of_test,
)
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.reference.cut import cut_model
from donna_ray.reference.network import StagedNetwork, channel_sums, own_weights
from donna_ray.reference.stages import automatic_cut
from donna_ray.reference.timm_models import create_timm_model, preprocessing_of
from donna_ray.reference.trace import LARGER, CannotCutError
from donna_ray.run.doubts import check_reference, reference_doubts
from donna_ray.run.mirror import OBJECTS
from donna_ray.run.progress import Progress
from donna_ray.run.run import Run
from donna_ray.space import SearchSpace, build_space, register_modules
from donna_ray.storage.artifacts import Artifact, Files, StepFolder, file_sha256, write_atomic
from donna_ray.storage.files import Storage
from donna_ray.storage.records import RecordStore
from donna_ray.training.checkpoints import Checkpoints
from donna_ray.training.loop import accuracy, device_of, network_input, seeded
from donna_ray.training.threads import few_threads
from donna_ray.training.trainer import Trainer, on_labels

__all__ = [
    "build_reference",
    "calibrate",
    "cut_error",
    "cut_reference",
    "data_of",
    "load_reference",
    "outline",
    "reference_inputs",
    "reference_step",
    "space_of",
]

_WEIGHTS = "weights.safetensors"
_VARIANCE = "variance.safetensors"
_CUT_TOLERANCE = 1e-5
_DEFAULT_TRAINING = {"train": TrainingConfig(epochs=20)}  # by `reference.weights`
_TRIED_BATCH = 32  # where nothing is trained
_UNFINISHED = "unfinished"
_COUNTED = ("train", "distillation", "validation")


def build_reference(
    config: RunConfig, *, classes: int | None = None, load_weights: bool = True
) -> tuple[StagedNetwork, dict[str, Any]]:
    """Build the model and cut it.

    Args:
        config: names the model, the data's format and the weights.
        classes: of the data; None asks the data.
        load_weights: load what `reference.weights` names (nothing for `train`); else the weights
            are left random, for a caller that loads them itself.

    Returns:
        The reference in eval mode, and timm's data configuration of it (input_size, mean, …).

    Raises:
        ConfigError: timm does not know the model, it cannot be cut, or its weights cannot be had.
    """
    known = class_count(config.data) if classes is None else classes
    model, reference, preprocessing = outline(config, known, load_weights=load_weights)
    error = cut_error(model, reference)
    if not error <= _CUT_TOLERANCE:
        raise DonnaError(
            f"The cut reference must equal {config.reference.model} to {_CUT_TOLERANCE}, but "
            f"differs by {error:.2e}. Choose other stages in reference.stages, or another model."
        )
    return reference, preprocessing


def outline(
    config: RunConfig, classes: int | None, *, load_weights: bool
) -> tuple[nn.Module, StagedNetwork, dict[str, Any]]:
    """The model of a configuration and its cut, which is not compared with it.

    Args:
        config: names the model, the images' format and the weights.
        classes: of the data; None is timm's default for the model.
        load_weights: as in ``build_reference``.

    Returns:
        The model, the reference of the same modules, and timm's data configuration.
    """
    image = image_format(config.data)
    model = create_timm_model(
        config.reference,
        classes=classes,
        channels=image["channels"],
        image_size=image["size"],
        load_weights=load_weights,
    )
    preprocessing = preprocessing_of(model, image["channels"], image["size"])
    reference = cut_reference(model, config.reference, preprocessing["input_size"])
    return model, reference, preprocessing


def cut_reference(model: nn.Module, config: ReferenceConfig, input_shape: Any) -> StagedNetwork:
    """A timm model as a ``StagedNetwork``, cut where `reference.stages` says or automatically.

    Args:
        model: shares its modules with the result.
        config: for `stages`.
        input_shape: (channels, height, width) of an image.

    Raises:
        ConfigError: it cannot be cut there, or does not take images of this size.
    """

    def enlarged() -> nn.Module:
        channels, height, _ = input_shape
        with torch.device("meta"):
            return create_timm_model(
                ReferenceConfig(model=config.model), channels=channels, image_size=LARGER * height
            )

    try:
        if config.stages is None:
            parts, stages = automatic_cut(model, input_shape, enlarged)
        else:
            stages = [(each,) if isinstance(each, str) else tuple(each) for each in config.stages]
            parts = cut_model(model, stages, input_shape, enlarged)
    except CannotCutError as reason:
        raise ConfigError(_not_cut(config, model, reason)) from reason
    stem, *middle, head = parts
    return StagedNetwork(stem, middle, head, input_shape, names=stages)


def _not_cut(config: ReferenceConfig, model: nn.Module, reason: CannotCutError) -> str:
    if config.stages is None or str(reason).startswith("torch.fx cannot trace"):
        remedy = "Choose another model: docs/models.md lists many that can be cut."
    else:
        remedy = (
            "Name other modules in reference.stages, such as [layer1, [layer2.0, layer2.1]]: each "
            "is called once, and one tensor goes from each stage to the next. It has "
            f"{', '.join(name for name, _ in model.named_children())}."
        )
    return (
        f"A reference must be a model that can be cut into stages, but {type(model).__name__} "
        f"cannot be cut here: {reason}. {remedy}"
    )


@torch.no_grad()
def cut_error(model: nn.Module, reference: StagedNetwork) -> float:
    """Largest absolute difference of the logits of two random images, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *reference.input_shape, generator=generator)
    return (model.eval()(images) - reference.eval()(images)).abs().max().item()


def reference_step(run: Run) -> Artifact:
    """Step 1: build, train where asked to, calibrate.

    The artifact holds the weights and the per-channel variance of every stage's output over the
    training data; its result the accuracy, the stages' shapes, params and MACs.
    """
    weights = run.config.reference.weights
    checkpoint = None if weights in ("train", "pretrained") else file_sha256(Path(weights))
    inputs = reference_inputs(run.config, checkpoint)
    return run.step("reference", inputs, lambda folder: _compute(run, folder))


def reference_inputs(config: RunConfig, checkpoint: str | None) -> dict[str, Any]:
    """What a reference is made from; `checkpoint` is the SHA-256 of the file of its weights."""
    return {
        "data": inputs_without_test(config.data),
        "reference": config.reference.model_dump(),
        "checkpoint": checkpoint,
        "seed": config.seed,
    }


def load_reference(config: RunConfig, artifact: Artifact) -> tuple[StagedNetwork, list[Tensor]]:
    """The reference of an artifact, in eval mode and without gradients.

    Also registers the block families of the configuration: every worker starts here.

    Returns:
        The reference and, for each stage, the variance (channels,) of its output.
    """
    register_modules(config.space.modules)
    classes = artifact.result["classes"]
    reference, _ = build_reference(config, classes=classes, load_weights=False)
    reference.load_state_dict(safetensors.torch.load(_file(config, artifact, _WEIGHTS)))
    variance = safetensors.torch.load(_file(config, artifact, _VARIANCE))
    reference.requires_grad_(False)
    reference.to(memory_format=torch.channels_last)
    return reference.eval(), [variance[str(n)] for n in range(len(reference.stages))]


def data_of(config: RunConfig, artifact: Artifact) -> ImageData:
    """The images of a run, as its reference saw them.

    Raises:
        DonnaError: their classes are no longer those of the reference, or in another order.
    """
    data = load_data(config.data, artifact.result["preprocessing"])
    names, known = list(data.class_names), artifact.result.get("class_names")
    if known is None:  # of an earlier version, which took folders in timm's order
        known = sorted(names, key=natural_key) if names == sorted(names) else names
    if known != names:
        first = next((a, b) for a, b in zip_longest(known, names) if a != b)
        raise DonnaError(
            f"The data must have the classes of the reference in their order, but {first[1]!r} of "
            f"{config.data.source} stands where {first[0]!r} stood. Put the folders back, or make "
            "the run again from the start (`donna run --fresh`)."
        )
    return data


def _file(config: RunConfig, artifact: Artifact, name: str) -> bytes:
    """A file of the reference, on a node that may not see the run folder."""
    place = config.cluster.location_of(artifact.root)
    folder = f"{artifact.step}/{artifact.path.name}"
    sha = artifact.files[f"{folder}/{name}"]
    file = f"{folder}/{name}" if isinstance(place, Path) else f"{OBJECTS}/{sha}"
    data = Storage(place).read(file)
    if data is None or hashlib.sha256(data).hexdigest() != sha:
        raise DonnaError(
            f"The reference's {name} must be intact in {place}/{folder}, but is missing, torn or "
            "altered. Give the same command again: it makes what is missing."
        )
    return data


def space_of(config: RunConfig, artifact: Artifact) -> SearchSpace:
    """The search space on the stages of a finished reference."""
    register_modules(config.space.modules)
    _, reference, _ = outline(config, artifact.result["classes"], load_weights=False)
    return build_space(config.space, reference.shapes, reference.own_blocks())


@torch.no_grad()
def calibrate(reference: StagedNetwork, images: Split) -> list[Tensor]:
    """Variance of each channel of each stage's output over the images, in one pass.

    Returns:
        (channels,) a stage, float32; accumulated in float64.
    """
    reference.eval()
    sums: list[Tensor] = []
    for batch, _ in images.batches(256):
        outputs = reference.features(network_input(batch, device_of(reference)))[1:]
        moments = [_moments(output.double()) for output in outputs]
        sums = [a + b for a, b in zip(sums, moments, strict=True)] if sums else moments
    return [(squares / count - (total / count) ** 2).float() for count, total, squares in sums]


def _moments(output: Tensor) -> Tensor:
    total, squares = channel_sums(output), channel_sums(output.square())
    count = torch.full_like(total, output.numel() / len(total))
    return torch.stack([count, total, squares])


def _compute(run: Run, folder: StepFolder) -> tuple[dict[str, Any], Files]:
    config = run.config
    with seeded(config.seed):
        reference, preprocessing = build_reference(config)
    data = load_data(config.data, preprocessing)
    run.say(f"  {words_of_test(config.data, data)}")
    recipe = config.reference.training or _DEFAULT_TRAINING.get(config.reference.weights)
    trained = recipe.epochs * len(data.train) if recipe else 0
    passes = trained + len(data.distillation_plain) + len(data.validation)
    with _threads(reference, recipe), _watched(run, reference, passes) as progress:
        if recipe is not None:
            _train(on_labels(reference, data, recipe, config.seed), folder, progress)
        variances = calibrate(reference, data.distillation_plain)
        reached = accuracy(reference, data.validation)
    run.say(f"  accuracy {reached:.2%} of {len(data.validation)} validation images")
    check_reference(reached, len(data.validation), data.classes, trained=recipe is not None)
    variance = {str(number): values for number, values in enumerate(variances)}
    weights_file, variance_file = folder.path / _WEIGHTS, folder.path / _VARIANCE
    write_atomic(weights_file, safetensors.torch.save(own_weights(reference)))
    write_atomic(variance_file, safetensors.torch.save(variance))
    result = {
        "model": config.reference.model,
        "classes": data.classes,
        "class_names": list(data.class_names),
        "preprocessing": preprocessing,
        "accuracy": reached,
        "measured_on": origin_of_validation(config.data),
        "doubts": _doubts(config, data, reached),
        "broken_images": _broken_images(run, data),
        **complexity(reference, reference.input_shape),
        "stages": _stage_facts(reference),
        "weights_sha256": file_sha256(weights_file),
        "images": {name: len(getattr(data, name)) for name in _COUNTED},
        "cost": {"image_passes": passes},
    }
    shutil.rmtree(folder.path / _UNFINISHED, ignore_errors=True)
    return result, [weights_file, variance_file]


def _train(trainer: Trainer, folder: StepFolder, progress: Progress) -> None:
    """All epochs that are left, each followed by a checkpoint."""
    checkpoints = Checkpoints(RecordStore(folder.path / _UNFINISHED))
    name = checkpoints.newest(folder.step)
    if name is not None:
        checkpoints.resume(name, trainer)
        progress.advance(trainer.image_passes)
    while not trainer.finished():
        trainer.train_epoch()
        checkpoints.save(folder.step, trainer)


@contextmanager
def _watched(run: Run, reference: StagedNetwork, passes: int) -> Iterator[Progress]:
    """Shows how many images have gone through the reference, batch by batch."""
    with run.progress("reference", passes, "images") as progress:
        hook = reference.stem.register_forward_pre_hook(
            lambda _stem, given: progress.advance(len(given[0]))
        )
        try:
            yield progress
        finally:
            hook.remove()


def _threads(
    reference: StagedNetwork, recipe: TrainingConfig | None
) -> AbstractContextManager[int]:
    size = recipe.batch_size if recipe else _TRIED_BATCH
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, *reference.input_shape, generator=generator)
    return few_threads(reference, images)


def _doubts(config: RunConfig, data: ImageData, reached: float) -> list[str]:
    weights = config.reference.weights
    doubts = reference_doubts(reached, len(data.validation), data.classes, weights)
    if data.unvalidated:
        doubts.append(
            f"No validation image is of {len(data.unvalidated)} of the {data.classes} classes, "
            f"such as {data.unvalidated[0]!r}, so no accuracy tells of them. Add some."
        )
    return doubts


def _broken_images(run: Run, data: ImageData) -> list[str]:
    """Names of the images that could not be read, after every split was read."""
    splits = {split.name: split for split in (data.distillation_plain, data.validation)}
    splits["data.train_split"] = data.train
    broken = {
        f"{name}: {image}": reason
        for name, split in splits.items()
        for image, reason in split.broken.items()
    }
    if broken:
        run.say(f"  {len(broken)} images cannot be read and are left out:")
        for name, reason in sorted(broken.items()):
            run.say(f"    {name}: {reason}")
    return sorted(broken)


def _stage_facts(reference: StagedNetwork) -> list[dict[str, Any]]:
    return [
        {
            "modules": list(names),
            "input": shape.input,
            "output": shape.output,
            **complexity(stage, shape.input),
        }
        for names, stage, shape in zip(
            reference.names, reference.stages, reference.shapes, strict=True
        )
    ]
