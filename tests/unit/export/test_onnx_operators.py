"""Operators that torch's exporter lacks or cannot do, and what is told of those that remain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from donna_ray.errors import DonnaError
from donna_ray.onnx_export import export_onnx, onnx_error


class Windows(nn.Module):
    """Of a map whose size the exporter loses sight of."""

    def __init__(self, size: int, step: int) -> None:
        super().__init__()
        self.size, self.step = size, step

    def forward(self, images: Tensor) -> Tensor:
        padded = functional.pad(images, [1] * 4)
        return padded.unfold(2, self.size, self.step).unfold(-2, self.size, self.step).flatten(1)


class Norm(nn.Module):
    def __init__(self, shape: list[int], weight: bool, eps: float | None) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape, eps, elementwise_affine=weight)
        if weight:
            nn.init.normal_(self.norm.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(images).flatten(1)


class Attention(nn.Module):
    """Torch's own, whose fused operators have no ONNX."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(1, 2)
        return self.layer(tokens + self.attention(tokens, tokens, tokens)[0]).flatten(1)


class Pooled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(images, (3, 3)).flatten(1)


@pytest.mark.parametrize(
    "module",
    [
        Windows(4, 2),
        Windows(3, 3),
        Norm([8], weight=True, eps=1e-2),
        Norm([8, 8], weight=False, eps=None),
        Attention().eval().requires_grad_(False),
    ],
)
def test_operators_that_torch_does_not_export(module: nn.Module) -> None:
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert onnx_error(export_onnx(module, (3, 8, 8)), module, images) < 1e-6
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_cannot_be_exported_is_told_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DonnaError, match=r"adaptive_avg_pool2d.* Choose other blocks") as raised:
        export_onnx(Pooled(), (3, 8, 8))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
