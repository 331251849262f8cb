"""What a study checks before it counts, and what it leaves as it was."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import donna_ray as donna
from device_farm import ModelError
from donna_ray.storage.records import RecordStore
from tests.unit.study.made import Net, blocks, distilled, loader, study, weights


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("study_pooled", r"turns \(8, 8, 8\) into \(16, 1, 1\), not \(16, 4, 4\)"),
        ("study_in_place", "changes its input in place"),
    ],
)
def test_blocks_are_checked_as_in_a_run(family: str, words: str) -> None:
    one = distilled(1, 3)
    before = one.blocks, one.nsr
    with pytest.raises(donna.ConfigError, match=rf"{family}\(kernel=3\) must be a block.*{words}"):
        one.space(blocks(3, family=family))
    assert (one.blocks, one.nsr) == before


def test_distillation_that_fails_leaves_the_older_one() -> None:
    one = study()
    one.space(blocks(1, 3))
    with (
        pytest.warns(UserWarning, match="became"),
        pytest.raises(
            donna.DonnaError, match=r"all of stage 0 failed: loss became nan.*Lower learning_rate"
        ),
    ):
        one.distil(learning_rate=1e30, epochs=2)
    with pytest.raises(donna.DonnaError, match="Call `distil` first"):
        one.fit()
    one.distil()
    one.fit(samples=6)
    before = one.nsr, one.predictor, one.network((0, 1)).state_dict()
    with pytest.warns(UserWarning, match="became"), pytest.raises(donna.DonnaError):
        one.distil(learning_rate=1e30, epochs=2)
    assert (one.nsr, one.predictor) == before[:2]
    after = one.network((0, 1)).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before[2].items())
    one.distil()
    with pytest.raises(donna.DonnaError, match="Call `fit` first"):
        one.search(weights)


def test_remedy_follows_what_the_blocks_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    one = study()
    one.space(blocks(3))

    def only_checked(*_: Any) -> Any:
        raise TypeError("a GPU's tensor")

    monkeypatch.setattr(nn.BatchNorm2d, "forward", only_checked)
    monkeypatch.setattr(one.reference, "forward", Net().forward)
    one.reference.stages = nn.ModuleList([nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)])
    with (
        pytest.warns(UserWarning, match="TypeError"),
        pytest.raises(
            donna.DonnaError,
            match=r"raised TypeError: a GPU's tensor. Mend what they raise, or give",
        ),
    ):
        one.distil()


def test_candidate_is_found_by_its_blocks() -> None:
    one = distilled(1, 3)
    one.fit(samples=6)
    found = next(each for each in one.search(weights) if set(each.architecture) == {0})
    one.space(blocks(3, 1))
    one.distil()
    chosen = one.network(found)
    assert [stage[0].kernel_size for stage in chosen.stages] == [(1, 1), (1, 1)]  # type: ignore[index]
    one.space(blocks(3, 5))
    one.distil()
    for use in (one.network, one.finetune):
        with pytest.raises(donna.ConfigError, match=r"study_plain\(kernel=1\).*Search again"):
            use(found)


@pytest.fixture(scope="module")
def numbered() -> donna.Study:
    """Of two blocks in the first stage and one in the second."""
    one = study()
    one.space(donna.SpaceConfig(blocks=blocks(1, 3), stages={1: {"options": {"kernel": [3]}}}))
    one.distil()
    return one


@pytest.mark.parametrize(
    "given", [(0, -1), (0, 9), (0,), (0, 0, 0), (0.0, 1.0), (True, 0), "00", "3f9c", None, 5]
)
def test_network_by_numbers_must_be_of_the_study(numbered: donna.Study, given: Any) -> None:
    with pytest.raises(donna.ConfigError, match=r"from \(0, 0\) to \(1, 0\), but is"):
        numbered.network(given)


def test_network_by_numbers_of_any_kind(numbered: donna.Study) -> None:
    for given in ((1, 0), [1, 0], np.array([1, 0])):
        assert numbered.network(given).stages[0][0].kernel_size == (3, 3)  # type: ignore[index]


@pytest.mark.parametrize(
    ("call", "given", "words"),
    [
        ("distil", {"epochs": 0}, "epochs: input should be greater than 0, but it is 0"),
        ("distil", {"epoch": 3}, "keys of epochs, .*but has 'epoch'"),
        ("distil", {"batch_size": 4}, "DataLoader decides"),
        ("distil", {"features": "memory"}, "but has 'features'"),
        ("distil", {"precision": "auto"}, "'fp32', 'bf16' or 'fp16', but it is 'auto'"),
        ("distil", {"recipes": {"x": {"epoch": 1}}}, "no known key.*Did you mean epochs"),
        ("fit", {"samples": 3}, "samples: .*6, but it is 3"),
        ("fit", {"samples": 6.5}, "samples: .*but it is 6.5"),
        ("fit", {"precision": "auto"}, "but it is 'auto'"),
        ("fit", {"workers_per_network": 2}, "but has 'workers_per_network'"),
        ("finetune", {"network": (0, 0), "learning_rate_batch": 8}, "DataLoader decides"),
        ("finetune", {"network": (0, 0), "learning_rate": -1}, "greater than 0"),
        ("search", {"latency": weights, "evaluations": 0}, "evaluations: .*greater than 0"),
        ("search", {"latency": weights, "limit_ms": 0}, "limit_ms: .*greater than 0"),
        ("search", {"latency": weights, "limit_ms": float("nan")}, "limit_ms: .*finite"),
        ("space", {"blocks": "compress"}, "blocks: .*list, but it is 'compress'"),
        ("export", {"network": Net(), "folder": "."}, "but is a Net"),
        ("export", {"network": None, "folder": __file__}, "is a file"),
    ],
)
def test_numbers_and_recipes_are_refused_in_words(
    call: str, given: dict[str, Any], words: str
) -> None:
    one = study()
    if "network" in given and given["network"] is None:
        given = {**given, "network": one.reference}
    with pytest.raises(donna.ConfigError, match=words):
        getattr(one, call)(**given)


def test_arguments_of_a_study_are_refused_in_words() -> None:
    for given, words in [({"seed": -1}, "seed: "), ({"stages": []}, "stages must not be empty")]:
        with pytest.raises(donna.ConfigError, match=words):
            donna.Study(Net(), loader(), loader(24), **given)
    for model, words in [
        (Net().to("meta"), "must have its weights"),
        (len, "must be a torch.nn.Module"),
    ]:
        with pytest.raises(donna.ConfigError, match=words):
            study(model)  # type: ignore[arg-type]
    with pytest.raises(donna.ConfigError, match="but is a Net"):
        donna.device_latency()(Net())  # type: ignore[arg-type]


def test_recipe_of_a_family_that_is_not_there_is_refused() -> None:
    one = study()
    one.space(blocks(3))
    with pytest.raises(donna.ConfigError, match=r"recipes must be of families .*study_plain"):
        one.distil(recipes={"plain": {"epochs": 2}})


def test_family_of_a_notebook_is_checked_without_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its code is in none, and where no cache can be written a study needs none."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    cell = compile(
        "@donna.register_block('study_cell', ('kernel',))\n"
        "def cell(inputs, outputs, stride, *, kernel):\n"
        "    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)\n",
        "<cell 3>",
        "exec",
    )
    exec(cell, {"donna": donna, "nn": nn, "__name__": "__main__"})
    one = study()
    one.space(blocks(3, family="study_cell"))
    one.distil()
    assert [len(each) for each in one.nsr] == [1, 1]


def test_what_cannot_be_copied_is_shared() -> None:
    model = Net()
    model.lock, model.kept = threading.Lock(), []
    model.layer1.register_forward_hook(lambda *given: model.kept.append(given[2]))
    model(torch.randn(2, 1, 8, 8))
    one = study(model)
    one.space(blocks(3))
    one.distil()
    assert all(np.isfinite(each).all() for each in one.nsr)


def test_output_must_be_of_each_image() -> None:
    with pytest.raises(donna.ConfigError, match=r"gives shape \(8,\) for 2.*`squeeze\(1\)`"):
        study(Net(nn.Sequential(nn.Linear(16, 4), nn.Flatten(0))))


def test_space_of_one_network_has_no_predictor() -> None:
    with pytest.raises(donna.DonnaError, match="2 networks or more, but the space has 1"):
        distilled(3).fit()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda output, targets: None, "returned None"),
        (lambda output, targets: {"a": output.sum()}, "returned a dict"),
        (lambda output, targets: output.square(), r"of shape \(16, 4\) with a gradient"),
        (lambda output, targets: output.detach().sum(), "without a gradient"),
        (lambda output, targets: output.sum() * float("nan"), "is nan for the model itself"),
    ],
)
def test_loss_is_tried_first(loss: Any, words: str) -> None:
    with pytest.raises(donna.ConfigError, match=words):
        study(loss=loss)


def test_loss_may_change_the_output_in_place() -> None:
    study(loss=lambda output, targets: output.sigmoid_().mean())


@pytest.mark.parametrize("score", [None, {"accuracy": 0.5}, float("nan"), "0.5", 35.0])
def test_score_must_be_a_share(score: Any) -> None:
    with pytest.raises(donna.DonnaError, match=r"`score` must return|A score must be 0 to 1"):
        distilled(3, score=lambda *_: score).finetune((0, 0))


def test_candidate_without_latency_costs_no_other() -> None:
    one = distilled(1, 3)
    one.fit(samples=6)
    asked: list[Exception | float] = [ModelError("refused"), ValueError("broke"), 3.0]

    def latency(network: nn.Module) -> Any:
        answer = asked.pop() if asked else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.warns(UserWarning, match="3 of 4 networks .* left out.*returned None"):
        front = one.search(latency)
    assert [each.latency_ms for each in front] == [3.0]
    with pytest.raises(donna.DonnaError, match=r"of 4 none could be.*ValueError: broke") as caught:
        one.search(broken)
    assert isinstance(caught.value.__cause__, ValueError)


def broken(_network: nn.Module) -> float:
    raise ValueError("broke")


def test_model_stays_as_it_is() -> None:
    model = Net().train()
    model.stem.requires_grad_(False)
    before = [(each.requires_grad, each.clone()) for each in model.parameters()]
    one = study(model)
    assert model.training
    pairs = zip(before, model.parameters(), strict=True)
    assert all(was == each.requires_grad and torch.equal(old, each) for (was, old), each in pairs)
    nn.init.zeros_(model.layer1[0].weight)
    assert one.reference.stages[0](torch.ones(1, 8, 8, 8)).any()


class Reusing(Net):
    """With one activation for all, a layer that is called twice, and one that has its weight."""

    def __init__(self) -> None:
        super().__init__()
        act, layer, tied = nn.PReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        tied.weight = layer.weight
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), act, layer, act, layer, tied)
        self.layer2 = nn.Sequential(nn.Conv2d(16, 32, 1), act, nn.Conv2d(32, 16, 1))


def test_weights_may_be_used_more_than_once(tmp_path: Path) -> None:
    """From the check of the blocks on to a record and an export of the finetuned network."""
    one = study(Reusing())
    one.space()
    one.distil(epochs=1)
    network, _ = one.finetune((0, 0), epochs=1)
    first = network.stages[0]
    assert first[2] is first[4]
    assert first[5].weight is first[2].weight
    store = RecordStore(tmp_path / "records")
    store.put("key", {}, network.state_dict())
    other = one.network((0, 0))
    other.load_state_dict(store.weights("key"))
    session = onnxruntime.InferenceSession(one.export(network, tmp_path / "out") / "model.onnx")
    images = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert other(images).equal(network(images))
        logits = session.run(None, {"input": images.numpy()})[0]
        np.testing.assert_allclose(logits, network(images).numpy(), atol=1e-5)


class Kept(Net):
    """Keeps a tensor of its forward, which torch does not copy."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.last = super().forward(images)
        return self.last


def test_what_a_model_keeps_of_a_forward() -> None:
    model = Kept()
    model(torch.zeros(2, 1, 8, 8))
    study(model)
    model.history = [model.last * 2]
    study(model)


def spoiling(network: nn.Module, _loader: Any) -> float:
    network.train()
    for each in network.parameters():
        each.data.zero_()
    return 0.5


@pytest.mark.parametrize("score", [None, spoiling])
def test_finetuned_network_is_the_same_whatever_the_score_does(score: Any) -> None:
    network, _ = distilled(3, score=score).finetune((0, 0))
    assert not any(each.training for each in network.modules())
    assert all(each.requires_grad for each in network.parameters())
    assert network.head(torch.ones(1, 16, 1, 1)).any()
