"""Exports a finetuned network of a run: weights, ONNX, a Python file and a card, all checked."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import safetensors.torch
import timm
import torch
from torch import Tensor

from device_farm.ending import one_line
from donna_ray.config import DataConfig, ReferenceConfig, RunConfig, load_config
from donna_ray.data import image_format, origin_of_test, used_preprocessing
from donna_ray.data.held_out import named_test
from donna_ray.errors import DonnaError
from donna_ray.export.choice import choose, finished, tests_of
from donna_ray.export.folder import (
    CARD_VERSION,
    CONFIG,
    ONNX,
    README,
    SOURCE,
    WEIGHTS,
    check_replaceable,
    fill,
)
from donna_ray.export.hub import model_card, timm_config
from donna_ray.export.phones import check_known, phone_files
from donna_ray.export.standalone import entry_name, standalone_source, timm_source
from donna_ray.finetune.assemble import untrained
from donna_ray.onnx_export import (
    TOLERANCE,
    check_onnx_error,
    export_onnx,
    logits_error,
    onnx_error,
)
from donna_ray.reference.build import outline
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.load import data_of, known_of
from donna_ray.reference.network import StagedNetwork, own_weights
from donna_ray.reference.timm_models import model_arguments, other_size
from donna_ray.space import UNSHRUNK, BlockSpec, register_modules
from donna_ray.space.copied import COPIED
from donna_ray.storage.artifacts import Artifact, write_json
from donna_ray.storage.records import Record, RecordStore
from donna_ray.versions import package_versions

__all__ = ["export_network"]

_IMAGES = 3
_RUN = """
import sys
import safetensors.torch, torch
sys.modules["donna_ray"] = None  # to import it is an error
sys.path.insert(0, "")
import network
with torch.no_grad():
    output = network.load()(safetensors.torch.load_file("images")["images"])
