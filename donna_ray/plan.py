"""What a full run takes on clusters of several sizes, computed from what parts of it took.

All times are in seconds. Blocks are dealt into packs, and packs and networks given to workers, in
the order of the queue, as in the run itself. Upper bounds: blocks that a race would pause are
counted, and samples that `predictor.tau_interval` would spare; kept features count as computed.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from donna_ray.config import FinetuneRecipe, RunConfig
from donna_ray.packs import packs_of

__all__ = ["Block", "Costs", "Images", "Line", "NetworkCost", "PackCost", "Plan", "makespan"]


@dataclass(frozen=True)
class PackCost:
    """Of a pack on a worker: its own time, and a straight line in the sum of its blocks' costs.

    Attributes:
        own: of a pack, whatever the images.
        image: of an image in training, but for the blocks: decoding, the reference.
        block: of an image in training, for each unit of a block's cost.
        validation_image: of an image of the validation, but for the blocks.
        validation_block: of an image of the validation, for each unit of a block's cost.
    """

    own: float
    image: float
    block: float
    validation_image: float
    validation_block: float


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
        reference: the whole step.
        start: of a step's workers, until they have their first unit and what it needs.
        pack: see there.
        network: see there.
        candidate: of a measurement on the device.
        lowering: of a block, once in a search.
        search: of a search, whatever the candidates.
    """

    reference: float
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
class Line:
    """One size of the cluster.

    Attributes:
        nodes: besides the head.
        workers: on them.
        seconds: of each step.
        node_hours: of the nodes that train, while they do; idle ones are given back.
    """

    nodes: int
    workers: int
    seconds: dict[str, float]
    node_hours: float

    @property
    def total(self) -> float:
        """Seconds of the run."""
        return sum(self.seconds.values())

    def to_json(self, price: float | None) -> dict[str, Any]:
        """As plain JSON; `price` is that of a node for an hour."""
        facts: dict[str, Any] = {
            "nodes": self.nodes,
            "workers": self.workers,
            "seconds": self.seconds,
            "total_seconds": self.total,
            "node_hours": self.node_hours,
        }
        return facts if price is None else {**facts, "price": price * self.node_hours}


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
    """

    config: RunConfig
    costs: Costs
    images: Images
    blocks: Sequence[Block]
    pack_size: int
    workers_per_node: int

    def line(self, nodes: int) -> Line:
        """The run on so many nodes."""
        workers = nodes * self.workers_per_node
        config, costs = self.config, self.costs
        lowered = len(self.blocks) * costs.lowering
        scenarios = config.all_scenarios()  # as if one device measured for all
        measured = sum(each.search.evaluations for each in scenarios) * costs.candidate
        networks = len(scenarios) * len(config.finetune.budgets or range(config.finetune.networks))
        seconds = {
            "reference": costs.reference,
            "library": self._library(workers),
            "predictor": self._networks(config.predictor.samples, config.predictor, workers),
            "search": costs.search + max(lowered, measured),
            "finetune": self._networks(networks, config.finetune, workers),
        }
        training = sum(seconds[name] for name in ("library", "predictor", "finetune"))
        return Line(nodes, workers, seconds, nodes * training / 3600)

    def pack_seconds(self, pack: Sequence[Block]) -> float:
        """One pack on a worker."""
        cost, images = self.costs.pack, self.images
        trained = cost.image * max(block.epochs for block in pack)
        trained += cost.block * sum(block.cost * block.epochs for block in pack)
        tested = cost.validation_image + cost.validation_block * sum(each.cost for each in pack)
        return cost.own + images.distillation * trained + images.validation * tested

    def _library(self, workers: int) -> float:
        packs = packs_of(self.blocks, lambda block: block.cost, self.pack_size, workers)
        return self.costs.start + makespan([self.pack_seconds(pack) for pack in packs], workers)

    def _networks(self, count: int, recipe: FinetuneRecipe, workers: int) -> float:
        """Before and after its training a network is calibrated and measured, by one worker."""
        cost, images, size = self.costs.network, self.images, recipe.workers_per_network
        tested = 2 * cost.validation_image * (images.calibration + images.validation)
        trained = recipe.epochs * images.train * cost.image / size
        each = cost.own + tested + trained
        return self.costs.start + makespan([each] * count, max(workers // size, 1))


def makespan(durations: Sequence[float], workers: int) -> float:
    """When the last unit ends, if each worker takes the next one as soon as it is free."""
    free = [0.0] * min(workers, len(durations))
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free, default=0.0)
