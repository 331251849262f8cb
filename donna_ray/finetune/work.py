"""What a worker does with a network: it finetunes it, exports it and stores it.

The loss is KL(teacher || student) on logits plus the cross entropy (DONNA, section 3.3).
"""

import copy
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from donna_ray.complexity import complexity
from donna_ray.config import FinetuneRecipe, RunConfig
from donna_ray.data import ImageData
from donna_ray.errors import DivergedError, MemoryLimitError
from donna_ray.finetune.assemble import assemble
from donna_ray.onnx_export import export_onnx, onnx_error
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.network import StagedNetwork, own_weights
from donna_ray.reference.worker import WorkerContext
from donna_ray.space import BlockSpec
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import RecordStore
from donna_ray.training.batchnorm import calibrating, recalibrate
from donna_ray.training.checkpoints import Checkpoints
from donna_ray.training.engine import Engine
from donna_ray.training.loop import Loss, accuracy
from donna_ray.training.trainer import Trainer
from donna_ray.workers.faults import UnitEnded
from donna_ray.workers.group import current_group

__all__ = ["FinetuneJob", "FinetuneNetwork", "distillation_loss", "identity_of"]

_CHECKED_IMAGES = 16


@dataclass(frozen=True)
class FinetuneJob:
    """An architecture to finetune, or the reference itself, which has no blocks.

    Attributes:
        key: of its record in the network store.
        architecture_id: see ``SearchSpace.id_of``.
        specs: its blocks.
        blocks: the keys of their records in the library.
    """

    key: str
    architecture_id: str
    specs: tuple[BlockSpec, ...]
    blocks: tuple[str, ...]


def distillation_loss(teacher: StagedNetwork) -> Loss:
    """KL divergence from the teacher's distribution, plus the cross entropy with the labels."""

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = F.log_softmax(teacher(images), dim=1)
        divergence = F.kl_div(
            F.log_softmax(logits, dim=1), target, log_target=True, reduction="batchmean"
        )
        return divergence + F.cross_entropy(logits, labels)

    return loss


class FinetuneNetwork:
    """Finetunes one architecture on a worker, exports it and stores it."""

    def __init__(
        self,
        config: RunConfig,
        reference: Artifact,
        recipe: FinetuneRecipe,
        blocks: RecordStore,
        store: RecordStore,
    ) -> None:
        self._config, self._artifact, self._recipe = config, reference, recipe
        self._context = WorkerContext(config, reference)
        self._blocks, self._store = blocks, store
        self._checkpoints = Checkpoints(store.within("unfinished"))

    def __call__(self, job: FinetuneJob) -> dict[str, Any]:
        """One whose training diverges, or that fits no memory, has a record with the reason. It is
        not tried again; by another command, if it lacked memory.

        Raises:
            UnitEnded: so it is, in a group, by any process of it.
        """
        try:
            self._finetune(job)
        except (DivergedError, MemoryLimitError, torch.OutOfMemoryError) as error:
            lacked = not isinstance(error, DivergedError)
            self._store.put_failed(job.key, str(error), identity_of(job), for_memory=lacked)
            self._checkpoints.remove(job.key)
            if current_group().size > 1:
                raise UnitEnded(f"{job.architecture_id}: {error}") from error
        return {}

    def _finetune(self, job: FinetuneJob) -> None:
        reference, data = self._context.reference, self._context.data
        group = current_group()
        network = (
            assemble(reference, job.specs, job.blocks, self._blocks)
            if job.specs
            else copy.deepcopy(reference).requires_grad_(True)
        )
        self._context.engine.place(network)

        def zero_shot() -> float:
            recalibrate(network, data.calibration)
            return accuracy(network, data.validation)

        reached = group.from_first(zero_shot)
        loss = distillation_loss(reference)
        trainer = Trainer(network, data, self._recipe, self._config.seed, loss, group)
        self._checkpoints.train(job.key, trainer, group)
        measured = 2 * (calibrating(data.calibration) + len(data.validation))  # before and after
        record = {
            **identity_of(job),
            "reference": reference_identity(self._artifact),
            "recipe": self._recipe.model_dump(include=set(FinetuneRecipe.model_fields)),
            "seed": self._config.seed,
            "zero_shot_accuracy": reached,
            "epochs": trainer.epoch,
            "cost": {"image_passes": trainer.image_passes + measured},
        }
        if group.first:
            self._keep(job.key, trainer.result(), data, record)
            self._checkpoints.remove(job.key)

    def _keep(self, key: str, network: nn.Module, data: ImageData, record: dict[str, Any]) -> None:
        """Measure a finetuned network, export it and store it."""
        final = accuracy(network, data.validation)
        network.cpu()
        images, _ = next(data.validation.batches(_CHECKED_IMAGES))
        shape = images.shape[1:]
        model = export_onnx(network, shape)
        error = onnx_error(model, network, Engine.of(network).images(images))
        if not isfinite(error):
            raise DivergedError(
                f"A finetuned network must have finite logits, but {record['architecture']} does "
                "not. Lower the recipe's learning_rate."
            )
        measured = {"accuracy": final, **complexity(network, shape), "onnx_error": error}
        self._store.put(key, record | measured, own_weights(network), files={"onnx": model})


def identity_of(job: FinetuneJob) -> dict[str, Any]:
    """What every record of a network begins with."""
    return {"architecture": job.architecture_id, "blocks": [each.to_json() for each in job.specs]}
