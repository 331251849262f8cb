"""What a full run takes on clusters of several sizes, computed from what parts of it took.

All times are in seconds. Blocks are dealt into packs, and packs and networks given to workers, in
the order of the queue, as in the run itself. Upper bounds: blocks that a race would pause are
counted, and samples that `predictor.tau_interval` would spare; kept features count as computed. Not
in it: how long a cloud takes to boot a node, and the one pass over the test images at the end.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from donna_ray.config import FinetuneRecipe, RunConfig
from donna_ray.data import ImageData
from donna_ray.distill.dealing import packs_of
from donna_ray.errors import DonnaError
from donna_ray.search.verify import ROUNDS, most_verified
from donna_ray.training.batchnorm import calibrating

__all__ = [
    "Block",
    "Costs",
    "Images",
    "Line",
    "NetworkCost",
    "PackCost",
    "Plan",
    "Rates",
    "ReferenceCost",
    "makespan",
    "node_seconds",
]


@dataclass(frozen=True)
class ReferenceCost:
    """Of the reference's step.

    Attributes:
        own: whatever the workers do: the model built, they started.
        training: by as many workers as `reference.training` says; 0 without one.
        parts: of each part of the images on a worker, for the variances and the accuracy.
    """

    own: float
    training: float = 0.0
    parts: tuple[float, ...] = ()


@dataclass(frozen=True)
class PackCost:
    """Of a pack on a worker: its own time, and a straight line in the sum of its blocks' costs.

    Attributes:
        own: of a pack, whatever the images.
        image: of an image in training, but for the blocks: decoding, the reference.
        block: of an image in training, for each unit of a block's cost.
        validation_image: of an image of the validation, but for the blocks.
        validation_block: of an image of the validation, for each unit of a block's cost.
        reading: of an image in training that is only read, transformed and put into batches.
    """

    own: float
    image: float
    block: float
    validation_image: float
    validation_block: float
    reading: float = 0.0


@dataclass(frozen=True)
class NetworkCost:
    """Of finetuning a network on a worker, of average size.

    Attributes:
        own: of a network, whatever the images: built, exported, stored.
        image: of an image in training, the teacher's forward included.
        validation_image: of an image in eval mode.
    """

    own: float
    image: float
    validation_image: float


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        reference: see there.
        preparation: of the library: Ray's start, precision and blocks measured on a worker.
        start: of the workers, until they have their first unit and what it needs.
        pack: see there.
        network: see there.
        candidate: of a measurement on the device.
        lowering: of a block, once in a search.
        search: of all searches together, whatever the candidates: devices and Ray Tune started.
    """

    reference: ReferenceCost
    preparation: float
    start: float
    pack: PackCost
    network: NetworkCost
    candidate: float
    lowering: float
    search: float


@dataclass(frozen=True)
class Images:
    """How many there are: for training, distillation, validation, and BatchNorm's calibration."""

    train: int
    distillation: int
    validation: int
    calibration: int

    @classmethod
    def of(cls, data: ImageData) -> "Images":
        """Of the data of a run."""
        trained, distilled = len(data.train), len(data.distillation)
        return cls(trained, distilled, len(data.validation), calibrating(data.calibration))


@dataclass(frozen=True)
class Block:
    """A block to distil.

    Attributes:
        cost: in the unit of ``PackCost.block``.
        epochs: of its recipe.
    """

    cost: float
    epochs: int


@dataclass(frozen=True)
class Rates:
    """What is paid for nodes, besides the time of their work.

    Attributes:
        idle_s: seconds after which the autoscaler gives an idle node back.
        node: price of a node for an hour; None leaves prices out.
        head: price of the head for an hour.
    """

    idle_s: float
    node: float | None = None
    head: float = 0.0


