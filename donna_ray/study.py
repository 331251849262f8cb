"""The method in a notebook: any model, own data, own loss and score; no Ray, and no files.

A run (`donna run`) is the same steps for classifiers on a cluster, resumable. Here a step is a call
in this process, on the device that the model is on, and what it makes is in memory.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from device_farm.ending import one_line
from donna_ray.complexity import complexity
from donna_ray.config import (
    BlocksConfig,
    FinetuneRecipe,
    LibraryConfig,
    ReferenceConfig,
    SearchConfig,
    SpaceConfig,
)
from donna_ray.data.loaders import data_of_loaders, shared_images
from donna_ray.distill.pack import DistilledBlock, distill_pack
from donna_ray.distill.students import BlockJob
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.finetune.assemble import untrained
from donna_ray.finetune.work import distillation_loss
from donna_ray.onnx_export import check_onnx_error, export_onnx, onnx_error
from donna_ray.predictor.design import design
from donna_ray.predictor.fitting import fit
from donna_ray.predictor.model import AccuracyPredictor, Floats
from donna_ray.predictor.quality import Estimate, comparable, kendall_tau
from donna_ray.reference.build import check_cut, cut_reference
from donna_ray.reference.network import StagedNetwork, own_weights
from donna_ray.reference.own_network import own_network
from donna_ray.reference.work import calibrate
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.exact.front import nondominated
from donna_ray.search.scenario import check_measured
from donna_ray.search.study.ledger import measured
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.space import (
    UNSHRUNK,
    Architecture,
    SearchSpace,
    Stage,
    build_block,
    build_space,
    encode,
)
from donna_ray.storage.artifacts import write_atomic, write_json
from donna_ray.training.batchnorm import recalibrate
from donna_ray.training.engine import Engine
from donna_ray.training.loop import Loss, accuracy, seeded
from donna_ray.training.targets import check_labels
from donna_ray.training.trainer import Trainer

__all__ = ["Candidate", "Study"]

_PACK = 16  # blocks in a pass over the images
_COSTS = ("params", "macs")
_CHECKED_IMAGES = 4
_FEWEST_IMAGES = 2  # of a batch that is trained on, where a loader gives more than one


@dataclass(frozen=True)
class Candidate:
    """A network of the front.

    Attributes:
        architecture: the number of the block in each stage.
        blocks: of each stage, in words.
        predicted: its score, by the predictor: after as short a finetuning as the samples had.
        latency_ms: measured.
    """

    architecture: Architecture
    blocks: tuple[str, ...]
    predicted: float
    latency_ms: float


class Study:
    """One search, step by step: `space`, `distil`, `fit`, `search`, `finetune`, `export`.

    Args:
        model: a trained network of one input and one output tensor, in the place of which others
            are looked for. What is distilled are the features between its stages, so its output may
            be logits, a mask or features. The study has a copy: the model stays as it is.
        train: a DataLoader of (images, targets), images (N, C, H, W) in float32.
        validation: the same, of other images, for NSR and scores.
        stages: the model's modules that are each a stage, by name (`layer1`), or lists of
            consecutive ones; one tensor must go from each to the next. None finds them.
        loss: `loss(output, targets)`, a scalar; by default cross entropy with the labels and KL
            divergence from the model.
        score: `score(network, validation)`, 0 to 1 and the higher the better; by default accuracy.
        seed: of initial weights and the order of images.

    Attributes:
        reference: a copy of the model, cut into stem, stages and head.
        blocks: what may stand in each stage; None before `space`. Those that failed in `distil`
            are left out.
        nsr: of every block, (choices,) a stage.
        predictor: of the score from NSR; None before `fit`.

    Raises:
        ConfigError: the model cannot be cut there or is not float32, a loader does not tell its
            length or has other batches, or the targets are no labels where no loss is given.
        DonnaError: the cut computes something else than the model.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        validation: Any,
        *,
        stages: Sequence[str | list[str]] | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        score: Callable[[nn.Module, Any], float] | None = None,
        seed: int = 0,
    ) -> None:
        self._data, own, held_out = data_of_loaders(train, validation)
        shared, count = shared_images(train, validation)
        if shared:
            part = f"{shared} of {count} images of validation are in train too"
            same = "train and validation are the same images"
            warnings.warn(f"{same if shared == count else part}: scores flatter.", stacklevel=2)
        images = own.opening
        self._loader, self._seed = validation, seed
        model = own_network(model)
        named = None if stages is None else list(stages)
        config = ReferenceConfig(model=type(model).__name__, stages=named)
        self.reference = cut_reference(model, config, images.shape[1:])
        some = Engine.of(self.reference).images(images[:_CHECKED_IMAGES])
        check_cut(model, self.reference, config.model, some)
        self.reference.requires_grad_(False).eval()
        _check_batch(self.reference, some[:_FEWEST_IMAGES])
        check_labels(
            self.reference, own if loss is None else None, held_out if score is None else None
        )
        self._variance = calibrate(self.reference, self._data.distillation_plain)
        self._loss = _loss_of(loss, self.reference)
        self._score = score
        self.blocks: SearchSpace | None = None
        self.nsr: list[Floats] = []
        self.predictor: AccuracyPredictor | None = None
        self._distilled: list[list[DistilledBlock]] = []

    def space(self, blocks: SpaceConfig | Sequence[BlocksConfig] | None = None) -> SearchSpace:
        """Say what may stand in each stage.

        Args:
            blocks: families with the values of their options, or a whole section `space` of a
                configuration; None: the model's own stages, shrunk.

        Raises:
            ConfigError: an unknown family or option.
        """
        if blocks is None:
            blocks = SpaceConfig(preset="compress")
        config = blocks if isinstance(blocks, SpaceConfig) else SpaceConfig(blocks=list(blocks))
        reference = self.reference
        self.blocks = build_space(config, reference.shapes, reference.own_blocks())
        self.nsr, self._distilled, self.predictor = [], [], None
        return self.blocks

    def distil(self, **recipe: Any) -> list[Floats]:
        """Train every block to stand in for its stage.

        Args:
            recipe: `epochs`, `learning_rate`, `weight_decay`, `precision` (`fp32` or `bf16`).

        Returns:
            NSR of every block, (choices,) a stage: noise over signal, 0 is the stage itself. One
            whose training failed is left out, of `blocks` too, and a warning says so.

        Raises:
            DonnaError: all blocks of a stage failed.
        """
        config = LibraryConfig(**{"precision": "fp32", **recipe})
        stages = enumerate(self._known_space().stages)
        jobs = [
            BlockJob(f"{number}-{spec.id}", number, spec)
            for number, stage in stages
            for spec in stage.choices
        ]
        done = {job.key: self._unshrunk(job) for job in jobs if job.spec == UNSHRUNK}
        todo = [job for job in jobs if job.key not in done]
        for start in range(0, len(todo), _PACK):
            some = todo[start : start + _PACK]
            pack = distill_pack(
                self.reference, self._variance, some, self._data, config, self._seed
            )
            done |= {block.job.key: block for block in pack.blocks}
        self._distilled = [
            [done[job.key] for job in jobs if job.stage == number]
            for number in range(len(self.reference.stages))
        ]
        self._keep_sound()
        return self.nsr

    def network(self, architecture: Architecture) -> StagedNetwork:
        """The network of these distilled blocks, trainable, in eval mode."""
        chosen = [stage[choice] for stage, choice in zip(self._blocks(), architecture, strict=True)]
        network = untrained(self.reference, [each.job.spec for each in chosen])
        for block, each in zip(network.stages, chosen, strict=True):
            block.load_state_dict(each.block.state_dict())
        return Engine.of(self.reference).place(network.requires_grad_(True)).eval()

    def fit(self, samples: int = 12, **recipe: Any) -> Estimate:
        """Finetune well-chosen networks for a short while, and fit their scores to NSR.

        Args:
            samples: how many; 6 or more.
            recipe: as of `finetune`.

        Returns:
            Kendall's tau of left-out predictions, its `value` and 95% interval (`low`, `high`).

        Raises:
            DonnaError: a score is not 0 to 1.
        """
        space = self._known_space()
        self._blocks()
        architectures = design(space, self.nsr, min(samples, space.size), self._seed)
        scores = [self._finetuned(each, recipe)[1] for each in architectures]
        known = np.array(scores)
        self.predictor, held_out = fit(encode(architectures, self.nsr), known)
        return kendall_tau(comparable(held_out, known), known, self._seed)

    def search(
        self,
        latency: Callable[[StagedNetwork], float],
        *,
        evaluations: int = 60,
        limit_ms: float | None = None,
    ) -> list[Candidate]:
        """The front of predicted score and measured latency, the fastest first.

        Args:
            latency: of a network, in ms; `donna_ray.device_latency()` measures on this CPU.
            evaluations: the most networks that are measured.
            limit_ms: what a network may take.

        Raises:
            DonnaError: nothing is fitted, `latency` gives no numbers, or none keeps the limit.
        """
        problem = self._problem(limit_ms)
        config = SearchConfig(evaluations=min(evaluations, problem.space.size), batch_size=1)
        with TemporaryDirectory() as folder:
            search = Search(SearchSetup(problem, config, self._seed, Path(folder) / "journal"))
            while not search.finished:
                for each in search.ask(1):
                    ms = float(latency(self.network(each)))
                    predicted = problem.accuracy.predict_all([each])[0]
                    search.tell([(each, measured(predicted, {"median_ms": ms}))])
        check_measured("of the study", search)
        values = search.ledger.measured
        kept = {a: v for a, v in values.items() if limit_ms is None or v[1] <= limit_ms}
        if not kept:
            raise DonnaError(
                f"limit_ms must be feasible, but is {limit_ms:g} and the fastest of {len(values)} "
                f"networks takes {min(v[1] for v in values.values()):.4g} ms. Raise it."
            )
        return self._front(kept)

    def finetune(
        self, network: Candidate | Architecture, **recipe: Any
    ) -> tuple[StagedNetwork, float]:
        """Train a network end to end.

        Args:
            network: of the front, or the numbers of its blocks.
            recipe: `epochs`, `learning_rate`, `weight_decay`, `schedule`, `ema_decay`, …: keys of
                the section `finetune` of a configuration.

        Returns:
            The network in eval mode, and its score on the validation images.
        """
        chosen = network.architecture if isinstance(network, Candidate) else network
        return self._finetuned(chosen, recipe)

    def export(self, network: StagedNetwork, folder: str | Path) -> Path:
        """Write `model.onnx` (checked against torch), `model.safetensors` and `card.json`.

        The network stays as it is, where it is.

        Raises:
            DonnaError: an operator has no ONNX, or ONNX Runtime gives something else than torch.
        """
        place = Path(folder)
        network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        images, _ = next(iter(self._loader))
        model = export_onnx(network, network.input_shape)
        check_onnx_error(onnx_error(model, network, images[:_CHECKED_IMAGES]))
        write_atomic(place / "model.onnx", model)
        write_atomic(place / "model.safetensors", safetensors.torch.save(own_weights(network)))
        costs = complexity(network, network.input_shape)
        write_json(place / "card.json", {"input": list(network.input_shape), **costs})
        return place

    def _keep_sound(self) -> None:
        """A block that failed is in the space no more, and a warning says so."""
        for each in (each for stage in self._distilled for each in stage):
            if each.failure is not None:
                text = f"{each.job.spec} in stage {each.job.stage} failed and is left out"
                warnings.warn(f"{text}: {each.failure}", stacklevel=3)
        sound = [[each for each in stage if each.nsr is not None] for stage in self._distilled]
        if empty := [number for number, each in enumerate(sound) if not each]:
            raise DonnaError(
                f"At least one block of every stage must be distilled, but all of stage {empty[0]} "
                "failed. Lower learning_rate, or give other blocks."
            )
        self._distilled = sound
        choices = [tuple(each.job.spec for each in stage) for stage in sound]
        self.blocks = SearchSpace(tuple(map(Stage, self.reference.shapes, choices)))
        self.nsr = [np.array([each.nsr for each in stage], dtype=float) for stage in sound]

    def _unshrunk(self, job: BlockJob) -> DistilledBlock:
        block = build_block(job.spec, self.reference.shapes[job.stage]).eval()
        return DistilledBlock(job, block, 0.0, None)

    def _finetuned(
        self, architecture: Architecture, recipe: dict[str, Any]
    ) -> tuple[StagedNetwork, float]:
        network = self.network(architecture)
        recalibrate(network, self._data.calibration)
        settings = FinetuneRecipe(**{"precision": "fp32", **recipe})
        if settings.patience is not None and self._score is not None:
            raise ConfigError(
                "patience goes by the accuracy of a classifier, but this study has a score of its "
                "own. Leave it out, and give epochs."
            )
        trainer = Trainer(network, self._data, settings, self._seed, self._loss)
        while not trainer.finished():
            trainer.train_epoch()
        network.load_state_dict(trainer.result().state_dict())
        return network.eval(), self._score_of(network)

    def _score_of(self, network: StagedNetwork) -> float:
        if self._score is None:
            return accuracy(network, self._data.validation)
        found = float(self._score(network.requires_grad_(False), self._loader))
        if not 0 <= found <= 1:
            raise DonnaError(
                f"A score must be 0 to 1, and the higher the better, but is {found:g}. Scale it "
                "(mean IoU, mAP and accuracy are)."
            )
        return found

    def _problem(self, limit_ms: float | None) -> SearchProblem:
        if self.predictor is None:
            raise DonnaError("A search needs a fitted predictor. Call `fit` first.")
        shapes = self.reference.shapes
        costs = [
            [complexity(each.block, shape.input) for each in stage]
            for stage, shape in zip(self._distilled, shapes, strict=True)
        ]
        known = {
            name: KnownCost(tuple(np.array([float(one[name]) for one in row]) for row in costs))
            for name in _COSTS
        }
        accuracy_model = AccuracyModel.of(self.predictor, self.nsr)
        return SearchProblem(self._known_space(), accuracy_model, known, latency_limit_ms=limit_ms)

    def _front(self, values: dict[Architecture, tuple[float, ...]]) -> list[Candidate]:
        architectures, points = list(values), np.array(list(values.values()))
        space = self._known_space()
        return [
            Candidate(
                architectures[row],
                tuple(map(str, space.specs(architectures[row]))),
                min(max(float(points[row, 0]), 0.0), 1.0),
                float(points[row, 1]),
            )
            for row in nondominated(points[:, 0], points[:, 1:])
        ]

    def _known_space(self) -> SearchSpace:
        if self.blocks is None:
            raise DonnaError("What may stand in each stage is not known yet. Call `space` first.")
        return self.blocks

    def _blocks(self) -> list[list[DistilledBlock]]:
        if not self._distilled:
            raise DonnaError("There are no distilled blocks yet. Call `distil` first.")
        return self._distilled


@torch.no_grad()
def _check_batch(reference: StagedNetwork, images: Tensor) -> None:
    """Refuse batches of one image where BatchNorm has one value of each channel then."""
    try:
        with seeded(0):
            copy.deepcopy(reference).train()(images)
    except ValueError as error:
        raise ConfigError(
            f"A network must train on batches as train gives them, but on {len(images)} images it "
            f"raises {one_line(str(error))}. Give the DataLoader a larger batch_size."
        ) from error


def _loss_of(own: Callable[[Any, Any], Tensor] | None, reference: StagedNetwork) -> Loss:
    if own is None:
        return distillation_loss(reference)
    return lambda _images, output, targets: own(output, targets)
