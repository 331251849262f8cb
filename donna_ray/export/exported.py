"""An exported folder as `donna evaluate` needs it: all of it is read, and refused, at the start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from pydantic import BaseModel, PositiveInt, ValidationError

from device_farm import DeviceError, Workload
from device_farm.connectors.onnx_session import CPU, open_session
from device_farm.failures import first_line
from donna_ray.config import DataConfig
from donna_ray.errors import ConfigError
from donna_ray.export.folder import CARD, CARD_VERSION, CONFIG, ONNX
from donna_ray.storage.artifacts import file_sha256, read_json

__all__ = ["Card", "Exported", "read_export"]

_AGAIN = "Correct the path, or export the network again with this version of donna-ray."


class Card(BaseModel):
    """What of `card.json` is used."""

    architecture: str
    classes: PositiveInt
    class_names: list[str]
    data: DataConfig
    latency: list[dict[str, Any]]
    test_accuracy: float | None = None
    files: dict[str, str]
    """SHA-256 by name."""


class _Prepared(BaseModel):
    """How timm prepares images."""

    input_size: tuple[PositiveInt, PositiveInt, PositiveInt]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str


class _Config(BaseModel):
    pretrained_cfg: _Prepared


@dataclass(frozen=True)
class Exported:
    """A network that can be run.

    Attributes:
        card: what is claimed of it.
        prepared: how images are prepared, as timm's data configuration.
        workload: of one image, where it takes any number.
        session: of the file as it is, on this host's CPU.
    """

    card: Card
    prepared: dict[str, Any]
    workload: Workload
    session: onnxruntime.InferenceSession


def read_export(folder: Path) -> Exported:
    """Read what `donna export` wrote.

    Raises:
        ConfigError: a file is missing, damaged, of another version, or of another network.
    """
    card = _card(folder)
    try:
        config = _Config.model_validate(_mapping(folder, CONFIG))
    except ValidationError as error:
        raise _refused(folder, f"its {CONFIG} is damaged ({_fault(error)})") from None
    prepared = config.pretrained_cfg.model_dump()
    return Exported(card, prepared, *_model(folder, card, prepared["input_size"]))


def _card(folder: Path) -> Card:
    values = _mapping(folder, CARD)
    version = values.get("version")
    if version != CARD_VERSION:
        raise _refused(folder, f"its {CARD} has version {version}, and {CARD_VERSION} is known")
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        raise _refused(
            folder, f"its {CARD} is damaged, or of another version ({_fault(error)})"
        ) from None


def _mapping(folder: Path, name: str) -> dict[str, Any]:
    value = read_json(folder / name)
    if value is None:
        raise _refused(folder, f"it has no {name} that can be read")
    return value


def _model(
    folder: Path, card: Card, size: tuple[int, int, int]
) -> tuple[Workload, onnxruntime.InferenceSession]:
    path = folder / ONNX
    if not path.is_file():
        raise _refused(folder, f"it has no {ONNX}")
    if card.files.get(ONNX) != (own := file_sha256(path)):
        raise _refused(folder, f"its {ONNX} is not the one that its {CARD} names (SHA-256 {own})")
    try:
        workload = Workload.from_onnx(path)
        session = open_session(path.read_bytes(), onnxruntime.SessionOptions(), [(CPU, {})])
    except DeviceError as error:
        raise _refused(folder, f"its {ONNX} cannot be loaded ({first_line(error)})") from error
    taken = [(each.name, each.shape[1:], each.dtype) for each in workload.inputs]
    given = [output.shape[1:] for output in session.get_outputs()]
    if taken != [("input", size, "float32")] or given != [[card.classes]]:
        raise _refused(
            folder,
            f"its {ONNX} takes {taken} and gives {given} for an image, where an input of {size} "
            f"and {card.classes} classes are stated",
        )
    return workload, session


def _fault(error: ValidationError) -> str:
    """The first thing that is wrong: the key, and why."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _refused(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        f"NET must be a folder that `donna export` wrote, but {folder} is not: {why}. {_AGAIN}"
    )