safetensors.torch.save_file({"logits": output.contiguous()}, "logits")
"""


def export_network(
    root: Path,
    architecture: str,
    folder: Path,
    *,
    dynamic_batch: bool = False,
    also: Collection[str] = (),
) -> list[Path]:
    """Write a finetuned network of a run for others to use.

    It is built from the code that is there now, and must give the logits of the ONNX model that the
    finetuning kept (of random images; ``logits_error`` up to 1e-4), which is the one written for
    one image. So must an ONNX model for any number of them, and the Python file in a process of its
    own where this package cannot be imported.

    Args:
        root: the run folder.
        architecture: an id or the beginning of one, among the networks of the step `finetune`.
        folder: gets `model.safetensors`, `model.onnx`, `network.py`, `config.json` (timm's, with
            the preprocessing), `README.md` (a model card) and `card.json`; made where it is not.
            Where the Python file cannot be made, it gets the others, before that is raised.
        dynamic_batch: the ONNX model takes any number of images, not one.
        also: more files: `model.tflite` (for LiteRT), `model-int8.tflite` (with integers at both
            ends; the run's images are read), `model.pte` (for ExecuTorch).

    Returns:
        The files.

    Raises:
        ConfigError: the folder has a file of one of these names that no export wrote; no network,
            or more than one, has this id.
        DonnaError: its record, its reference or a block family is no longer there; the code of a
            block family or timm is another one than that of the finetuning; a check failed; a
            package that a file needs is not installed; or the Python file cannot be made.
    """
    check_known(also)
    check_replaceable(folder)
    network = _Finetuned.find(root, architecture)
    module, write_source, weights = network.build()
    images = torch.randn(_IMAGES, *module.input_shape, generator=torch.Generator().manual_seed(0))
    model = network.checked_onnx(module, images)
    data = partial(data_of, network.config, network.reference)
    more = phone_files(also, model, module, images, data)
    if dynamic_batch:
        model = _of_any_batch(module, images)
    model = _named_outputs(model, network.class_names)
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        safetensors.torch.save_file(weights, made / WEIGHTS, metadata={"format": "pt"})
        (made / ONNX).write_bytes(model)
        failure = _source_failure(write_source, made, images, module)
        for file, (content, _) in more.items():
            (made / file).write_bytes(content)
        losses = {file: lost for file, (_, lost) in more.items()}
        card = network.described(made, dynamic_batch, losses, has_source=not failure)
        files = fill(folder, made, card)
    if failure:
        raise DonnaError(f"{folder} has all files of the export but {SOURCE}. {failure}")
    return files


@dataclass(frozen=True)
class _Finetuned:
    """A finetuned network and what it was made from; its latency as its search measured it.

    `tests`: what the test found, of the network and of the reference.
    """

    key: str
    latency: list[dict[str, Any]]
    tests: tuple[dict[str, Any], dict[str, Any]]
    record: Record
    store: RecordStore
    config: RunConfig
    reference: Artifact

    @classmethod
    def find(cls, root: Path, beginning: str) -> "_Finetuned":
        config = load_config(root / "config.yaml")
        name, key, latency = choose(root, beginning)
        tests = tests_of(root, name, key)
        store = RecordStore(root / "networks")
        record = store.get(key) or {"files": {}}
        artifacts = finished(root, "reference")
        identity = record.get("reference")
        found = [each for each in artifacts if reference_identity(each[1]) == identity]
        if "onnx" not in record["files"] or not found:
            raise DonnaError(
                f"The network {name} must have its record and its reference in {root}, but one is "
                "missing, torn or altered. Run the same command again (`donna run`)."
            )
        inputs, reference = found[0]
        model = ReferenceConfig.model_validate(inputs["reference"])
        data = DataConfig.model_validate(inputs["data"])
        if data.test_fraction is None:  # no key of a reference names its test
            origin = tests[1].get("test_from") or origin_of_test(config.data)
            data = data.model_copy(update={"test_split": named_test(origin)})
        config = config.model_copy(update={"reference": model, "data": data})
        return cls(key, latency, tests, record, store, config, reference)

    def build(self) -> tuple[StagedNetwork, Callable[[], str], dict[str, Tensor]]:
        """The network in eval mode, what writes it as one Python file, and the weights of that."""
        config = self.config
        register_modules(config.space.modules)
        model, reference, _ = outline(config, load_weights=False, **known_of(self.reference))
        specs, weights = self.specs, self.store.weights(self.key)
        network = untrained(reference, specs)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise self._other_code(f"its weights do not fit: {error}") from error
        name, architecture = config.reference.model, self.record["architecture"]
        arguments = self._arguments
        if self.is_timms:
            reference.load_state_dict(weights)  # whose modules are the model's
            write, weights = partial(timm_source, architecture, name, arguments), own_weights(model)
        else:
            made = (architecture, self._entry, model, name, arguments, reference, specs)
            write = partial(standalone_source, *made)
        return network.requires_grad_(False).eval(), write, weights

    def described(
        self, made: Path, dynamic_batch: bool, losses: dict[str, Any], *, has_source: bool
    ) -> dict[str, Any]:
        """The card, from which timm's configuration and the model card are written."""
        card = self.card() | {"dynamic_batch": dynamic_batch, "phones": losses}
        write_json(made / CONFIG, timm_config(card, self.timm_arguments()))
        readme = model_card(card, is_timms=self.is_timms, has_source=has_source)
        (made / README).write_text(readme, encoding="utf-8")
        return card

    @property
    def specs(self) -> list[BlockSpec]:
        """One block a stage."""
        return [BlockSpec.from_json(block) for block in self.record["blocks"]]

    @property
    def is_timms(self) -> bool:
        """It is a model of timm as it is: every stage is the reference's own."""
        factory = timm.model_entrypoint(self.config.reference.model)
        whole = all(spec == UNSHRUNK for spec in self.specs)
        return whole and factory.__module__.partition(".")[0] == "timm"

    @property
    def _arguments(self) -> dict[str, Any]:
        image, known = image_format(self.config.data), known_of(self.reference)
        name = self.config.reference.model
        size = image["size"] or other_size(name, known["preprocessing"]["input_size"])
        of_images = model_arguments(name, known["classes"], image["channels"], size)
        return {**known["arguments"], **of_images}

    def timm_arguments(self) -> dict[str, Any]:
        """Under which name and with which arguments timm makes it."""
        if self.is_timms:
            return {"architecture": self.config.reference.model, "model_args": self._arguments}
        return {"architecture": self._entry}

    @property
    def _entry(self) -> str:
        return entry_name(self.record["architecture"], self.record["weights_sha256"])

    @torch.no_grad()
    def checked_onnx(self, network: StagedNetwork, images: Tensor) -> bytes:
        """What the finetuning exported; raises if the network is another. Images (N, C, H, W)."""
        model = (Path(self.store.url) / f"{self.key}.onnx").read_bytes()
        error = onnx_error(model, network, images)
        if not error <= TOLERANCE:
            raise self._other_code(f"its logits differ by {error:.2e}")
        return model

    def _other_code(self, difference: str) -> DonnaError:
        return DonnaError(
            f"A network must be built as it was finetuned (networks/{self.key}.onnx, logits "
            f"to {TOLERANCE}), but the code of a block family or timm has changed since the "
            f"finetuning: {difference}. Bring that code back (results.json names timm's version), "
            "or make the run again from the start (`donna run --fresh`)."
        )

    @property
    def class_names(self) -> list[str]:
        """In the order of the outputs; empty where the data have none."""
        names: list[str] = self.reference.result["class_names"]
        return names

    def card(self) -> dict[str, Any]:
        """All that is known about it, as plain JSON."""
        names = (
            *("architecture", "accuracy", "zero_shot_accuracy", "params", "macs", "epochs"),
            *("recipe", "seed", "blocks"),
        )
        teacher, (own, others) = self.reference.result, self.tests
        return {
            "version": CARD_VERSION,
            "run": self.config.name,
            **{name: self.record[name] for name in names},
            **own,
            "latency": self.latency,
            "data": self.config.data.model_dump(exclude={"loader_workers", "download"}),
            "images": teacher["images"],
            "classes": teacher["classes"],
            "class_names": self.class_names,
            "preprocessing": used_preprocessing(self.config.data, teacher["preprocessing"]),
            "reference": {
                **{name: teacher[name] for name in ("model", "accuracy", "weights_sha256")},
                **others,
            },
            "digests": {"network": self.key, "reference": reference_identity(self.reference)},
            "packages": package_versions(),
        }


def _named_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """The ONNX model with its classes in the metadata: `classes`, a JSON list in their order."""
    if not names:
        return model
    proto = onnx.load_model_from_string(model)
    onnx.helper.set_model_props(proto, {"classes": json.dumps(names)})
    return proto.SerializeToString()


def _of_any_batch(module: StagedNetwork, images: Tensor) -> bytes:
    """ONNX for any number of images, checked for two numbers."""
    model = export_onnx(module, module.input_shape, dynamic_batch=True)
    for size in (1, _IMAGES):
        check_onnx_error(onnx_error(model, module, images, batch_size=size))
    return model


def _source_failure(
    write: Callable[[], str], folder: Path, images: Tensor, network: StagedNetwork
) -> str:
    """Why there is no Python file of the network; empty where it is in the folder, and checked."""
    try:
        (folder / SOURCE).write_text(write(), encoding="utf-8")
        _check_source(folder, images, network)
    except OSError:
        raise
    except Exception as error:  # of users' code, whatever it is
        (folder / SOURCE).unlink(missing_ok=True)
        if isinstance(error, DonnaError):
            return str(error)
        return f"{COPIED}, but {type(error).__name__} was raised: {one_line(str(error))}."
    return ""


@torch.no_grad()
def _check_source(folder: Path, images: Tensor, network: StagedNetwork) -> None:
    error = logits_error(_logits_alone(folder, images), network(images))
    if not error <= TOLERANCE:
        raise DonnaError(
            f"The Python file of a network must give its logits to {TOLERANCE}, but differs by "
            f"{error:.2e}. Report this as a defect."
        )


def _logits_alone(folder: Path, images: Tensor) -> Tensor:
    """What the Python file gives for images (N, C, H, W) in a process without this package."""
    safetensors.torch.save_file({"images": images}, folder / "images")
    command = [sys.executable, "-c", _RUN]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise DonnaError(
            "The Python file of a network must build it without this package, but raised "
            f"{reason.rstrip('.')}. {COPIED}. Change it, or report this as a defect."
        )
    return safetensors.torch.load_file(folder / "logits")["logits"]
