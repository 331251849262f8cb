"""The reference (teacher): a timm model cut into stem, stages and head.

Stem and head of every candidate are the reference's, and a stage's blocks learn to stand in for the
reference's own stage (DONNA, section 3.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from donna_ray.complexity import complexity
from donna_ray.config import ReferenceTraining, RunConfig
from donna_ray.data import (
    ImageData,
    Split,
    inputs_without_test,
    load_data,
    origin_of_validation,
    words_of_test,
)
from donna_ray.reference.build import build_reference
from donna_ray.reference.load import VARIANCE, WEIGHTS, change_of_images
from donna_ray.reference.network import StagedNetwork, own_weights
from donna_ray.reference.preparation import preparation_beside
from donna_ray.reference.told_arguments import told_arguments
from donna_ray.reference.work import (
    Draft,
    Kind,
    MeasureReference,
    TrainReference,
    variances_of,
)
from donna_ray.run.doubts import (
    check_label_order,
    check_reference,
    depth_doubts,
    reference_doubts,
)
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import (
    Artifact,
    Files,
    StepFolder,
    digest,
    file_sha256,
    write_atomic,
)
from donna_ray.storage.files import folder_in
from donna_ray.storage.records import Record, RecordStore
from donna_ray.training.loop import seeded
from donna_ray.workers.spread import Unit, spread

__all__ = ["reference_inputs", "reference_step"]

_DEFAULT_TRAINING = {"train": ReferenceTraining(epochs=20)}  # by `reference.weights`
_UNFINISHED = "reference/unfinished"
_COUNTED = ("train", "distillation", "validation")


def reference_step(run: Run) -> Artifact:
    """Step 1: build; train where asked to and calibrate, on the workers of the run.

    The artifact holds the weights and the per-channel variance of every stage's output over the
    training data; its result the accuracy, the stages' shapes, params and MACs.
    """
    weights = run.config.reference.weights
    checkpoint = None if weights in ("train", "pretrained") else file_sha256(Path(weights))
    beside = preparation_beside(run.config.reference)
    arguments = told_arguments(run.config.reference)
    inputs = reference_inputs(run.config, checkpoint, beside, arguments)
    artifact = run.step("reference", inputs, lambda folder: _compute(run, folder, arguments))
    asked = artifact.reused and run.only == "reference"  # later steps check what they read
    if asked and (changed := change_of_images(run.config, artifact)):
        run.warn(changed)
    return artifact


def reference_inputs(
    config: RunConfig,
    checkpoint: str | None,
    preparation: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """What a reference is made from.

    Args:
        config: of the run.
        checkpoint: SHA-256 of the file of its weights.
        preparation: of ``preparation_beside``.
        arguments: of ``told_arguments``.
    """
    return {
        **({"preparation": dict(preparation)} if preparation else {}),
        **({"arguments": dict(arguments)} if arguments else {}),
        "data": inputs_without_test(config.data),
        "reference": config.reference.model_dump(),
        "checkpoint": checkpoint,
        "seed": config.seed,
    }


@dataclass(frozen=True)
class _Made:
    """What the workers made.

    Attributes:
        weights: of the reference.
        variances: (channels,) of each stage.
        labels: of the validation images, (images,).
        answers: of the reference, (images,).
        cost: for the result.
    """

    weights: Mapping[str, Tensor]
    variances: list[Tensor]
    labels: Tensor
    answers: Tensor
    cost: dict[str, Any]


def _compute(
    run: Run, folder: StepFolder, arguments: dict[str, Any]
) -> tuple[dict[str, Any], Files]:
    config = run.config
    with seeded(config.seed):
        reference, preprocessing = build_reference(config)
    data = load_data(config.data, preprocessing)
    run.say(f"  {words_of_test(config.data, data)}")
    doubts = _data_doubts(data)
    for each in doubts:
        run.say(f"  {each}")  # as a doubt only when the step is done, which may take long
    recipe = config.reference.training or _DEFAULT_TRAINING.get(config.reference.weights)
    store = RecordStore(folder_in(run.shared.location, _UNFINISHED))
    made_of = digest([data.fingerprints, data.classes, list(data.class_names)])
    key = f"{folder.path.name}-{made_of}"
    draft = Draft(config, key, data.classes, preprocessing, arguments, store)
    if draft.forget_others(folder.path.name):
        run.say("  it was begun with other images, so it begins anew")
    made = _made(run, draft, reference, data, recipe)
    reference.load_state_dict(dict(made.weights))
    reached = _checked_accuracy(run, data, made, given=recipe is None)
    variance = {str(number): values for number, values in enumerate(made.variances)}
    weights_file, variance_file = folder.path / WEIGHTS, folder.path / VARIANCE
    write_atomic(weights_file, safetensors.torch.save(own_weights(reference)))
    write_atomic(variance_file, safetensors.torch.save(variance))
    result = {
        "model": config.reference.model,
        "classes": data.classes,
        "class_names": list(data.class_names),
        "preprocessing": preprocessing,
        "arguments": arguments,
        "accuracy": reached,
        "measured_on": origin_of_validation(config.data),
        "doubts": [
            *reference_doubts(
                reached,
                len(data.validation),
                data.classes,
                config.reference.weights,
                trained=config.reference.trains(),
            ),
            *doubts,
        ],
        "broken_images": _broken_images(run, data),
        **complexity(reference, reference.input_shape),
        "stages": _stage_facts(reference),
        "weights_sha256": file_sha256(weights_file),
        "images": {name: len(getattr(data, name)) for name in _COUNTED},
        "fingerprints": data.fingerprints,
        "cost": made.cost,
    }
    draft.remove()
    return result, [weights_file, variance_file]


def _made(
    run: Run,
    draft: Draft,
    reference: StagedNetwork,
    data: ImageData,
    recipe: ReferenceTraining | None,
) -> _Made:
    """Have the workers train and measure; what they did before the run was stopped is there."""
    store, weights, facts = draft.store, "initial", dict[str, Any]()
    if recipe is not None:
        weights = "trained"
        if store.get(draft.name(weights)) is None:
            draft.keep(reference, "initial")
            _train(run, draft, data, recipe)
        facts = store.record(draft.name(weights))
        data.train.broken.update(facts["broken"])
    else:
        draft.keep(reference, weights)
    kinds: tuple[Kind, Kind] = ("variance", "accuracy")
    parts = {kind: draft.images(data, kind) for kind in kinds}
    found = _measure(run, draft, weights, parts)
    for kind, split in zip(kinds, (data.distillation_plain, data.validation), strict=True):
        for record, _ in found[kind]:
            split.broken.update(record["broken"])
        split.check_broken()
    moments = [tensors for _, tensors in found["variance"]]
    stages = range(len(reference.stages))
    answers = [tensors for _, tensors in found["accuracy"]]
    measured = [record for each in found.values() for record, _ in each]
    images = sum(len(split) for each in parts.values() for split in each)
    return _Made(
        store.weights(draft.name(weights)),
        variances_of([torch.stack([each[str(n)] for each in moments]).sum(0) for n in stages]),
        torch.cat([each["labels"] for each in answers]),
        torch.cat([each["answers"] for each in answers]),
        {
            "image_passes": facts.get("image_passes", 0) + images,
            "training_seconds": facts.get("seconds", 0.0),
            "measuring_seconds": [record["seconds"] for record in measured],
        },
    )


def _train(run: Run, draft: Draft, data: ImageData, recipe: ReferenceTraining) -> None:
    images, together = recipe.epochs * len(data.train), recipe.workers_per_network
    unit = Unit(None, weight=images, images=images // together)
    work = TrainReference(draft, recipe)
    spread(run, "reference", "images", [unit], work, workers_per_unit=together)


def _measure(
    run: Run, draft: Draft, weights: str, parts: Mapping[Kind, Sequence[Split]]
) -> dict[Kind, list[tuple[Record, dict[str, Tensor]]]]:
    """The record and the tensors of each part, by kind; they are forgotten then."""
    sizes = {
        (kind, number): len(split)
        for kind, each in parts.items()
        for number, split in enumerate(each)
    }
    names = {part: draft.name("{}-{}".format(*part)) for part in sizes}
    missing = [part for part in sizes if draft.store.get(names[part]) is None]
    units = [Unit(part, weight=sizes[part], images=sizes[part]) for part in missing]
    spread(run, "reference", "images", units, MeasureReference(draft, weights))
    found = {
        part: (draft.store.record(name), draft.store.weights(name)) for part, name in names.items()
    }
    draft.store.remove(names.values())
    return {kind: [found[part] for part in sizes if part[0] == kind] for kind in parts}


def _checked_accuracy(run: Run, data: ImageData, made: _Made, *, given: bool) -> float:
    """Say it, and refuse given weights that know nothing, or the classes in another order."""
    right, images = int((made.labels == made.answers).sum()), len(made.labels)
    reached = right / images
    run.say(f"  accuracy {reached:.2%} of {images} validation images")
    if given:
        check_label_order(made.labels.numpy(), made.answers.numpy(), data.class_names)
        check_reference(reached, images, data.classes)
    return reached


def _data_doubts(data: ImageData) -> list[str]:
    splits = {split.name: split for split in (data.train, data.distillation_plain)}
    doubts = [each for name in splits for each in depth_doubts(name, splits[name].brightest())]
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
