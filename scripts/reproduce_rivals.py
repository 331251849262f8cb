"""Networks to compare with: known ones scaled in width and depth, trained by the same recipe."""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from timm.layers import get_act_layer
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from torch import nn

from donna_ray.complexity import complexity
from donna_ray.config import FinetuneRecipe, RunConfig
from donna_ray.data import ImageData, Split, load_test
from donna_ray.finetune.tested import wilson
from donna_ray.finetune.work import distillation_loss
from donna_ray.onnx_export import export_onnx
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.load import data_of, load_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.report.results import Results
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact, digest, write_json
from donna_ray.training.engine import Engine
from donna_ray.training.loop import accuracy, right_answers, seeded
from donna_ray.training.trainer import Trainer

__all__ = ["STYLES", "Bench", "Trained", "finetuned", "reference_facts", "scaled_networks", "told"]

Result = TypeVar("Result")

SIZES = ((0.75, 2), (0.5, 1))  # width, depth
STRIDES, CHANNELS = (2, 2, 1, 2), (24, 40, 80, 112)


@dataclass(frozen=True)
class Style:
    """What the stages of a family of networks have in common."""

    kernels: Sequence[int]
    expansion: int
    squeeze_excite: bool
    activation: str


STYLES = {
    "MobileNetV2": Style((3, 3, 3, 3), 6, False, "relu6"),
    "MobileNetV3": Style((3, 5, 3, 5), 4, True, "hard_swish"),
    "EfficientNet": Style((3, 5, 3, 5), 6, True, "silu"),
}


def scaled(style: Style, width: float, depth: int, classes: int, channels: int) -> EfficientNet:
    """A network with the strides and, at width 1, the channels of the reference."""
    ending = "_se0.25" if style.squeeze_excite else ""
    rows = zip(STRIDES, CHANNELS, style.kernels, strict=True)
    stages = [
        f"ir_r{depth}_k{kernel}_s{stride}_e{style.expansion}_c{_eighths(width * out)}{ending}"
        for stride, out, kernel in rows
    ]
    network = EfficientNet(
        decode_arch_def([[stage] for stage in stages]),
        num_classes=classes,
        in_chans=channels,
        stem_size=16,
        num_features=320,
        act_layer=get_act_layer(style.activation),
    )
    network.conv_stem.stride = (1, 1)
    return network


def scaled_networks(
    classes: int, channels: int
) -> Iterator[tuple[str, Callable[[], EfficientNet]]]:
    """Name and maker of every style in every size."""
    for name, style in STYLES.items():
        for width, depth in SIZES:
            make = partial(scaled, style, width, depth, classes, channels)
            yield f"{name}, width {width}, depth {depth}", make


def _eighths(channels: float) -> int:
    return max(8, int(channels / 8 + 0.5) * 8)


@dataclass(frozen=True)
class Trained:
    """A network that was trained and tested.

    Attributes:
        name: what it is.
        facts: `test_accuracy` with `test_low` and `test_high`, `accuracy`, `params`, `macs`,
            `image_passes`.
        onnx: its file.
    """

    name: str
    facts: dict[str, Any]
    onnx: Path


def finetuned(results: Results, folder: Path, scenario: int = 0) -> list[Trained]:
    """The networks of a run's front that were finetuned."""
    return [
        Trained(point.id, point.model_dump(), folder / str(point.onnx))
        for point in results.scenarios[scenario].front
        if point.onnx is not None
    ]


def reference_facts(results: Results) -> dict[str, Any]:
    """What results.json of a reproduction says of the reference; of its weights the file's name."""
    facts = results.reference.model_dump(exclude={"class_names"})
    return facts | {"weights": Path(str(facts["weights"])).name}


def told(network: Trained, latency: dict[str, float]) -> dict[str, Any]:
    """What results.json of a reproduction says of a network."""
    names = ("test_accuracy", "test_low", "test_high", "params", "macs")
    return {"name": network.name, "ms": latency[network.name]} | {
        name: network.facts[name] for name in names if name in network.facts
    }


