"""Few images, on which a block is distilled in no time."""

from __future__ import annotations

from torch.utils.data import TensorDataset

from donna_ray.config import RunConfig
from donna_ray.data import ImageData, Split, load_data
from donna_ray.reference.network import StagedNetwork


def first_images(
    config: RunConfig, reference: StagedNetwork, train: int, validation: int
) -> ImageData:
    """The first images of both splits; those of the training are its distillation's, too."""
    data = load_data(config.data, {"input_size": reference.input_shape})

    def first(split: Split, count: int) -> Split:
        assert isinstance(split.dataset, TensorDataset)
        return Split(TensorDataset(*split.dataset[:count]))

    trained = first(data.train, train)
    return ImageData(
        trained, trained, first(data.validation, validation), trained, trained, data.classes
    )
