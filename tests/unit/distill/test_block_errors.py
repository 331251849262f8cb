"""What a block raises is its own failure; the machine's faults and bugs elsewhere are not."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from donna_ray.distill import students
from donna_ray.distill.students import BlockJob
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import register_block
from tests.unit.distill.made import Distill, assert_same, job_of


class Raising(nn.Conv2d):
    """A layer that an error ends: in training, in its gradient, or in what is measured after it."""

    where, error = "", Exception()

    def forward(self, features: Tensor) -> Tensor:
        if self.where == ("training" if torch.is_grad_enabled() else "measuring"):
            raise self.error
        output = super().forward(features)
        if self.where == "gradient" and output.requires_grad:
            output.register_hook(self._raise)
        return output

    def _raise(self, _gradient: Tensor) -> None:
        raise self.error


@register_block("testing_raising", ("size",))
def raising(in_channels: int, out_channels: int, stride: int, *, size: int) -> nn.Module:
    layers = [Raising(in_channels, out_channels, size, stride, size // 2)]
    return nn.Sequential(*layers, nn.BatchNorm2d(out_channels))


@pytest.mark.parametrize("where", ["training", "gradient", "measuring"])
def test_error_of_a_block_is_its_failure_and_leaves_the_others_alone(
    where: str, distill: Distill, jobs: list[BlockJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Raising, "where", where)
    monkeypatch.setattr(Raising, "error", TypeError("can't convert cuda:0 device type tensor."))
    together = distill([jobs[0], job_of("raising", size=3), jobs[1]])
    assert_same([together[0], together[2]], distill(jobs[:2]))
    said = "it raised TypeError: can't convert cuda:0 device type tensor"
    assert (together[1].nsr, together[1].failure, together[1].raised) == (None, said, True)


class Broadcasting(nn.Conv2d):
    """Its output can be subtracted from the stage's, and is no output of the stage."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).mean((2, 3), keepdim=True)


class Several(nn.Conv2d):
    def forward(self, features: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(features), None


@register_block("testing_other_output", ("kind",))
def other_output(in_channels: int, out_channels: int, stride: int, *, kind: str) -> nn.Module:
    return {"small": Broadcasting, "tuple": Several}[kind](in_channels, out_channels, 3, stride, 1)


@pytest.mark.parametrize(("kind", "found"), [("small", r"\(32, \d+, 1, 1\)"), ("tuple", "tuple")])
def test_output_that_is_not_the_stages_is_a_failure(
    kind: str, found: str, distill: Distill
) -> None:
    (block,) = distill([job_of("other_output", kind=kind)])
    assert (block.nsr, block.raised) == (None, True)
    assert re.fullmatch(rf"its output is {found}, and its stage's \(32, .*\)", block.failure or "")


@pytest.mark.parametrize("where", ["training", "gradient", "measuring"])
def test_fault_of_the_machine_is_no_failure_of_a_block(
    where: str, distill: Distill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Raising, "where", where)
    monkeypatch.setattr(Raising, "error", RuntimeError("CUDA error: unknown error"))
    with pytest.raises(RuntimeError, match="CUDA error"):
        distill([job_of("raising", size=3)])


def test_error_outside_of_a_block_is_no_failure_of_it(
    distill: Distill, jobs: list[BlockJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        students, "noise_to_signal", lambda *_given: torch.zeros(2) @ torch.zeros(3)
    )
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        distill(jobs[:1])


def test_pass_ends_where_no_block_is_left(
    reference: StagedNetwork, distill: Distill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Raising, "where", "training")
    batches: list[Tensor] = []
    hook = reference.stem.register_forward_hook(lambda _stem, _given, out: batches.append(out))
    try:
        distill([job_of("raising", size=3)])
    finally:
        hook.remove()
    assert len(batches) == 1
