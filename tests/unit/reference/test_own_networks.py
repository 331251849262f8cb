"""Models of a person's own: what cannot be a reference says why, with a remedy for each reason."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from donna_ray.config import ReferenceConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.onnx_export import export_onnx
from donna_ray.reference.build import check_cut, cut_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.own_network import own_network

SHAPE = (3, 8, 8)


class Own(nn.Module):
    """What is called within its forward and at its end can be replaced."""

    def __init__(
        self,
        end: Callable[[Tensor], Any] = lambda output: output,
        inside: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), Called(inside or torch.relu)
        self.end = end

    def forward(self, images: Tensor) -> Any:
        return self.end(self.b(self.a(images)).mean((2, 3)))


class Called(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.c, self.function = nn.Conv2d(4, 4, 1), function

    def forward(self, features: Tensor) -> Tensor:
        return self.function(self.c(features))


class Two(Own):
    def forward(self, images: Tensor, others: Tensor) -> Any:
        return super().forward(images + others)


def cut(model: nn.Module, stages: list[Any] | None = None) -> StagedNetwork:
    named = ReferenceConfig(model=type(model).__name__, stages=stages or ["a", "b"])
    return cut_reference(own_network(model), named, SHAPE)


def through_numpy(features: Tensor) -> Tensor:
    return torch.from_numpy(features.detach().numpy().clip(0))


def exported_of_two() -> nn.Module:
    return torch.export.export(Own().eval(), (torch.zeros(2, *SHAPE),)).module()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Own(lambda output: {"out": output}), "one tensor, but Own gives a dict.*backbone"),
        (Own(lambda output: (output, output)), "one tensor, but Own gives a tuple"),
        (Own(lambda output: output[:, :1].squeeze()), r"shape \(\) for 1.*squeeze"),
        (Own(lambda output: output.sum()), r"shape \(\) for 2"),
        (Two(), r"with 2 of \(3, 8, 8\) raised TypeError: .*'others'.*takes one tensor"),
        (nn.Sequential(nn.Conv2d(1, 2, 1)), r"\(3, 8, 8\) raised RuntimeError.*data\.image_size"),
        (
            Own(inside=lambda each: each / max(1, each.max().item())),
            r"b must run without numbers, .* RuntimeError: .*meta.*without `\.item\(\)`",
        ),
        (Own(inside=through_numpy), "b must run without numbers, .* TypeError.*numpy and the like"),
        (
            Own(lambda output: output if output.sum() > 0 else -output),
            r"cannot trace its forward \(TraceError.*into a module of its own",
        ),
        (Own(lambda output: torch.from_numpy(output.numpy())), "cannot trace.*into a module of"),
        (torch.jit.trace(Own().eval(), torch.zeros(2, *SHAPE)), "the whole of it is .*TorchScript"),
        (Own(torch.jit.script(nn.Flatten())), r"end is one of TorchScript.*scripted\.state_dict"),
        (exported_of_two(), r"with 1 of \(3, 8, 8\) .*the Python module that it was made from"),
    ],
)
def test_what_cannot_be_a_reference_says_why(model: nn.Module, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cut(model)


def test_stages_that_are_no_cut_are_to_be_named_otherwise() -> None:
    with pytest.raises(ConfigError, match=r"order of its forward\. Name other modules .* has a, b"):
        cut(Own(), ["b", "a"])
    with pytest.raises(ConfigError, match=r"cannot be cut here: .* Name modules in reference\."):
        cut_reference(Own(), ReferenceConfig(model="Own"), SHAPE)


def mixed(features: Tensor) -> Tensor:
    return features + torch.rand_like(features)


class Mixed(Own):
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.b(self.a(images)).mean((2, 3)).float()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Own(inside=mixed), "Own differs by .* from itself: its forward draws random numbers"),
        (Mixed(), r"`with` in its forward, such as torch\.autocast, is lost: move it into"),
    ],
)
def test_what_the_cut_cannot_follow_says_why(model: nn.Module, words: str) -> None:
    with pytest.raises(DonnaError, match=words):
        check_cut(model, cut(model), type(model).__name__)


class Pooled(nn.Module):
    """With no parameters between one resolution and the next, at the beginning and inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.a = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), Layer(4, 64)
        self.smaller, self.b, self.head = nn.MaxPool2d(2), Layer(64, 64), nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.a(self.pool(self.stem(images)))
        return self.head(self.b(self.smaller(features)).mean((2, 3)))


class Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, 3, 2, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.c(features)


def test_stages_have_parameters() -> None:
    shape = (3, 128, 128)
    reference = cut_reference(Pooled(), ReferenceConfig(model="Pooled"), shape)
    assert reference.names == (("a",), ("smaller", "b.c"))
    named = ReferenceConfig(model="Pooled", stages=["pool", "a"])
    with pytest.raises(ConfigError, match=r"reference\.stages must have parameters.*\[pool\] of"):
        cut_reference(Pooled(), named, shape)


def lazy() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.LazyLinear(4))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda images: images, r"must be a torch\.nn\.Module, but is a function"),
        (Own().to("meta"), r"Own has none yet in 4, such as a\.weight.*to_empty"),
        (lazy(), r"Sequential has none yet in 2, such as 2\.weight.*run a lazy one"),
    ],
)
def test_what_is_no_model_yet_is_told_so(model: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        own_network(model)


class Positions(nn.Module):
    """For images of one size. Its features are channels last, tokens or a sequence."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        features, positions = {"NHWC": (5, (4, 4, 5)), "NLC": (5, (16, 5)), "NCL": (16, (5, 16))}[
            kind
        ]
        self.kind, self.stem = kind, nn.Conv2d(3, 5, 2, 2)
        self.positions = nn.Parameter(torch.randn(positions))
        self.a, self.b = nn.Linear(features, features), nn.Linear(features, features)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = features.movedim(1, -1) if self.kind == "NHWC" else features.flatten(2)
        features = features.mT if self.kind == "NLC" else features
        return self.b(self.a(features + self.positions)).flatten(1)


@pytest.mark.parametrize(
    ("kind", "shape", "guess"),
    [
        ("NHWC", (5, 4, 4), r"\(4, 4, 5\), .*The first, of 4,"),
        ("NLC", (16, 5), r"\(16, 5\), .*The second, of 5,"),
        ("NCL", (16, 5), r"\(5, 16\), .*The second, of 16,"),
    ],
)
def test_channels_that_nothing_tells_are_a_guess_that_is_warned_of(
    kind: str, shape: tuple[int, ...], guess: str, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.warns(UserWarning, match=f"Positions after add, {guess}.*output_fmt"):
        cut(Positions(kind))
    recwarn.clear()
    model = Positions(kind)
    model.output_fmt = kind  # type: ignore[assignment]
    reference = cut(model)
    assert [each.output for each in reference.shapes] == [shape] * 2
    assert torch.equal(reference(torch.ones(2, *SHAPE)), model(torch.ones(2, *SHAPE)))
    cut(Own())
    assert not recwarn


def test_trace_leaves_other_threads_alone() -> None:
    """Torch.fx patches nn.Module for all of them."""
    tracing, done = Event(), Event()
    model, other, found = Own(), Own(), []

    def waiting(output: Tensor) -> Tensor:
        if isinstance(output, torch.fx.Proxy):
            tracing.set()
            assert done.wait(30)
        return output

    model.end = waiting
    thread = Thread(target=lambda: found.append(cut(model)))
    thread.start()
    try:
        assert tracing.wait(30)
        images = torch.ones(2, *SHAPE)
        assert isinstance(other(images), Tensor)
    finally:
        done.set()
        thread.join()
    assert torch.equal(found[0](images), model(images))


def test_traces_and_exports_of_several_threads_leave_torch_as_it_was() -> None:
    before, found = nn.Module.__call__, list[int]()

    def made() -> None:
        for _ in range(5):
            reference = cut(Own()).requires_grad_(False)
            found.append(len(export_onnx(reference, SHAPE)))

    threads = [Thread(target=made) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert nn.Module.__call__ is before
    assert len(found) == 15
