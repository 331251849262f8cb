"""The notebook of the documentation is run as it is written; and what a study refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import donna_ray as donna
from donna_ray.distill import students
from donna_ray.distill.students import BlockJob

DOCUMENT = Path(__file__).parents[2] / "docs" / "notebook.md"


def test_notebook_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    first, second = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    exec(compile(first, "notebook, first cell", "exec"), known)
    exec(compile(second, "notebook, second cell", "exec"), known)
    assert len([line for line in second.splitlines() if line.strip()]) < 22
    study, front, network = known["study"], known["front"], known["network"]
    assert study.blocks.size == 16
    assert all(min(stage) < 1 for stage in study.nsr)
    assert [each.latency_ms for each in front] == sorted(each.latency_ms for each in front)
    assert known["mean_iou"](network, known["validation"]) == known["score"] > 0.3
    session = onnxruntime.InferenceSession(tmp_path / "segmenter" / "model.onnx")
    image, _ = next(iter(known["validation"]))
    given = session.run(None, {"input": image[:1].numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(given, network(image[:1]).numpy(), atol=1e-3)
    assert not list(tmp_path.glob("runs"))


class Boxes(nn.Module):
    """A detector: its output is one tensor, its targets are mappings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.layer1 = nn.Conv2d(4, 8, 3, 2, 1)
        self.layer2 = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer2(self.layer1(self.stem(images))).mean((2, 3))


def loader() -> DataLoader[Any]:
    targets = [{"box": torch.ones(2), "name": str(number)} for number in range(8)]
    return DataLoader(list(zip(torch.randn(8, 1, 8, 8), targets, strict=True)), 4)  # type: ignore[arg-type]


def loss(output: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
    return (output[:, :2] - targets["box"]).square().mean()


def boxes(model: nn.Module | None = None) -> donna.Study:
    given = {"loss": loss, "score": lambda *_: 0.5}
    return donna.Study(model or Boxes(), loader(), loader(), stages=["layer1", "layer2"], **given)


BLOCKS = [
    donna.BlocksConfig(
        family="residual_basic",
        options={
            "kernel": [3],
            "ratio": [0.5, 1],
            "depth": [1, 2],
            "activation": ["relu"],
            "squeeze_excite": [False],
        },
    )
]


def test_targets_of_any_kind_and_what_comes_too_early() -> None:
    scores = iter([0.1, 0.5, 0.3, 0.9, 0.2, 0.6, 0.4, 1.7])
    study = donna.Study(
        Boxes(),
        loader(),
        loader(),
        stages=["layer1", "layer2"],
        loss=loss,
        score=lambda *_: next(scores),
    )
    with pytest.raises(donna.DonnaError, match="Call `space` first"):
        study.distil()
    study.space(BLOCKS)
    with pytest.raises(donna.DonnaError, match="Call `distil` first"):
        study.fit()
    study.distil(epochs=1)
    with pytest.raises(donna.DonnaError, match="Call `fit` first"):
        study.search(lambda network: 1.0)
    study.fit(samples=6, epochs=1)
    costs = study.search(lambda network: float(sum(p.numel() for p in network.parameters())))
    assert costs
    with pytest.raises(donna.DonnaError, match="limit_ms must be feasible"):
        study.search(lambda network: 5.0, limit_ms=1.0)
    with pytest.raises(donna.DonnaError, match=r"of the study.* be finite, but is nan"):
        study.search(lambda network: float("nan"))
    assert all(0 <= each.predicted <= 1 for each in costs)
    study.finetune(costs[0], epochs=1)
    with pytest.raises(donna.DonnaError, match=r"must be 0 to 1, .* but is 1\.7"):
        study.finetune((0, 0), epochs=1)


def test_block_that_raises_is_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that computes on a CPU alone."""
    study = boxes()
    study.space(BLOCKS)
    made, count = students._new_block, study.blocks.size

    def new_block(job: BlockJob, *given: Any) -> nn.Module:
        block = made(job, *given)
        if job.stage == 0 and job.spec == study.blocks.stages[0].choices[0]:
            monkeypatch.setattr(block, "forward", Mock(side_effect=TypeError("a GPU's tensor")))
        return block

    monkeypatch.setattr(students, "_new_block", new_block)
    with pytest.warns(UserWarning, match="stage 0 failed and is left out: it raised TypeError"):
        nsr = study.distil(epochs=1)
    assert [len(stage) for stage in nsr] == [3, 4]
    assert study.blocks.size == 12 < count


class Hidden(Boxes):
    """Torch does not note what it changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.doubling = Doubling()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.layer1(self.stem(images))
        self.doubling(features)
        return self.layer2(features).mean((2, 3))


class Doubling(nn.Module):
    def forward(self, features: torch.Tensor) -> None:
        features.data.mul_(2)


def test_weights_that_are_not_numbers_are_named() -> None:
    model = Boxes()
    nn.init.constant_(model.layer1.weight, float("nan"))
    with pytest.raises(donna.DonnaError, match=r"Boxes gives NaN: its layer1\.weight has NaN"):
        boxes(model)


def test_network_that_is_exported_stays_as_it_is(tmp_path: Path) -> None:
    study = boxes()
    network = study.reference.requires_grad_(True).train()
    study.export(network, tmp_path)
    assert network.training
    assert all(each.requires_grad for each in network.parameters())


def hooked() -> nn.Module:
    model = Boxes()
    model.register_forward_pre_hook(lambda module, given: (given[0] * 2 - 1,))
    return model


@pytest.mark.parametrize(
    ("model", "remedy"), [(Hidden(), "choose other stages"), (hooked(), "forward hooks of its own")]
)
def test_cut_that_computes_something_else_is_refused(model: nn.Module, remedy: str) -> None:
    words = f"must equal {type(model).__name__} to 1e-05, but differs.*{remedy}"
    with pytest.raises(donna.DonnaError, match=words):
        boxes(model)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield torch.zeros(1, 8, 8), 0


IMAGES, LABELS = torch.randn(8, 1, 8, 8), torch.zeros(8)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Endless(), "tell its length"),
        ([{"image": IMAGES[0]}] * 8, "the first is a dict"),
        (TensorDataset(IMAGES, LABELS, LABELS), "the first is a list of 3"),
        (TensorDataset(IMAGES.double(), LABELS), "float64"),
        (TensorDataset(IMAGES.byte(), LABELS), "uint8"),
        (TensorDataset(IMAGES[:, 0], LABELS), r"shape \(4, 8, 8\)"),
        ([("image", 0)] * 8, "but are tuple"),
        (TensorDataset(IMAGES[:0], LABELS[:0]), "must have a batch"),
        (TensorDataset(IMAGES[..., 1:], LABELS), r"one shape, but are .*\(1, 8, 7\)"),
    ],
)
@pytest.mark.parametrize("place", ["train", "validation"])
def test_loader_of_another_kind_is_told_what_to_give(data: Any, words: str, place: str) -> None:
    loaders = {"train": loader(), "validation": loader(), place: DataLoader(data, 4)}
    with pytest.raises(donna.ConfigError, match=words):
        donna.Study(Boxes(), **loaders, stages=["layer1", "layer2"])


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_model_of_another_precision_is_told_what_to_give(kind: torch.dtype) -> None:
    with pytest.raises(donna.ConfigError, match=rf"Boxes are {kind}\. Give `model\.float"):
        donna.Study(Boxes().to(kind), loader(), loader(), stages=["layer1", "layer2"])


