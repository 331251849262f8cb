"""Exports a finetuned network of a run: weights, ONNX, a Python file and a card, all checked."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from donna_ray.artifacts import Artifact, StepFolder, file_sha256, finished_inputs, write_atomic
from donna_ray.assemble import untrained
from donna_ray.config import DataConfig, ReferenceConfig, RunConfig, load_config
from donna_ray.data import image_format
from donna_ray.errors import DonnaError
from donna_ray.export import check_onnx_error, export_onnx, onnx_error
from donna_ray.network import StagedNetwork
from donna_ray.records import Record, RecordStore
from donna_ray.reference import outline
from donna_ray.space import BlockSpec, register_modules
from donna_ray.standalone import standalone_source
from donna_ray.timm_models import model_arguments

__all__ = ["export_network"]

_WEIGHTS, _ONNX, _SOURCE, _CARD = "weights.safetensors", "model.onnx", "network.py", "card.json"
_TOLERANCE = 1e-4
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

    The ONNX model and the Python file (in a process of its own, where this package cannot be
    imported) must give the network's logits of random images to 1e-4.

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
            family is no longer there; or the check failed.
    """
    network = _Finetuned.find(root, architecture)
    module, source = network.build()
    images = torch.randn(_IMAGES, *module.input_shape, generator=torch.Generator().manual_seed(0))
    model = export_onnx(module, module.input_shape, dynamic_batch=dynamic_batch)
    for size in (1, _IMAGES) if dynamic_batch else (1,):
        check_onnx_error(onnx_error(model, module, images, batch_size=size))
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        (made / _WEIGHTS).write_bytes(network.store.weights_path(network.key).read_bytes())
        (made / _ONNX).write_bytes(model)
        (made / _SOURCE).write_text(source)
        _check_source(made, images, module)
        files = (_WEIGHTS, _ONNX, _SOURCE)
        card = network.card() | {
            "dynamic_batch": dynamic_batch,
            "files": {file: file_sha256(made / file) for file in files},
        }
        (made / _CARD).write_text(json.dumps(card, indent=2, allow_nan=False) + "\n")
        for file in (*files, _CARD):
            write_atomic(folder / file, (made / file).read_bytes())
    return [folder / file for file in (*files, _CARD)]


@dataclass(frozen=True)
class _Finetuned:
    """A finetuned network and what it was made from."""

    root: Path
    key: str
    record: Record
    store: RecordStore
    config: RunConfig
    reference: Artifact

    @classmethod
    def find(cls, root: Path, architecture: str) -> "_Finetuned":
        config = load_config(root / "config.yaml")
        keys: dict[str, str] = {}
        for artifact in _finished(root, "finetune"):
            for name, facts in artifact.result["networks"].items():
                keys.setdefault(name, facts["key"])
        matches = [name for name in keys if name.startswith(architecture)]
        if len(matches) != 1:
            raise DonnaError(
                f"The architecture must be one of the finetuned networks of {root} "
                f"({', '.join(sorted(keys)) or 'there are none'}), but {len(matches)} of them "
                f"begin with {architecture!r}. Give the beginning of one."
            )
        key, store = keys[matches[0]], RecordStore(root / "networks")
        record = store.get(key)
        found = None if record is None else _reference(root, record["reference"])
        if record is None or found is None:
            raise DonnaError(
                f"The network {matches[0]} must have its record and its reference in {root}, but "
                "one is missing, torn or altered. Run the same command again (`donna run`)."
            )
        inputs, reference = found
        # where the weights came from says nothing here, and a checkpoint may be gone
        model = ReferenceConfig.model_validate({**inputs["reference"], "weights": "train"})
        data = DataConfig.model_validate(inputs["data"])
        config = config.model_copy(update={"reference": model, "data": data})
        return cls(root, key, record, store, config, reference)

    def build(self) -> tuple[StagedNetwork, str]:
        """The network with its weights, in eval mode, and its source as one Python file."""
        config, classes = self.config, self.reference.result["classes"]
        register_modules(config.space.modules)
        model, reference, _ = outline(config, classes, load_weights=False)
        specs = [BlockSpec.from_json(block) for block in self.record["blocks"]]
        network = untrained(reference, specs)
        network.load_state_dict(self.store.weights(self.key))
        image = image_format(config.data)
        name = config.reference.model
        arguments = model_arguments(name, classes, image["channels"], image["size"])
        title = (
            f"{self.record['architecture']}: a network of {len(specs)} stages on the stem and head "
            f"of {name}.\n\nNeeds torch, timm and safetensors. `load()` gives it with its weights."
        )
        source = standalone_source(title, model, name, arguments, reference, specs)
        return network.requires_grad_(False).eval(), source

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
            "latency": self._latencies(),
            "data": self.config.data.model_dump(exclude={"loader_workers", "download"}),
            "images": teacher["images"],
            "classes": teacher["classes"],
            "preprocessing": teacher["preprocessing"],
            "reference": {name: teacher[name] for name in ("model", "accuracy", "weights_sha256")},
            "digests": {"network": self.key, "reference": self.reference.digest},
            "packages": {name: version(name) for name in _PACKAGES},
        }

    def _latencies(self) -> list[dict[str, Any]]:
        """As the searches measured it, the newest one of each device."""
        found: dict[str, dict[str, Any]] = {}
        for artifact in _finished(self.root, "search"):
            for point in artifact.result["front"]:
                if point["id"] == self.record["architecture"]:
                    found.setdefault(point["latency"]["device"], point["latency"])
        return list(found.values())


def _finished(root: Path, step: str) -> Iterator[Artifact]:
    """The intact artifacts of a step, the newest first."""
    for inputs in finished_inputs(root, step):
        artifact = StepFolder(root, step, inputs).load()
        if artifact is not None:
            yield artifact


def _reference(root: Path, digest: str) -> tuple[dict[str, Any], Artifact] | None:
    for inputs in finished_inputs(root, "reference"):
        artifact = StepFolder(root, "reference", inputs).load()
        if artifact is not None and artifact.digest == digest:
            return inputs, artifact
    return None


@torch.no_grad()
def _check_source(folder: Path, images: Tensor, network: StagedNetwork) -> None:
    with tempfile.TemporaryDirectory() as name:
        given, logits = Path(name, "images"), Path(name, "logits")
        safetensors.torch.save_file({"images": images}, given)
        command = [sys.executable, "-c", _LOAD, str(folder), str(given), str(logits)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DonnaError(
                "The Python file of a network must build it without this package, but raised: "
                f"{done.stderr.strip()[-2000:]}\nA block family must need no more than functions "
                "and classes at the top level of its file. Change it, or report this as a defect."
            )
        error = (safetensors.torch.load_file(logits)["logits"] - network(images)).abs().max()
    if not error <= _TOLERANCE:
        raise DonnaError(
            f"The Python file of a network must give its logits to {_TOLERANCE}, but differs by "
            f"{error:.2e}. Report this as a defect."
        )
