"""The method in a notebook: any model, own data, own loss and score; no Ray, and no files.

A run (`donna run`) is the same steps for classifiers on a cluster, resumable. Here a step is a call
in this process, on the device that the model is on, and what it makes is in memory.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from device_farm.ending import one_line
from donna_ray.complexity import complexity
from donna_ray.config import BlocksConfig, FinetuneRecipe, ReferenceConfig, SpaceConfig, section_of
from donna_ray.data.loaders import data_of_loaders, shared_images
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.onnx_export import check_onnx_error, export_onnx, onnx_error
from donna_ray.predictor.design import design
from donna_ray.predictor.fitting import fit
from donna_ray.predictor.model import AccuracyPredictor, Floats
from donna_ray.predictor.quality import Estimate, comparable, kendall_tau
from donna_ray.reference.build import check_cut, cut_reference
from donna_ray.reference.network import StagedNetwork, check_staged, own_weights
from donna_ray.reference.own_network import own_network
from donna_ray.reference.wishes import check_recipes
from donna_ray.reference.work import calibrate
from donna_ray.space import Architecture, SearchSpace, encode
from donna_ray.space.names import architecture_of_numbers
from donna_ray.storage.artifacts import write_atomic, write_json
from donna_ray.study.arguments import distillation_recipe, finetuning_recipe, numbers
from donna_ray.study.distilled import Distilled, checked_space, distilled
from donna_ray.study.functions import OwnLoss, checked_loss, checked_score
from donna_ray.study.searching import Candidate, front_of, measured_networks, problem_of
from donna_ray.training.batchnorm import recalibrate
from donna_ray.training.engine import Engine
from donna_ray.training.loop import accuracy, seeded
from donna_ray.training.targets import check_labels
from donna_ray.training.trainer import Trainer

__all__ = ["Study"]

_CHECKED_IMAGES = 4
_FEWEST_IMAGES = 2  # of a batch that is trained on, where a loader gives more than one
_FEWEST = 2  # networks that a predictor is fitted to


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
        score: `score(network, validation)`, 0 to 1 and the higher the better, of a copy of the
            network in eval mode without gradients; by default accuracy.
        seed: of initial weights and the order of images.

    Attributes:
        reference: a copy of the model, cut into stem, stages and head.
        predictor: of the score from NSR; None before `fit`.

    Raises:
        ConfigError: the model cannot be cut there or is not float32, a loader does not tell its
            length or has other batches, the targets are no labels where no loss or no score is
            given, or the loss gives no scalar.
        DonnaError: the cut computes something else than the model.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        validation: Any,
        *,
        stages: Sequence[str | list[str]] | None = None,
        loss: OwnLoss | None = None,
        score: Callable[[nn.Module, Any], float] | None = None,
        seed: int = 0,
    ) -> None:
        self._seed = numbers(seed=seed).seed
        model = own_network(model)
        self._data, own, held_out = data_of_loaders(train, validation)
        shared, images = shared_images(train, validation)
        if shared:
            some = f"{shared} of {images} images of validation are in train too"
            same = "train and validation are the same images"
            warnings.warn(f"{same if shared == images else some}: scores flatter.", stacklevel=2)
        self._loader = validation
        self.reference = _cut(model, stages, own.opening)
        check_labels(
            self.reference, own if loss is None else None, held_out if score is None else None
        )
        self._loss = checked_loss(loss, self.reference, own)
        self._score = score
        self._variance = calibrate(self.reference, own)
        self.predictor: AccuracyPredictor | None = None
        self._space: SearchSpace | None = None
        self._distilled: Distilled | None = None

    @property
    def blocks(self) -> SearchSpace | None:
        """What may stand in each stage, without what failed in `distil`; None before `space`."""
        made = self._distilled
        return self._space if made is None else made.space(self.reference.shapes)

    @property
    def nsr(self) -> list[Floats]:
        """Of every block, (choices,) a stage; empty before `distil`."""
        return [] if self._distilled is None else self._distilled.nsr

    def space(self, blocks: SpaceConfig | Sequence[BlocksConfig] | None = None) -> SearchSpace:
        """Say what may stand in each stage, and check each of these blocks as a run does.

        Args:
            blocks: families with the values of their options, or a whole section `space` of a
                configuration; None: the model's own stages, shrunk.

        Raises:
            ConfigError: an unknown family or option, or a block that cannot stand in its stage:
                of another shape, that changes its input, that has no ONNX, ….
        """
        if blocks is None:
            blocks = SpaceConfig(preset="compress")
        if not isinstance(blocks, SpaceConfig):
            blocks = section_of(SpaceConfig, {"blocks": blocks})
        self._space = checked_space(blocks, self.reference)
        self._distilled = self.predictor = None
        return self._space

    def distil(self, **recipe: Any) -> list[Floats]:
        """Train every block to stand in for its stage.

        Args:
            recipe: `epochs`, `learning_rate`, `weight_decay`, `precision` (`fp32`, `bf16` or
                `fp16`), and `recipes`: what differs for a family.

        Returns:
            NSR of every block, (choices,) a stage: noise over signal, 0 is the stage itself. One
            whose training failed is left out, of `blocks` too, and a warning says so; the next
            `distil` tries it again.

        Raises:
            ConfigError: the recipe has another key, or a value breaks its rule.
            DonnaError: all blocks of a stage failed.
        """
        config = distillation_recipe(recipe)
        if self._space is None:
            raise DonnaError("What may stand in each stage is not known yet. Call `space` first.")
        check_recipes("recipes", config, self._space)
        self._distilled = distilled(
            self._space, self.reference, self._variance, self._data, config, self._seed
        )
        self.predictor = None
        return self._distilled.nsr

    def network(self, network: Candidate | Architecture) -> StagedNetwork:
        """The network of these distilled blocks, trainable, in eval mode.

        Args:
            network: of a front, or the numbers of its blocks.

        Raises:
            ConfigError: this study has no such blocks.
        """
        made = self._made()
        space = made.space(self.reference.shapes)
        if isinstance(network, Candidate):
            architecture = network.within(space)
        else:
            architecture = architecture_of_numbers(network, space)
        return made.network(self.reference, architecture)

    def fit(self, samples: int = 12, **recipe: Any) -> Estimate:
        """Finetune well-chosen networks for a short while, and fit their scores to NSR.

        Args:
            samples: how many; 6 or more (all, where the space has fewer).
            recipe: as of `finetune`.

        Returns:
            Kendall's tau of left-out predictions, its `value` and 95% interval (`low`, `high`).

        Raises:
            ConfigError: a number, or a key or value of the recipe, breaks its rule.
            DonnaError: a score is not 0 to 1, or there are no two networks.
        """
        count, settings = numbers(samples=samples).samples, self._recipe(recipe)
        made = self._made()
        space = made.space(self.reference.shapes)
        if space.size < _FEWEST:
            raise DonnaError(
                f"A predictor must be fitted to {_FEWEST} networks or more, but the space has "
                f"{space.size}. Give more blocks."
            )
        architectures = design(space, made.nsr, min(count, space.size), self._seed)
        known = np.array([self._finetuned(each, settings)[1] for each in architectures])
        predictor, held_out = fit(encode(architectures, made.nsr), known)
        tau = kendall_tau(comparable(held_out, known), known, self._seed)
        self.predictor = predictor
        return tau

    def search(
        self,
        latency: Callable[[StagedNetwork], float],
        *,
        evaluations: int = 60,
        limit_ms: float | None = None,
    ) -> list[Candidate]:
        """The front of predicted score and measured latency, the fastest first.

        Args:
            latency: of a network, in ms; `donna_ray.device_latency()` measures on this CPU. A
                network of which it raises or gives no number is left out, and a warning says so.
            evaluations: the most networks that are measured.
            limit_ms: what a network may take.

        Raises:
            ConfigError: `evaluations` or `limit_ms` breaks its rule.
            DonnaError: nothing is fitted, no network could be measured, or none keeps the limit.
        """
        given = numbers(evaluations=evaluations, limit_ms=limit_ms)
        if self.predictor is None:
            raise DonnaError("A search needs a fitted predictor. Call `fit` first.")
        made = self._made()
        space = made.space(self.reference.shapes)
        problem = problem_of(made, space, self.predictor, given.limit_ms)
        values = measured_networks(problem, given.evaluations, self._seed, latency, self.network)
        return front_of(values, space, given.limit_ms)

    def finetune(
        self, network: Candidate | Architecture, **recipe: Any
    ) -> tuple[StagedNetwork, float]:
        """Train a network end to end.

        Args:
            network: of the front, or the numbers of its blocks.
            recipe: `epochs`, `learning_rate`, `weight_decay`, `precision`, `schedule`,
                `ema_decay`, `patience`, as in the section `finetune` of a configuration.

        Returns:
            The network, trainable, in eval mode, and its score on the validation images.

        Raises:
            ConfigError: this study has no such blocks, or a key or value of the recipe breaks its
                rule.
        """
        return self._finetuned(network, self._recipe(recipe))

    def export(self, network: StagedNetwork, folder: str | Path) -> Path:
        """Write `model.onnx` (checked against torch), `model.safetensors` and `card.json`.

        The network stays as it is, where it is.

        Args:
            network: of this study: `reference`, or what `network` or `finetune` gave.
            folder: made where it is missing.

        Raises:
            ConfigError: the network is another module, or the folder is a file.
            DonnaError: an operator has no ONNX, or ONNX Runtime gives something else than torch.
        """
        check_staged(network)
        place = Path(folder)
        if place.exists() and not place.is_dir():
            raise ConfigError(
                f"An export must go to a folder, but {place} is a file. Give another."
            )
        network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        images, _ = next(self._data.validation.batches(0))
        model = export_onnx(network, network.input_shape)
        check_onnx_error(onnx_error(model, network, images[:_CHECKED_IMAGES].cpu()))
        write_atomic(place / "model.onnx", model)
        write_atomic(place / "model.safetensors", safetensors.torch.save(own_weights(network)))
        costs = complexity(network, network.input_shape)
        write_json(place / "card.json", {"input": list(network.input_shape), **costs})
        return place

    def _finetuned(
        self, chosen: Candidate | Architecture, recipe: FinetuneRecipe
    ) -> tuple[StagedNetwork, float]:
        network = self.network(chosen)
        recalibrate(network, self._data.calibration)
        trainer = Trainer(network, self._data, recipe, self._seed, self._loss)
        while not trainer.finished():
            trainer.train_epoch()
        network.load_state_dict(trainer.result().state_dict())
        return network.eval(), self._score_of(network)

    def _recipe(self, given: dict[str, Any]) -> FinetuneRecipe:
        settings = finetuning_recipe(given)
        if settings.patience is not None and self._score is not None:
            raise ConfigError(
                "patience goes by the accuracy of a classifier, but this study has a score of its "
                "own. Leave it out, and give epochs."
            )
        return settings

    def _score_of(self, network: StagedNetwork) -> float:
        if self._score is None:
            return checked_score(accuracy(network, self._data.validation))
        scored = copy.deepcopy(network).requires_grad_(False)  # whatever the score does with it
        return checked_score(self._score(scored, self._loader))

    def _made(self) -> Distilled:
        if self._distilled is None:
            raise DonnaError("There are no distilled blocks yet. Call `distil` first.")
        return self._distilled


def _cut(model: nn.Module, stages: Any, images: Tensor) -> StagedNetwork:
    """The model as a reference that computes the same, in eval mode, without gradients."""
    config = section_of(ReferenceConfig, {"model": type(model).__name__, "stages": stages})
    reference = cut_reference(model, config, images.shape[1:])
    some = Engine.of(reference).images(images[:_CHECKED_IMAGES])
    check_cut(model, reference, config.model, some)
    _check_batch(reference, some[:_FEWEST_IMAGES])
    return reference.requires_grad_(False).eval()


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
