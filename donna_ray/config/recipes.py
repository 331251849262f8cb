"""How networks and blocks are trained."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from donna_ray.config.values import Section

__all__ = ["FinetuneRecipe", "ReferenceTraining", "TrainingConfig"]


class TrainingConfig(Section):
    """How long and how fast a network or block is trained.

    `epochs` are passes over the images, `batch_size` the images of an optimizer's step,
    `learning_rate` its peak and `weight_decay` that of AdamW.
    """

    epochs: PositiveInt = 1
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: PositiveFloat = 5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4

    @property
    def peak(self) -> float:
        """Of the learning rate."""
        return self.learning_rate


class FinetuneRecipe(TrainingConfig):
    """How an assembled network is finetuned: KL to the teacher plus cross entropy.

    `schedule` of the learning rate: `one_cycle` goes up to the peak and down, `cosine` from the
    peak down. With `ema_decay` the network is the moving average of its weights over the steps.
    `precision` is `fp32`, `bf16` or `fp16` (autocast, for GPUs without bfloat16) or `auto`: what a
    short measurement on a worker shows to be faster. `patience` stops after so many epochs without
    a better accuracy on the validation images, and takes the best epoch's weights.
    `workers_per_network` workers train one network together, each on its part of every batch.
    `learning_rate_batch` is the batch size that `learning_rate` is meant for: with another
    `batch_size` the peak is that many times higher or lower (null: it is what is given).
    """

    schedule: Literal["one_cycle", "cosine"] = "one_cycle"
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    patience: PositiveInt | None = None
    workers_per_network: PositiveInt = 1
    learning_rate_batch: PositiveInt | None = None

    @property
    def peak(self) -> float:
        """Of the learning rate: linear in the batch (Goyal et al. 2017, section 2.1)."""
        return self.learning_rate * self.batch_size / (self.learning_rate_batch or self.batch_size)

    @model_validator(mode="after")
    def _high_rates_are_warmed_up(self) -> "FinetuneRecipe":
        if self.schedule == "cosine" and self.peak > self.learning_rate:
            raise ValueError(
                "must have the schedule one_cycle, which warms up, where the rate of a batch of "
                f"{self.learning_rate_batch} is raised for one of {self.batch_size}, but has "
                f"{self.schedule}; change the schedule, or remove learning_rate_batch"
            )
        return self

    @model_validator(mode="after")
    def _batch_is_shared_out(self) -> "FinetuneRecipe":
        workers = self.workers_per_network
        if workers > 1 and (self.batch_size % workers or self.batch_size < 2 * workers):
            raise ValueError(
                "must have a batch_size that is a multiple of workers_per_network, and at least "
                f"twice it, but has {self.batch_size} and {workers}; change one of them"
            )
        return self


class ReferenceTraining(FinetuneRecipe):
    """How the reference is trained on the labels: with the settings of a network's finetuning."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
