"""`donna compress` beside what else shrinks a network: equal measured latency, epochs and teacher.

The rivals begin with the reference's own weights, as compress does, and are finetuned by the same
recipe. How much they prune is found by bisection of the latency that is measured on the device:

- Torch-Pruning, channels by the norm of their groups, chosen over the whole network;
- the same with one share in every layer, which is a uniform scaling of the width;
- FastNAS of NVIDIA's Model-Optimizer, with a bound on the operations.

Torch-Pruning is also trained for as many image passes as compress took in all for each limit, with
its library and its predictor. Needs
`pip install torch-pruning nvidia-modelopt torchprofile==0.0.4`; what is not installed is left out,
and said to be.
"""

import contextlib
import copy
import importlib.util
import io
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from reproduce_rivals import Bench, Trained, finetuned, reference_facts, told
from timm.layers import BatchNormAct2d
from torch import nn

from device_farm import Workload
from device_farm.alone import measure_alone
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector
from donna_ray.config import RunConfig
from donna_ray.onnx_export import export_onnx
from donna_ray.report.results import Results
from donna_ray.training.loop import accuracy, seeded

__all__ = ["LIMITS", "Rounds", "compared", "in_turn", "rival_rows"]

LIMITS = (0.7, 0.5)  # of the reference's latency
STEPS = 6  # of the bisection
ROUNDS = 5  # in which networks are measured, in turn
QUICK, LONG = 0.25, 1.0  # seconds of a measurement in the bisection, and in a round
MOST = 0.9  # of the channels that a rival prunes
SCORED = 256  # images of a score of FastNAS


class OverLimit(Exception):
    """A rival does not get under a limit."""


class TooSmall(Exception):
    """A rival has no network that is pruned as much."""


Make = Callable[[float], nn.Module]
"""A pruned network, by a share in 0..1 that grows as it shrinks."""


