"""A run folder with one finetuned network, and what an export of it loads."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from device_farm.connectors.onnxruntime import OnnxRuntimeSettings
from donna_ray.config import ReferenceTraining, RunConfig
from donna_ray.data import inputs_without_test, load_data, origin_of_test
from donna_ray.finetune.assemble import untrained
from donna_ray.onnx_export import export_onnx
from donna_ray.reference.build import outline
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.told_arguments import told_arguments
from donna_ray.space import BlockSpec, register_modules
from donna_ray.storage.artifacts import StepFolder
from donna_ray.storage.records import RecordStore
from donna_ray.training.loop import cross_entropy, seeded
from donna_ray.training.trainer import Trainer

SETTINGS = OnnxRuntimeSettings(max_seconds=0.5).model_dump(mode="json")
LATENCY = {"device": "cpu", "connector": "onnxruntime", "settings": SETTINGS, "median_ms": 1}
INVERTED = BlockSpec.of(
    "inverted_residual",
    {"kernel": 3, "expansion": 2, "depth": 1, "activation": "relu", "squeeze_excite": "hard"},
)
TEST = {"test_accuracy": 0.75, "test_low": 0.5, "test_high": 0.875, "test_images": 8}
NAMES = [f"class {number}" for number in range(10)]


class Finished:
    """A run folder with one finetuned network."""

    def __init__(
        self,
        root: Path,
        specs: list[BlockSpec],
        epochs: int = 0,
        names: Sequence[str] = NAMES,
        **values: Any,
    ) -> None:
        """The weights are random, but for so many epochs on the data; names are of the classes."""
        self.root, self.id = root, "abcdef0123456789"
        values = {"space": {"preset": "micro"}, **values}
        config = RunConfig.model_validate(values)
        (root / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
        register_modules(config.space.modules)
        classes = 10
        with seeded(3):
            _, reference, preprocessing = outline(config, classes, load_weights=False)
            self.network = untrained(reference, specs).eval()
        self.preprocessing = preprocessing
        if epochs:
            recipe, data = ReferenceTraining(epochs=epochs), load_data(config.data, preprocessing)
            trainer = Trainer(self.network, data, recipe, 0, cross_entropy)
            while not trainer.finished():
                trainer.train_epoch()
            self.network = trainer.result().requires_grad_(False)
        teacher = {"classes": classes, "preprocessing": preprocessing, "accuracy": 0.9}
        teacher |= {
            "model": config.reference.model,
            "weights_sha256": "",
            "images": {},
            "class_names": list(names),
            "stages": [],
            "arguments": told_arguments(config.reference),
            "fingerprints": {},
        }
        self.origin = origin_of_test(config.data)
        inputs = {
            "reference": config.reference.model_dump(),
            "data": inputs_without_test(config.data),
        }
        made = StepFolder(root, "reference", inputs).commit(teacher, [], 0.0)
        record = {
            "architecture": self.id,
            "blocks": [spec.to_json() for spec in specs],
            "reference": reference_identity(made),
            **dict.fromkeys(("accuracy", "zero_shot_accuracy", "params", "macs"), 0.5),
            **{"epochs": 1, "recipe": {}, "seed": 0},
        }
        onnx = export_onnx(self.network, self.network.input_shape)
        networks = RecordStore(root / "networks")
        networks.put("key", record, self.network.state_dict(), files={"onnx": onnx})
        self.finetuned(LATENCY, {self.id: {"key": "key"}, "0123": {"key": "other"}})

    def finetuned(self, latency: dict[str, Any], networks: dict[str, Any]) -> None:
        """Add a search that measured this, and what was finetuned after it."""
        front = {"front": [{"id": self.id, "latency": latency}]}
        inputs = {"device": {"precision": "fp32"}, "measured": latency}
        search = StepFolder(self.root, "search/default", inputs).commit(front, [], 0.0)
        inputs = {"searches": {"default": search.digest}}
        networks = {name: {**facts, **TEST} for name, facts in networks.items()}
        result = {"networks": networks, "reference": {"test_from": self.origin}}
        StepFolder(self.root, "finetune", inputs).commit(result, [], 0.0)


def loaded(folder: Path) -> Any:
    """The network of the Python file."""
    spec = importlib.util.spec_from_file_location("exported_network", folder / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()
