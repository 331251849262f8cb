"""Exports a finetuned network of a run: weights, ONNX, a Python file and a card, all checked."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from donna_ray.config import DataConfig, ReferenceConfig, RunConfig, load_config
from donna_ray.data import image_format
from donna_ray.errors import DonnaError
from donna_ray.export.standalone import standalone_source
from donna_ray.finetune.assemble import untrained
from donna_ray.onnx_export import (
    TOLERANCE,
    check_onnx_error,
    export_onnx,
    logits_error,
    onnx_error,
    onnx_logits,
)
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.step import outline
from donna_ray.reference.timm_models import model_arguments
from donna_ray.space import BlockSpec, register_modules
from donna_ray.storage.artifacts import (
    Artifact,
    StepFolder,
    file_sha256,
    finished_inputs,
    read_json,
    write_atomic,
)
from donna_ray.storage.records import Record, RecordStore

__all__ = ["export_network"]

_WEIGHTS, _ONNX, _SOURCE, _CARD = "weights.safetensors", "model.onnx", "network.py", "card.json"
_IMAGES = 3
_PACKAGES = ("donna-ray", "torch", "timm", "safetensors", "onnx")
_LOAD = """
import sys
import safetensors.torch, torch
sys.modules["donna_ray"] = None  # to import it is an error
folder, images, logits = sys.argv[1:]
sys.path.insert(0, folder)
import network
with torch.no_grad():
    output = network.load()(safetensors.torch.load_file(images)["images"])
