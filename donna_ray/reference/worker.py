"""What a worker of a run has at hand: a device, the reference on it, and the images."""

from functools import cached_property

from torch import Tensor

from donna_ray.config import RunConfig
from donna_ray.data import ImageData
from donna_ray.reference.load import data_of, load_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.storage.artifacts import Artifact
from donna_ray.training.engine import Engine

__all__ = ["WorkerContext"]


class WorkerContext:
    """Loads each of them when it is first asked for, and keeps it. Picklable before that.

    Args:
        config: of the run.
        reference: of ``reference_step``.
    """

    def __init__(self, config: RunConfig, reference: Artifact) -> None:
        self._config, self._artifact = config, reference

    @property
    def engine(self) -> Engine:
        """The worker's device, in float32."""
        return Engine.of_worker(self._config.cluster)

    @property
    def reference(self) -> StagedNetwork:
        """On the device, in eval mode and without gradients."""
        return self._teacher[0]

    @property
    def variance(self) -> list[Tensor]:
        """Of each stage's output, (channels,) each."""
        return self._teacher[1]

    @cached_property
    def data(self) -> ImageData:
        """All images but the test's, as the reference saw them."""
        return data_of(self._config, self._artifact)

    def load(self) -> None:
        """All of them, now."""
        _ = self.reference, self.data

    @cached_property
    def _teacher(self) -> tuple[StagedNetwork, list[Tensor]]:
        reference, variance = load_reference(self._config, self._artifact)
        return self.engine.place(reference), variance
