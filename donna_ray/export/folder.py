"""The folder of an export: which files it has, and how they come there whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from donna_ray.errors import ConfigError
from donna_ray.storage.artifacts import file_sha256, read_json, write_atomic, write_json

__all__ = [
    "CARD",
    "CARD_VERSION",
    "CONFIG",
    "EXECUTORCH",
    "LITERT",
    "LITERT_INT8",
    "ONNX",
    "README",
    "SOURCE",
    "WEIGHTS",
    "check_replaceable",
    "fill",
]

WEIGHTS, ONNX, SOURCE = "model.safetensors", "model.onnx", "network.py"
LITERT, LITERT_INT8, EXECUTORCH = "model.tflite", "model-int8.tflite", "model.pte"
CONFIG, README, CARD = "config.json", "README.md", "card.json"
CARD_VERSION = 1
_FILES = (WEIGHTS, ONNX, SOURCE, CONFIG, README, LITERT, LITERT_INT8, EXECUTORCH)
_MAY_BE_MISSING = (SOURCE, LITERT, LITERT_INT8, EXECUTORCH)
_MARK = ".donna-export.json"  # sums of what an export under way writes, and of what was there


def check_replaceable(folder: Path) -> None:
    """Refuse to write over files that are not as an export left them, finished or not.

    Raises:
        ConfigError: there is one.
    """
    sums = _known_sums(folder)
    for name in (*_FILES, CARD):
        path = folder / name
        ours = bool(sums) if name == CARD else path.exists() and file_sha256(path) in sums
        if path.exists() and not ours:
            raise ConfigError(
                f"An export must not write over what it did not write, but {path} is there and is "
                "not as an export left it. Give another --to, or move the file."
            )


def fill(folder: Path, made: Path, card: Mapping[str, Any]) -> list[Path]:
    """Copy the files of an export into its folder; one that was ended midway can be repeated.

    Args:
        folder: made where it is not.
        made: has the files, but for the card. What it lacks of those that may be missing is
            removed from the folder, since it is of another network.
        card: what is known of the network; gets the files' sums.

    Returns:
        The files.
    """
    missing = [name for name in _MAY_BE_MISSING if not (made / name).exists()]
    names = [name for name in _FILES if name not in missing]
    sums = {name: file_sha256(made / name) for name in names}
    write_json(folder / _MARK, {"sums": sorted({*_known_sums(folder), *sums.values()})})
    (folder / CARD).unlink(missing_ok=True)  # a card is there only with the files it is of
    for name in names:
        write_atomic(folder / name, (made / name).read_bytes())
    for name in missing:
        (folder / name).unlink(missing_ok=True)
    write_json(folder / CARD, {**card, "files": sums})
    (folder / _MARK).unlink()
    return [folder / name for name in (*names, CARD)]


def _known_sums(folder: Path) -> set[str]:
    """SHA-256 of the files that exports wrote there."""
    card, mark = (read_json(folder / name) or {} for name in (CARD, _MARK))
    return {*card.get("files", {}).values(), *mark.get("sums", ())}