safetensors.torch.save_file({"logits": output.contiguous()}, logits)
"""


def export_network(
    root: Path, architecture: str, folder: Path, *, dynamic_batch: bool = False
) -> list[Path]:
    """Write a finetuned network of a run for others to use.

    It is built from the code that is there now, and must give the logits of the ONNX model that the
    finetuning kept (of random images; ``logits_error`` up to 1e-4). So must the new ONNX model and
    the Python file, the latter in a process of its own where this package cannot be imported.

    Args:
        root: the run folder.
        architecture: an id or the beginning of one, among the networks of the step `finetune`.
        folder: gets `weights.safetensors`, `model.onnx`, `network.py` and `card.json`; made where
            it is missing.
        dynamic_batch: the ONNX model takes any number of images, not one.

    Returns:
        The files.

    Raises:
        DonnaError: no network, or more than one, has this id; its record, its reference or a block
            family is no longer there; the code of a block family or timm is another one than that
            of the finetuning; or a check failed.
    """
    network = _Finetuned.find(root, architecture)
    module, source = network.build()
    images = torch.randn(_IMAGES, *module.input_shape, generator=torch.Generator().manual_seed(0))
    network.check_code(module, images)
    model = export_onnx(module, module.input_shape, dynamic_batch=dynamic_batch)
    for size in (1, _IMAGES) if dynamic_batch else (1,):
        check_onnx_error(onnx_error(model, module, images, batch_size=size))
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        safetensors.torch.save_file(network.store.weights(network.chosen.key), made / _WEIGHTS)
        (made / _ONNX).write_bytes(model)
        (made / _SOURCE).write_text(source, encoding="utf-8")
        _check_source(made, images, module)
        files = (_WEIGHTS, _ONNX, _SOURCE)
        card = network.card() | {
            "dynamic_batch": dynamic_batch,
            "files": {file: file_sha256(made / file) for file in files},
        }
        (made / _CARD).write_text(json.dumps(card, indent=2, allow_nan=False) + "\n")
        (folder / _CARD).unlink(missing_ok=True)  # a card is there only with the files it is of
        for file in (*files, _CARD):
            write_atomic(folder / file, (made / file).read_bytes())
    return [folder / file for file in (*files, _CARD)]


@dataclass(frozen=True)
class _Finetuned:
    """A finetuned network and what it was made from."""

    chosen: "_Choice"
    record: Record
    store: RecordStore
    config: RunConfig
    reference: Artifact

    @classmethod
    def find(cls, root: Path, architecture: str) -> "_Finetuned":
        # where the reference's weights came from says nothing here, and a checkpoint may be gone
        config = load_config(root / "config.yaml", ["reference.weights=train"])
        chosen = _choose(root, architecture)
        key, store = chosen.key, RecordStore(root / "networks")
        record = store.get(key)
        found = None if record is None else _reference(root, record["reference"])
        if record is None or "onnx" not in record["files"] or found is None:
            raise DonnaError(
                f"The network {chosen.architecture} must have its record and its reference in "
                f"{root}, but one is missing, torn or altered. Run the same command again "
                "(`donna run`)."
            )
        inputs, reference = found
        model = ReferenceConfig.model_validate({**inputs["reference"], "weights": "train"})
        data = DataConfig.model_validate(inputs["data"])
        config = config.model_copy(update={"reference": model, "data": data})
        return cls(chosen, record, store, config, reference)

    def build(self) -> tuple[StagedNetwork, str]:
        """The network with its weights, in eval mode, and its source as one Python file."""
        config, classes = self.config, self.reference.result["classes"]
        register_modules(config.space.modules)
        model, reference, _ = outline(config, classes, load_weights=False)
        specs = [BlockSpec.from_json(block) for block in self.record["blocks"]]
        network = untrained(reference, specs)
        try:
            network.load_state_dict(self.store.weights(self.chosen.key))
        except RuntimeError as error:
            raise self._other_code(f"its weights do not fit: {error}") from error
        image = image_format(config.data)
        name = config.reference.model
        arguments = model_arguments(name, classes, image["channels"], image["size"])
        title = (
            f"{self.record['architecture']}: a network of {len(specs)} stages on the stem and head "
            f"of {name}.\n\nNeeds torch, timm and safetensors. `load()` gives it with its weights."
        )
        source = standalone_source(title, model, name, arguments, reference, specs)
        return network.requires_grad_(False).eval(), source

    @torch.no_grad()
    def check_code(self, network: StagedNetwork, images: Tensor) -> None:
        """Raise if the network is not what the finetuning exported; images (N, C, H, W)."""
        stored = Path(self.store.url) / f"{self.chosen.key}.onnx"
        error = logits_error(onnx_logits(stored.read_bytes(), images), network(images))
        if not error <= TOLERANCE:
            raise self._other_code(f"its logits differ by {error:.2e}")

    def _other_code(self, difference: str) -> DonnaError:
        return DonnaError(
            f"A network must be built as it was finetuned (networks/{self.chosen.key}.onnx, logits "
            f"to {TOLERANCE}), but the code of a block family or timm has changed since the "
            f"finetuning: {difference}. Bring that code back (results.json names timm's version), "
            "or make the run again from the start (`donna run --fresh`)."
        )

    def card(self) -> dict[str, Any]:
        """All that is known about it, as plain JSON."""
        names = (
            *("architecture", "accuracy", "zero_shot_accuracy", "params", "macs", "epochs"),
            *("recipe", "seed", "blocks"),
        )
        teacher = self.reference.result
        return {
            "version": 1,
            "run": self.config.name,
            **{name: self.record[name] for name in names},
            "latency": self.chosen.latencies,
            "data": self.config.data.model_dump(exclude={"loader_workers", "download"}),
            "images": teacher["images"],
            "classes": teacher["classes"],
            "preprocessing": teacher["preprocessing"],
            "reference": {name: teacher[name] for name in ("model", "accuracy", "weights_sha256")},
            "digests": {"network": self.chosen.key, "reference": self.reference.digest},
            "packages": {name: version(name) for name in _PACKAGES},
        }


@dataclass(frozen=True)
class _Choice:
    """Which network of a run: its id, its key, and its latency as its search measured it."""

    architecture: str
    key: str
    latencies: list[dict[str, Any]]


def _choose(root: Path, beginning: str) -> _Choice:
    """The network that results.json names; where it names none of this id, the only one."""
    named = _named(root)
    finetuned = list(_finished(root, "finetune"))
    names = set(named).union(*(artifact.result["networks"] for _, artifact in finetuned))
    matches = [name for name in names if name.startswith(beginning)]
    if len(matches) != 1:
        raise DonnaError(
            f"The architecture must be one of the finetuned networks of {root} "
            f"({', '.join(sorted(names)) or 'there are none'}), but {len(matches)} of them "
            f"begin with {beginning!r}. Give the beginning of one."
        )
    name = matches[0]
    searches: dict[str, list[str]] = {}  # by key, the newest first
    for inputs, artifact in finetuned:
        if name in artifact.result["networks"]:
            key = artifact.result["networks"][name]["key"]
            searches.setdefault(key, []).extend(inputs["searches"].values())
    point = named.get(name)
    if point is None and len(searches) != 1:
        raise DonnaError(
            f"The network {name} must be in results.json or have one key, but {root} has "
            f"{', '.join(sorted(searches))} under other settings each. Give the settings that you "
            "mean to `donna run` again: it writes results.json."
        )
    key = next(iter(searches)) if point is None else PurePosixPath(point["weights"]).stem
    shown = {} if point is None else point["latency"]
    return _Choice(name, key, _latencies(root, name, searches.get(key, []), shown))


def _named(root: Path) -> dict[str, dict[str, Any]]:
    """The finetuned points of the front in results.json, by id; none where it is missing."""
    results = read_json(root / "results.json")
    scenarios = results.get("scenarios", []) if isinstance(results, dict) else []
    fronts = (scenario["front"] for scenario in scenarios)
    return {
        point["id"]: point for front in fronts for point in front if point["weights"] is not None
    }


def _latencies(
    root: Path, architecture: str, searches: list[str], shown: dict[str, Any]
) -> list[dict[str, Any]]:
    """What the search measured that the network is of; `shown`: that of results.json."""
    scenarios = sorted(path.name for path in (root / "search").glob("*") if path.is_dir())
    found = {
        artifact.digest: point["latency"]
        for scenario in scenarios
        for _, artifact in _finished(root, f"search/{scenario}")
        for point in artifact.result["front"]
        if point["id"] == architecture
    }
    measured = [found[search] for search in searches if search in found]
    return [each for each in measured if shown.items() <= each.items()][:1]


def _finished(root: Path, step: str) -> Iterator[tuple[dict[str, Any], Artifact]]:
    """Inputs of the intact artifacts of a step, and these, the newest first."""
    for inputs in finished_inputs(root, step):
        artifact = StepFolder(root, step, inputs).load()
        if artifact is not None:
            yield inputs, artifact


def _reference(root: Path, digest: str) -> tuple[dict[str, Any], Artifact] | None:
    reference = _finished(root, "reference")
    return next((found for found in reference if found[1].digest == digest), None)


@torch.no_grad()
def _check_source(folder: Path, images: Tensor, network: StagedNetwork) -> None:
    with tempfile.TemporaryDirectory() as name:
        given, logits = Path(name, "images"), Path(name, "logits")
        safetensors.torch.save_file({"images": images}, given)
        command = [sys.executable, "-c", _LOAD, str(folder), str(given), str(logits)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip()[-2000:]
            raise DonnaError(
                "The Python file of a network must build it without this package, but raised: "
                f"{reason}\nA block family must need no more than functions "
                "and classes at the top level of its file. Change it, or report this as a defect."
            )
        error = logits_error(safetensors.torch.load_file(logits)["logits"], network(images))
    if not error <= TOLERANCE:
        raise DonnaError(
            f"The Python file of a network must give its logits to {TOLERANCE}, but differs by "
            f"{error:.2e}. Report this as a defect."
        )
