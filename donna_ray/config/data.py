"""The section `data` of a configuration: which images, and how they are prepared."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, field_validator, model_validator

from donna_ray.config.values import AbsolutePath, Section, absolute

__all__ = ["PREPARATION", "DataConfig"]

PREPARATION = ("mean", "std", "interpolation", "crop_pct", "crop_mode")  # timm's words
_CHANNELS = 3
_NAMED_DATASET = re.compile(r"(torch|hfds|hfids|tfds|wds)/", re.IGNORECASE)

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


def _of_channels(values: list[float] | None) -> list[float] | None:
    if values is not None and len(values) not in (1, _CHANNELS):
        raise ValueError("must have one number for each of the 3 channels, or one for all")
    return values


def _unless_given() -> Any:
    """What is not given is in no dump: results that know nothing of it keep their keys."""
    return Field(default=None, exclude_if=lambda value: value is None)


class DataConfig(Section):
    """Images.

    `source` is `digits` (scikit-learn's 1,797 handwritten digits, embedded); a folder that holds
    each split as a folder with one folder of images a class, or as a tar of them; or a name that
    timm.data.create_dataset takes (`torch/cifar10`, `hfds/…`, `wds/…`, …) with the data in `root`
    (fetched to there by `download`). `train_split` and `validation_split` are the names of its
    splits; `validation_fraction` is the share of the digits that does not train: it validates, and
    a part of it is the test.
    `unlabelled` is a folder or tar of images for the distillation of blocks, which needs no labels.
    `classes` is needed only where the data do not tell. `augmentation` holds arguments of
    timm.data.create_transform for the training images (null: none).
    `image_size` is the side in pixels that images are scaled to; null is the model's own.
    `loader_workers` processes read the images of a worker (0: the worker itself).
    `cache_pixels` has each node keep the images of a folder or tars, but the test's, on its local
    disk (TMPDIR): decoded, and scaled down to a short side of so many pixels (null: not).
    `mean` and `std` (of each of the three channels, as shares of the largest value; one number for
    all), `interpolation`, `crop_pct` and `crop_mode` say how images are normalised and cropped, in
    timm's words; null is what the reference's weights say, else timm's for the model.

    The test images give the final accuracies and are used for nothing else. They are those of
    `test_split`, or a share of the validation images, `test_fraction`. Where both are null: of a
    folder its `test/` (with a folder a class) or `test.tar`, else half of the validation images.
    """

    source: str = "digits"
    root: AbsolutePath | None = None
    download: bool = False
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    unlabelled: AbsolutePath | None = None
    classes: Annotated[int, Field(ge=2)] | None = None
    image_size: Annotated[int, Field(ge=8)] | None = None
    augmentation: dict[str, Any] | None = Field(default_factory=dict)
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    loader_workers: NonNegativeInt = 0
    cache_pixels: Annotated[int, Field(ge=8)] | None = None
    mean: Annotated[list[Share] | None, AfterValidator(_of_channels)] = _unless_given()
    std: Annotated[list[PositiveShare] | None, AfterValidator(_of_channels)] = _unless_given()
    interpolation: Interpolation | None = _unless_given()
    crop_pct: Annotated[float, Field(gt=0, le=2)] | None = _unless_given()  # 1.15 in timm
    crop_mode: Literal["center", "squash", "border"] | None = _unless_given()

    @field_validator("source")
    @classmethod
    def _folder_is_absolute(cls, source: str) -> str:
        named = source == "digits" or _NAMED_DATASET.match(source)
        return source if named else absolute(source)

    @model_validator(mode="after")
    def _test_has_one_origin(self) -> "DataConfig":
        if self.test_split is not None and self.test_fraction is not None:
            raise ValueError(
                "must have test_split or test_fraction, but has both "
                f"({self.test_split!r} and {self.test_fraction}); remove one"
            )
        return self

    @model_validator(mode="after")
    def _copies_are_large_enough(self) -> "DataConfig":
        if self.cache_pixels and self.image_size and self.cache_pixels < self.image_size:
            raise ValueError(
                f"must have cache_pixels of at least image_size, but has {self.cache_pixels} and "
                f"{self.image_size}; raise cache_pixels, or set it to null"
            )
        return self

    @model_validator(mode="after")
    def _digits_have_a_preparation_of_their_own(self) -> "DataConfig":
        if self.source == "digits" and self.preparation():
            name, value = next(iter(self.preparation().items()))
            raise ValueError(
                f"goes with images in files where {name} is given (it is {value!r}), but source is "
                "'digits'; remove it, or name another source"
            )
        return self

    def preparation(self) -> dict[str, Any]:
        """What is given of timm's data configuration, but for the size."""
        given = {name: getattr(self, name) for name in PREPARATION}
        known = {name: value for name, value in given.items() if value is not None}
        channels = {name: tuple(known[name]) for name in ("mean", "std") if name in known}
        whole = {name: each * (_CHANNELS // len(each)) for name, each in channels.items()}
        return known | whole