def test_what_cannot_be_a_study() -> None:
    data = DataLoader(TensorDataset(torch.randn(8, 1, 8, 8), torch.zeros(8)), 4)
    with pytest.raises(donna.ConfigError, match="has no 'layer9'"):
        donna.Study(Boxes(), data, data, stages=["layer9"])
    with pytest.raises(donna.ConfigError, match="must be a torch DataLoader"):
        donna.Study(Boxes(), iter(data), data)


class Classifier(Boxes):
    """Of 8 classes."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.last = last or nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(super().forward(images))


LABELS = torch.arange(8)


def labelled(targets: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(8, 1, 8, 8), targets), 8)


def study_of(model: nn.Module, train: Any = None, validation: Any = None, **how: Any) -> Any:
    loaders = (train or labelled(LABELS), validation or labelled(LABELS))
    return donna.Study(model, *loaders, stages=["layer1", "layer2"], **how)


@pytest.mark.parametrize("place", ["train", "validation"])
@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (LABELS.float(), r"torch.float32\. Give `targets.long\(\)`"),
        (LABELS.int(), r"torch.int32\. Give `targets.long\(\)`"),
        (
            nn.functional.one_hot(LABELS).float(),
            r"of shape \(8, 8\)\. Give `(loss|score)` if they are soft.*`targets.argmax\(1\)`",
        ),
        (
            LABELS.masked_fill(LABELS == 2, -100),
            r"-100 to 7\. Leave out the images of -100.*or give `(loss|score)`\.",
        ),
        (LABELS[:, None], r"of shape \(8, 1\)\. Give `targets.squeeze\(1\)`"),
        (LABELS + 1, "1 to 8. Number the classes from 0"),
        (LABELS - 1, "-1 to 6. Number the classes from 0"),
    ],
)
def test_targets_that_are_no_labels_are_refused(
    place: str, targets: torch.Tensor, words: str
) -> None:
    with pytest.raises(donna.ConfigError, match=rf"Targets of {place} must be labels.*{words}"):
        study_of(Classifier(), **{place: labelled(targets)})


def test_masks_are_labels_of_each_pixel() -> None:
    model = nn.Sequential()
    for name in ("stem", "layer1", "layer2"):
        model.add_module(name, nn.Conv2d(1 if name == "stem" else 4, 4, 3, padding=1))
    masks = torch.full((8, 8, 8), -100)
    with pytest.raises(donna.ConfigError, match=r"must be a classifier.s.*Give `score`"):
        study_of(model, labelled(masks), labelled(masks))
    study_of(model, labelled(masks), labelled(masks), score=lambda network, loader: 0.5)
    with pytest.raises(donna.ConfigError, match=r"of train must be labels.* 7 to 7"):
        study_of(model, labelled(masks * 0 + 7), labelled(masks), score=lambda *_: 0.5)


def test_own_score_takes_targets_of_any_kind() -> None:
    study_of(Classifier(), None, labelled(LABELS.float()), score=lambda *_: 0.5)


def test_what_makes_a_study_doubtful_is_told(recwarn: pytest.WarningsRecorder) -> None:
    study_of(Classifier())
    assert not recwarn
    with pytest.warns(UserWarning, match="are probabilities, it seems"):
        study_of(Classifier(nn.Softmax(1)))
    data = labelled(LABELS)
    with pytest.warns(UserWarning, match="train and validation are the same images"):
        study_of(Classifier(), data, data)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_model_is_the_model(wrap: Any) -> None:
    model = Classifier()
    study = study_of(wrap(model))
    images = torch.randn(2, 1, 8, 8)
    assert torch.allclose(study.reference(images), model.eval()(images), atol=1e-5)
    assert study.reference.names == (("layer1",), ("layer2",))