class Rounds:
    """The latency of ONNX models on this host's CPU.

    Args:
        settings: of the connector.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._quick = OnnxRuntimeConnector("cpu", {**settings, "max_seconds": QUICK})
        self._last = OnnxRuntimeConnector("cpu", {**settings, "max_seconds": LONG})
        self._folder = tempfile.TemporaryDirectory()

    def close(self) -> None:
        """Ends what measures."""
        self._quick.close()
        self._last.close()
        self._folder.cleanup()

    def once(self, model: bytes) -> float:
        """Milliseconds, quickly."""
        return self._measured(self._quick, model)

    def in_turn(self, models: dict[str, bytes]) -> dict[str, float]:
        """Milliseconds of each, the median of rounds in which all have their turn."""
        rounds = [
            {name: self._measured(self._last, model) for name, model in models.items()}
            for _ in range(ROUNDS)
        ]
        return {name: statistics.median(each[name] for each in rounds) for name in models}

    def _measured(self, connector: Any, model: bytes) -> float:
        cache = Path(self._folder.name) / "baselines.sqlite"
        return measure_alone(connector, Workload.from_onnx(model), cache).median_ms


def in_turn(files: dict[str, Path], settings: dict[str, Any] | None = None) -> dict[str, float]:
    """Milliseconds of ONNX files on this CPU; see ``Rounds``."""
    with contextlib.closing(Rounds(settings or {"threads": 1})) as rounds:
        return rounds.in_turn({name: file.read_bytes() for name, file in files.items()})


def compared(
    bench: Bench, config: RunConfig, results: Results, folder: Path, limits: Sequence[float]
) -> dict[str, Any]:
    """A finished compression beside the rivals: accuracies, and latencies measured in turn.

    Args:
        bench: on the reference of the run.
        config: of the run; its `finetune` is the rivals' recipe, too.
        results: of the run.
        folder: of the run.
        limits: parts of the reference's latency.
    """
    own = finetuned(results, folder)
    rivals = rival_rows(bench, config, limits, _epochs_of_all(results, bench, limits))
    models = {each.name: each.onnx.read_bytes() for each in [*own, *rivals]}
    models["reference"] = _exported(bench)
    with contextlib.closing(Rounds({"threads": 1})) as rounds:
        latency = rounds.in_turn(models)
    return {
        "reference": reference_facts(results),
        "reference_ms": latency["reference"],
        "compress": [told(each, latency) for each in own],
        "rivals": [told(each, latency) for each in rivals],
        "image_passes": {name: each.image_passes for name, each in results.cost.items()},
    }


def _epochs_of_all(results: Results, bench: Bench, limits: Sequence[float]) -> int:
    """Epochs of one network that are as many image passes as compress took for each limit."""
    own = sum(each.image_passes for name, each in results.cost.items() if name != "reference")
    return round(own / len(limits) / len(bench.data.train))


def rival_rows(
    bench: Bench, config: RunConfig, limits: Sequence[float], long: int
) -> list[Trained]:
    """Each rival at each limit, trained; what gets under no limit is left out, and said to be.

    Args:
        bench: of the run.
        config: of the run; its `finetune` is the recipe.
        limits: parts of the reference's latency.
        long: epochs of Torch-Pruning's second training.
    """
    longer = config.finetune.model_copy(update={"epochs": long})
    trainings = []
    with contextlib.closing(Rounds({"threads": 1})) as rounds:
        whole = rounds.once(_exported(bench))
        for name, make in _rivals(bench, tuple(bench.teacher.input_shape)).items():
            recipes = {name: config.finetune}
            if name == "Torch-Pruning":
                recipes[f"{name} for {long} epochs"] = longer
            for limit in limits:
                named = {f"{each} at {limit}x": recipe for each, recipe in recipes.items()}
                fetch: Callable[[], nn.Module] = nn.Module
                if not all(bench.knows(*each) for each in named.items()):
                    try:
                        with seeded(config.seed):
                            network = _within(bench, make, limit * whole, rounds)
                    except OverLimit as error:
                        print(f"{name} at {limit}x is left out: {error}", flush=True)
                        continue
                    fetch = partial(copy.deepcopy, network)
                trainings += [
                    partial(bench.trained, title, fetch, recipe) for title, recipe in named.items()
                ]
    return bench.side_by_side(trainings)


def _exported(bench: Bench) -> bytes:
    return export_onnx(copy.deepcopy(bench.teacher).cpu(), tuple(bench.teacher.input_shape))


def _rivals(bench: Bench, shape: tuple[int, ...]) -> dict[str, Make]:
    made: dict[str, Make] = {}
    if _has("torch_pruning"):
        made["Torch-Pruning"] = lambda share: _torch_pruned(bench, shape, share, overall=True)
        made["uniform width"] = lambda share: _torch_pruned(bench, shape, share, overall=False)
    if _has("modelopt"):
        made["FastNAS"] = _FastNas(bench, shape)
    return made


def _has(package: str) -> bool:
    there = importlib.util.find_spec(package) is not None
    if not there:
        print(f"{package} is not installed: its row is left out", flush=True)
    return there


def _within(bench: Bench, make: Make, limit_ms: float, rounds: Rounds) -> nn.Module:
    """The least pruned network that keeps the limit, of those that a bisection tries."""
    low, high, found, shape = 0.0, MOST, None, tuple(bench.teacher.input_shape)
    for _ in range(STEPS):
        share = (low + high) / 2
        try:
            network = make(share)
        except TooSmall:
            high = share
            continue
        if rounds.once(export_onnx(network, shape)) <= limit_ms:
            found, high = network, share
        else:
            low = share
    if found is None:
        raise OverLimit(f"nothing that was tried keeps {limit_ms:.3f} ms")
    return found


def _torch_pruned(bench: Bench, shape: tuple[int, ...], share: float, overall: bool) -> nn.Module:
    import torch_pruning

    network = copy.deepcopy(bench.teacher).cpu().requires_grad_(True).eval()
    last = [each for each in network.modules() if isinstance(each, nn.Linear)][-1]
    pruner = torch_pruning.pruner.BasePruner(
        network,
        torch.zeros(2, *shape),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=share,
        max_pruning_ratio=0.95,
        global_pruning=overall,
        round_to=8,
        ignored_layers=[last],
    )
    pruner.step()
    return network


class _FastNas:
    """Searches once, scoring by accuracy; each share is a bound on operations."""

    def __init__(self, bench: Bench, shape: tuple[int, ...]) -> None:
        self._bench, self._shape = bench, shape
        self._images = bench.data.validation.first(SCORED)

    def __call__(self, share: float) -> nn.Module:
        import modelopt.torch.prune as pruning

        teacher = copy.deepcopy(self._bench.teacher).cpu().to(memory_format=torch.contiguous_format)
        network = _plain(teacher.requires_grad_(True).eval())  # channels last it refuses
        batches = [images for images, _ in self._bench.data.calibration.first(SCORED).batches(64)]
        divisor = {"*": {"channel_divisor": 8}}, {"*": {"feature_divisor": 8}}
        space = {"nn.Conv2d": divisor[0], "nn.BatchNorm2d": divisor[1]}
        with _fastnas_told():
            found, _ = pruning.prune(
                network,
                mode=[("fastnas", space)],
                constraints={"flops": f"{100 * (1 - share):.1f}%"},
                dummy_input=torch.zeros(1, *self._shape),
                config={
                    "data_loader": batches,
                    "collect_func": lambda images: images,
                    "score_func": lambda one: accuracy(one, self._images),
                    "checkpoint": str(self._bench.place_for("fastnas.pth")),
                    "verbose": False,
                },
            )
        return found.cpu()


@contextlib.contextmanager
def _fastnas_told() -> Iterator[None]:
    """Prints nothing; raises ``TooSmall`` for a bound below its smallest network."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except ValueError as error:
            if "NOT all constraints can be satisfied" not in str(error):
                raise
            raise TooSmall from error


def _plain(module: nn.Module) -> nn.Module:
    """With plain BatchNorms in the place of timm's, which FastNAS does not know."""
    for name, child in module.named_children():
        if isinstance(child, BatchNormAct2d):
            norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, nn.Sequential(norm, child.drop, child.act).eval())
        else:
            _plain(child)
    return module