class Bench:
    """Trains networks on a run's images, by its teacher; what is done is kept in a folder.

    Args:
        folder: of what is done.
        config: of the run.
        reference: of ``reference_step``: the teacher.
    """

    def __init__(self, folder: Path, config: RunConfig, reference: Artifact) -> None:
        self._folder, self._config, self._artifact = folder, config, reference
        self._engine = Engine.of_worker(config.cluster)
        teacher, self.variance = load_reference(config, reference)
        self.teacher: StagedNetwork = self._engine.place(teacher)
        self.data: ImageData = data_of(config, reference)
        self.test: Split = load_test(config.data, reference.result["preprocessing"])

    @classmethod
    def of_run(cls, folder: Path, config: RunConfig, run_folder: Path) -> "Bench":
        """On the reference of a finished run."""
        from donna_ray.reference.step import reference_step

        with Run(config, run_folder) as run:
            return cls(folder, config, reference_step(run))

    def trained(
        self,
        name: str,
        make: Callable[[], nn.Module],
        recipe: FinetuneRecipe,
    ) -> Trained:
        """A network, trained by labels and teacher as finetuning does, unless it is there.

        Args:
            name: what it is, one for each network and recipe.
            make: the network before the training.
            recipe: how long and how fast.
        """
        place, known = self._place(name, recipe)
        facts = place.with_suffix(".json")
        if not facts.exists():
            self._train(make, recipe, place, known)
        return Trained(name, json.loads(facts.read_text()), place.with_suffix(".onnx"))

    def knows(self, name: str, recipe: FinetuneRecipe) -> bool:
        """Whether ``trained`` has only to read it."""
        return self._place(name, recipe)[0].with_suffix(".json").exists()

    def place_for(self, name: str) -> Path:
        """A file of this reference that is kept beside the trained networks."""
        known = {"name": name, "teacher": reference_identity(self._artifact)}
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{digest(known)}-{name}"

    def side_by_side(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """What calls return that train; on CPUs as many train at once as the run has workers.

        Each is called in a process of its own, and once more here, where it finds what it trained.

        Raises:
            RuntimeError: if one of the processes ends with an error, which it has printed.
        """
        if self._engine.device.type == "cpu" and len(calls) > 1:
            _in_processes(calls, self._config.cluster.workers)
        return [call() for call in calls]

    def _place(self, name: str, recipe: FinetuneRecipe) -> tuple[Path, dict[str, Any]]:
        known = {"name": name, "recipe": recipe.model_dump()}
        known["teacher"] = reference_identity(self._artifact)
        return self._folder / digest(known | {"seed": self._config.seed}), known

    def _train(
        self,
        make: Callable[[], nn.Module],
        recipe: FinetuneRecipe,
        place: Path,
        known: dict[str, Any],
    ) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with seeded(self._config.seed):
            network = make().requires_grad_(True)
        recipe = recipe.model_copy(update={"workers_per_network": 1})
        if recipe.precision == "auto":
            recipe = recipe.model_copy(update={"precision": "fp32"})
        network = self._engine.place(network)
        loss = distillation_loss(self.teacher)
        trainer = Trainer(network, self.data, recipe, self._config.seed, loss)
        while not trainer.finished():
            trainer.train_epoch()
        result = self._engine.place(trainer.result())
        shape = tuple(self.teacher.input_shape)
        facts = {
            **known,
            **wilson(*right_answers(result, self.test)),
            "accuracy": accuracy(result, self.data.validation),
            "image_passes": trainer.image_passes,
        }
        result.cpu()
        place.with_suffix(".onnx").write_bytes(export_onnx(result, shape))
        safetensors.torch.save_model(result, str(place.with_suffix(".safetensors")))
        write_json(place.with_suffix(".json"), facts | complexity(result, shape))
        print(f"{known['name']}: {facts['test_accuracy']:.2%} of the test images", flush=True)


def _in_processes(calls: Sequence[Callable[[], Any]], at_once: int) -> None:
    waiting = [multiprocessing.get_context("fork").Process(target=call) for call in calls]
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.pop(0))
            running[-1].start()
        wait([each.sentinel for each in running])
        for each in [each for each in running if each.exitcode is not None]:
            running.remove(each)
            if each.exitcode != 0:
                raise RuntimeError(f"a training ended with exit code {each.exitcode}")
