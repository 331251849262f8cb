"""What ``donna predictor suggest`` tells, as plain facts."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from donna_ray.config import RunConfig, load_config
from donna_ray.errors import MissingArtifactError
from donna_ray.finetune.assemble import choice_table, library_space
from donna_ray.library.quantised import libraries
from donna_ray.predictor.design import suggest
from donna_ray.predictor.step import predictor_step
from donna_ray.reference.step import reference_inputs, reference_step
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact, StepFolder, finished_inputs

__all__ = ["suggestions"]


def suggestions(folder: Path, count: int) -> dict[str, Any]:
    """The architectures whose finetuning would tell the predictor of a run most.

    With `predictor.sampling: informed` and no `tau_interval`, a run whose `predictor.samples` is
    raised by `count` finetunes just these, unless its predictor was kept from a smaller space.

    Args:
        folder: of a run whose predictor is finished; it is held for the time.
        count: how many.

    Returns:
        `samples` (finetuned so far) and `architectures`: `id`, `architecture` (the number of its
        block in each stage), `blocks` in words, and `variance_fall` and `interval_fall` of
        ``Suggestion``, for it and those before it.

    Raises:
        ConfigError: the folder has no configuration.
        DonnaError: the space does not have as many.
        MissingArtifactError: the predictor, or a step before it, is not finished.
        RunLockedError: a process works on the run.
    """
    config, weights = _configuration(folder / "config.yaml")
    with Run(config, folder, only="suggest") as run:
        reference = _reference(run, weights)
        library = libraries(run, reference)["fp32"]
        samples = predictor_step(run, reference, library).result["samples"]
    space = library_space(library)
    finetuned = np.array([sample["nsr"] for sample in samples])
    chosen = suggest(space, choice_table(library, "nsr"), finetuned, count, config.seed)
    return {
        "samples": len(samples),
        "architectures": [
            {
                "id": space.id_of(each.architecture),
                "architecture": list(each.architecture),
                "blocks": [str(spec) for spec in space.specs(each.architecture)],
                "variance_fall": each.variance_fall,
                "interval_fall": each.interval_fall,
            }
            for each in chosen
        ],
    }


def _configuration(path: Path) -> tuple[RunConfig, str]:
    """A run's configuration as if its reference were trained, and where its weights came from."""
    config = load_config(path, ["reference.weights=train"])  # a checkpoint may be gone
    return config, yaml.safe_load(path.read_text(encoding="utf-8"))["reference"]["weights"]


def _reference(run: Run, weights: str) -> Artifact:
    """The finished reference; one of a checkpoint that is gone by the other inputs."""
    config = run.config
    model = config.reference.model_copy(update={"weights": weights})
    given = config.model_copy(update={"reference": model})
    if weights in ("train", "pretrained") or Path(weights).is_file():
        run.config = given
        return reference_step(run)
    found = [
        StepFolder(run.root, "reference", inputs).load()
        for inputs in finished_inputs(run.root, "reference")
        if reference_inputs(
            given,
            inputs["checkpoint"],
            inputs.get("preparation", {}),
            inputs.get("arguments", {}),
        )
        == inputs
    ]
    whole = [artifact for artifact in found if artifact is not None]
    if len(whole) != 1:
        raise MissingArtifactError(
            f"A run whose checkpoint {weights} is gone must have one finished reference of it, but "
            f"{run.root} has {len(whole)}. Put the checkpoint back."
        )
    return whole[0]
