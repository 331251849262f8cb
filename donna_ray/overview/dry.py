"""What a run would do, step by step, without doing it: what is finished, and what is left."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from donna_ray.config import FinetuneRecipe, RunConfig
from donna_ray.data import ImageData, load_data
from donna_ray.errors import MissingArtifactError
from donna_ray.reference.build import build_reference
from donna_ray.run.run import Run
from donna_ray.space import build_space
from donna_ray.storage.artifacts import Artifact

__all__ = ["dry_run"]

Facts = dict[str, Any]
Steps = Mapping[str, Callable[[Run, dict[str, Artifact]], Artifact]]

_NO_STEP = "dry run"  # which Run may compute: any that has to be computed is told instead


def dry_run(config: RunConfig, root: Path, steps: Steps) -> Facts:
    """The plan of a run that was checked (``pipeline.check``).

    Args:
        config: of the run.
        root: its folder, which is left as it is, and may not be there.
        steps: of the pipeline, in order.

    Returns:
        `folder` and `steps`: `step`, `state` (`finished` or `to do`), `work` in words and
        `image_passes`, the most it takes where nothing of it is finished (null: none).
    """
    finished = _finished(config, root, steps)
    work = _work(config)
    return {
        "folder": str(root),
        "steps": [
            {"step": name, "state": "finished" if name in finished else "to do", **work[name]}
            for name in steps
        ],
    }


def _finished(config: RunConfig, root: Path, steps: Steps) -> list[str]:
    """The steps up to the first that would be computed."""
    done: dict[str, Artifact] = {}
    if not (root / "config.yaml").exists():
        return []
    with Run(config, root, only=_NO_STEP) as run:
        run.console.quiet = True
        for name, step in steps.items():
            if name == "report":  # a view of the others, made anew
                break
            try:
                done[name] = step(run, done)
            except MissingArtifactError:
                break
    return list(done)


def _work(config: RunConfig) -> dict[str, Facts]:
    reference, preprocessing = build_reference(config, load_weights=False)
    data = load_data(config.data, preprocessing)
    space = build_space(config.space, reference.shapes, reference.own_blocks())
    blocks = sum(len(stage.choices) for stage in space.stages)
    training, library = config.reference.training, config.library
    epochs = training.epochs if training else 20 * (config.reference.weights == "train")
    samples, scenarios = config.predictor, config.all_scenarios()
    networks = len(config.finetune.budgets or range(config.finetune.networks)) * len(scenarios)
    networks += len(config.finetune.architectures)
    measured = sum(each.search.evaluations for each in scenarios)
    devices = sorted({each.device.name or each.device.connector for each in scenarios})
    return {
        "reference": _row(
            f"{config.reference.model}, weights {config.reference.weights}, {epochs} epochs",
            epochs * len(data.train) + len(data.distillation_plain) + len(data.validation),
        ),
        "library": _row(
            f"{blocks} blocks in {len(space.stages)} stages ({space.size:.3g} networks), "
            f"{f'{library.steps} steps' if library.steps else f'{library.epochs} epochs'} each"
        ),
        "predictor": _row(
            f"{samples.samples} networks, {samples.epochs} epochs each",
            samples.samples * _passes(samples, data),
        ),
        "search": _row(f"up to {measured} measurements on {', '.join(devices)}"),
        "finetune": _row(
            f"up to {networks} networks and the reference, {config.finetune.epochs} epochs each",
            (networks + 1) * _passes(config.finetune, data),
        ),
        "report": _row("results.json and report.html"),
    }


def _row(work: str, image_passes: int | None = None) -> Facts:
    return {"work": work, "image_passes": image_passes}


def _passes(recipe: FinetuneRecipe, data: ImageData) -> int:
    return recipe.epochs * len(data.train) + 2 * (len(data.calibration) + len(data.validation))