@dataclass(frozen=True)
class Line:
    """One size of the cluster.

    Attributes:
        nodes: most of them, besides the head.
        workers: on them; the run has them if its `cluster.workers` says so.
        seconds: of each step.
        asked: how many nodes a step asks for: as many as have a worker with something to do.
        busy: share of the time of all workers in a step that goes into its units; 0 where it is of
            a device, or of the command itself.
    """

    nodes: int
    workers: int
    seconds: dict[str, float]
    asked: dict[str, int]
    busy: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of the run, in which the head is there."""
        return sum(self.seconds.values())

    def node_hours(self, idle_s: float) -> float:
        """Hours of all nodes but the head; see ``node_seconds``."""
        return (
            node_seconds(list(zip(self.asked.values(), self.seconds.values(), strict=True)), idle_s)
            / 3600
        )

    def to_json(self, rates: Rates) -> dict[str, Any]:
        """As plain JSON, with a price if there is one of a node."""
        hours = self.node_hours(rates.idle_s)
        facts: dict[str, Any] = {
            "nodes": self.nodes,
            "cluster.workers": self.workers,
            "seconds": self.seconds,
            "nodes_asked": self.asked,
            "busy_share": self.busy,
            "total_seconds": self.total,
            "node_hours": hours,
        }
        if rates.node is None:
            return facts
        return {**facts, "price": rates.node * hours + rates.head * self.total / 3600}


@dataclass(frozen=True)
class Plan:
    """What is to be done, and what its parts cost.

    Attributes:
        config: of the run.
        costs: measured.
        images: of the data.
        blocks: to be distilled.
        pack_size: most blocks a pack.
        workers_per_node: how many find room.
        keeps_workers: on one node, workers wait while the device measures, and go on after it.
    """

    config: RunConfig
    costs: Costs
    images: Images
    blocks: Sequence[Block]
    pack_size: int
    workers_per_node: int
    keeps_workers: bool = False

    def line(self, nodes: int) -> Line:
        """The run on at most so many nodes, with as many workers as find room on them.

        Raises:
            DonnaError: so few workers could not train a network together.
        """
        workers = nodes * self.workers_per_node
        self._check(nodes, workers)
        config = self.config
        finetuned = len(config.finetune.budgets or range(config.finetune.networks))
        finetuned = finetuned * len(config.all_scenarios()) + len(config.finetune.architectures)
        finetuned += 1  # the reference, by the same recipe
        samples, together = config.predictor.samples, config.predictor.workers_per_network
        kept = self.keeps_workers and nodes == 1
        kept = kept and config.finetune.workers_per_network == together
        parts = {
            "reference": self._reference(workers),
            "library": self._library(workers),
            "predictor": self._networks(samples, config.predictor, workers, together > 1),
            "search": _Step(0, self._search(), 0.0),
            "finetune": self._networks(finetuned, config.finetune, workers, not kept),
        }
        return Line(
            nodes,
            workers,
            {name: part.seconds for name, part in parts.items()},
            {name: -(-part.workers // self.workers_per_node) for name, part in parts.items()},
            {name: part.busy / max(workers * part.seconds, 1e-9) for name, part in parts.items()},
        )

    def reading_share(self) -> float:
        """Of the time of an average pack's images in training, what it takes to read them.

        About 1 is: the loaders limit the library. What a loader's processes do is done beside the
        training.
        """
        cost = self.costs.pack
        blocks = self.pack_size * sum(block.cost for block in self.blocks) / len(self.blocks)
        return cost.reading / (cost.image + cost.block * blocks)

    def pack_seconds(self, pack: Sequence[Block]) -> float:
        """One pack on a worker."""
        cost, images = self.costs.pack, self.images
        trained = cost.image * max(block.epochs for block in pack)
        trained += cost.block * sum(block.cost * block.epochs for block in pack)
        tested = cost.validation_image + cost.validation_block * sum(each.cost for each in pack)
        return cost.own + images.distillation * trained + images.validation * tested

    def _check(self, nodes: int, workers: int) -> None:
        config = self.config
        recipes: dict[str, FinetuneRecipe] = {
            "predictor": config.predictor,
            "finetune": config.finetune,
        }
        if config.reference.training is not None:
            recipes["reference.training"] = config.reference.training
        for name, recipe in recipes.items():
            together = recipe.workers_per_network
            if workers < together:
                raise DonnaError(
                    f"A cluster must have room for {name}.workers_per_network = {together} workers,"
                    f" but {nodes} nodes have room for {workers}. Leave this size out of --nodes."
                )

    def _reference(self, workers: int) -> "_Step":
        cost, recipe = self.costs.reference, self.config.reference.training
        together = recipe.workers_per_network if recipe else 1
        seconds = cost.own + cost.training + makespan(cost.parts, workers)
        busy = together * cost.training + sum(cost.parts)
        least = together if cost.training else 0
        return _Step(max(least, min(workers, len(cost.parts))), seconds, busy)

    def _library(self, workers: int) -> "_Step":
        packs = packs_of(self.blocks, lambda block: block.cost, self.pack_size, workers)
        units = [self.pack_seconds(pack) for pack in packs]
        seconds = self.costs.preparation + self.costs.start + makespan(units, workers)
        return _Step(min(workers, len(units)), seconds, sum(units))

    def _networks(self, count: int, recipe: FinetuneRecipe, workers: int, started: bool) -> "_Step":
        """Networks, with workers that are `started` for them or there."""
        together = recipe.workers_per_network
        groups = min(workers // together, count)
        units = [self._network_seconds(recipe)] * count
        seconds = self.costs.start * started + makespan(units, groups)
        return _Step(groups * together, seconds, together * sum(units))

    def _network_seconds(self, recipe: FinetuneRecipe) -> float:
        """Before and after its training a network is calibrated and measured, by one worker."""
        cost, images = self.costs.network, self.images
        tested = 2 * cost.validation_image * (images.calibration + images.validation)
        trained = recipe.epochs * images.train * cost.image / recipe.workers_per_network
        return cost.own + tested + trained

    def _search(self) -> float:
        """Lowering and measuring go on at once; as if one device measured for all scenarios.

        At the end the fronts are measured again, each with the reference.
        """
        costs = self.costs
        counts = [each.search.evaluations for each in self.config.all_scenarios()]
        lowered = len(self.blocks) * costs.lowering
        again = ROUNDS * sum(most_verified(each) + 1 for each in counts)
        return costs.search + max(lowered, sum(counts) * costs.candidate) + again * costs.candidate


@dataclass(frozen=True)
class _Step:
    """Workers with something to do, seconds, and of all workers those in which they are busy."""

    workers: int
    seconds: float
    busy: float


def makespan(durations: Sequence[float], workers: int) -> float:
    """When the last unit ends, if each worker takes the next one as soon as it is free."""
    free = [0.0] * min(workers, len(durations))
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free, default=0.0)


def node_seconds(steps: Sequence[tuple[int, float]], idle_s: float) -> float:
    """For how long nodes are there, all of them together.

    A node is there while it is asked for, and idle until it is asked for again or given back.

    Args:
        steps: nodes asked for, and seconds, in the order of the run.
        idle_s: seconds after which an idle node is given back, also at the end.
    """
    total = 0.0
    for node in range(max(asked for asked, _ in steps)):
        idle = 0.0  # since it was last asked for
        there = False
        for asked, seconds in steps:
            if node < asked:
                total += seconds + min(idle, idle_s) * there
                idle, there = 0.0, True
            else:
                idle += seconds
        total += idle_s
    return total
