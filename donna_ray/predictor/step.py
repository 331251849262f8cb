"""Step 3: which architectures are finetuned, the fit to them, and how good it is."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from donna_ray.config import PredictorConfig
from donna_ray.finetune.assemble import block_keys, choice_table, library_space
from donna_ray.finetune.step import finetune, jobs_of, network_files, trained
from donna_ray.finetune.work import FinetuneJob
from donna_ray.predictor.design import design
from donna_ray.predictor.fitting import fit
from donna_ray.predictor.model import VERSION, Floats
from donna_ray.predictor.quality import baseline_quality, comparable, held_out_quality, kendall_tau
from donna_ray.run.doubts import predictor_doubts
from donna_ray.run.run import Run
from donna_ray.space import Architecture, encode
from donna_ray.storage.artifacts import Artifact, Files, StepFolder, finished_inputs, write_json

__all__ = ["doubts_of", "fitted", "predictor_step"]

_FIRST_ROUND = 16  # samples; the interval of tau over fewer tells little
_ROUND = 8
_PREDICTED = ("predicted", "predicted_low", "predicted_high")
_FACTS = ("accuracy", "zero_shot_accuracy", "params", "macs")


def predictor_step(
    run: Run,
    reference: Artifact,
    library: Artifact,
    meanwhile: AbstractContextManager[None] | None = None,
) -> Artifact:
    """Step 3: finetune chosen architectures for a short while and fit accuracy to NSR.

    What `meanwhile` does, it does while the networks are trained.

    With `predictor.tau_interval` they are finetuned in rounds, until the 95% interval of Kendall
    tau is above 0 and narrower than that or `predictor.samples` are finetuned.

    The result holds the predictor, its samples, and how good leave-one-out predictions of them are
    (with bootstrap intervals), beside simpler figures of the same samples.
    """
    config = run.config
    space = library_space(library)
    architectures = _chosen(run, library)
    jobs = jobs_of(run, reference, block_keys(library), space, architectures, config.predictor)
    nsr = encode(architectures, choice_table(library, "nsr"))
    inputs = {
        "settings": {**config.predictor.model_dump(), "seed": config.seed, "version": VERSION},
        "samples": [
            {"key": job.key, "blocks": dict(zip(job.blocks, row.tolist(), strict=True))}
            for job, row in zip(jobs, nsr, strict=True)
        ],
    }
    kept = _kept(run, library, inputs)
    if kept is not None:
        run.say("  the library has every block to which the predictor was fitted: it is kept")
        return kept

    def compute(folder: StepFolder) -> tuple[dict[str, Any], Files]:
        with meanwhile or nullcontext():
            indices, records = _finetuned(run, reference, jobs, nsr)
        done = [jobs[index] for index in indices]
        result = fitted(done, nsr[indices], records, library, config.seed)
        result["doubts"] = doubts_of(run, result, reference)
        file = folder.path / "predictor.json"
        write_json(file, result["predictor"])
        return result, [file, *network_files(run, done)]

    return run.step("predictor", inputs, compute)


def _chosen(run: Run, library: Artifact) -> list[Architecture]:
    config, space = run.config, library_space(library)
    if config.predictor.sampling == "random":
        return space.sample(config.predictor.samples, config.seed)
    return design(space, choice_table(library, "nsr"), config.predictor.samples, config.seed)


def _finetuned(
    run: Run, reference: Artifact, jobs: Sequence[FinetuneJob], nsr: Floats
) -> tuple[list[int], list[dict[str, Any]]]:
    """Indices and records of the first jobs: as many as it takes for `predictor.tau_interval`.

    Without those whose training diverged.
    """
    config = run.config.predictor
    sizes = [*range(min(_first_round(config), len(jobs)), len(jobs), _ROUND), len(jobs)]
    indices, records = list[int](), list[dict[str, Any]]()
    for size in sizes:
        found = finetune(run, "predictor", reference, jobs[:size], config)
        indices = trained(run, "predictor", jobs[:size], found)
        records = [found[index] for index in indices]
        if config.tau_interval is not None and _is_narrow(run, nsr[indices], records):
            break
    return indices, records


def _first_round(config: PredictorConfig) -> int:
    """How many samples are finetuned whatever comes of them: all, or those of the first round."""
    return config.samples if config.tau_interval is None else min(_FIRST_ROUND, config.samples)


def _is_narrow(run: Run, nsr: Floats, records: Sequence[Mapping[str, Any]]) -> bool:
    measured = np.array([record["accuracy"] for record in records])
    held_out = comparable(fit(nsr, measured)[1], measured)
    tau = kendall_tau(held_out, measured, run.config.seed)
    width = tau["high"] - tau["low"]
    limit = run.config.predictor.tau_interval
    run.say(
        f"  {len(records)} samples: Kendall tau {tau['value']:.2f}, its 95% interval {width:.2f} "
        f"wide (predictor.tau_interval: {limit})"
    )
    return limit is not None and tau["low"] > 0 and width < limit


def _kept(run: Run, library: Artifact, inputs: dict[str, Any]) -> Artifact | None:
    """A predictor of the same settings, all of whose blocks are still in the library.

    It also ranks blocks that came after it (DONNA, section 3.2), so an extended space needs no new
    one. None where there is none, or one of exactly these inputs.
    """
    finished = finished_inputs(run.root, "predictor")
    if inputs in finished:
        return None
    ratios = {block["key"]: block["nsr"] for stage in library.result["stages"] for block in stage}
    for earlier in finished:
        if earlier["settings"] != inputs["settings"]:
            continue
        artifact = StepFolder(run.root, "predictor", earlier).load()
        if artifact is None:
            continue
        keys = {sample["key"] for sample in artifact.result["samples"]}
        fitted = [sample["blocks"] for sample in earlier["samples"] if sample["key"] in keys]
        if all(ratios.get(key) == nsr for blocks in fitted for key, nsr in blocks.items()):
            return artifact
    return None


def fitted(
    jobs: Sequence[FinetuneJob],
    nsr: Floats,
    records: Sequence[Mapping[str, Any]],
    library: Artifact,
    seed: int,
) -> dict[str, Any]:
    """What ``predictor_step`` leaves of finetuned networks, but for the doubts.

    Args:
        jobs: the networks.
        nsr: (networks, stages), of their blocks.
        records: of the networks.
        library: of the blocks.
        seed: of the bootstrap.
    """
    measured = np.array([record["accuracy"] for record in records])
    predictor, held_out = fit(nsr, measured)
    guesses = np.stack([held_out, *predictor.held_out_interval(nsr, held_out)], axis=1)
    qualities = {"predictor": held_out_quality(held_out, measured, seed)} | {
        name: baseline_quality(figure, measured, seed)
        for name, figure in _baselines(records, nsr).items()
    }
    return {
        "predictor": predictor.to_json(),
        "samples": [
            {"id": job.architecture_id, "key": job.key, "nsr": list(row)}
            | dict(zip(_PREDICTED, guess.tolist(), strict=True))
            | {name: record[name] for name in _FACTS}
            for job, row, guess, record in zip(jobs, nsr, guesses, records, strict=True)
        ],
        "library_size": sum(len(stage) for stage in library.result["stages"]),
        "quality": qualities,
        "cost": {"image_passes": sum(record["cost"]["image_passes"] for record in records)},
    }


def doubts_of(run: Run, result: dict[str, Any], reference: Artifact) -> list[str]:
    """Say how well it ranks, and return what is to be doubted."""
    taus = {name: each["kendall_tau"] for name, each in result["quality"].items()}
    own = taus.pop("predictor")
    others = ", ".join(f"{name} {each['value']:.2f}" for name, each in taus.items())
    run.say(
        f"  Kendall tau of networks left out {own['value']:.2f} [{own['low']:.2f}, "
        f"{own['high']:.2f}]; by simpler figures: {others}"
    )
    accuracies = [sample["accuracy"] for sample in result["samples"]]
    images, classes = reference.result["images"]["validation"], reference.result["classes"]
    return predictor_doubts((own["low"], own["high"]), accuracies, images, classes)


def _baselines(records: Sequence[Mapping[str, Any]], nsr: Floats) -> dict[str, Floats]:
    """Figures that should rise with accuracy, (samples,) each."""
    names = ("params", "macs", "zero_shot_accuracy")
    known = {name: np.array([record[name] for record in records], dtype=float) for name in names}
    return {"nsr_sum": -nsr.sum(axis=1), **known}
