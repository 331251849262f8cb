"""Channels last, but where oneDNN writes beyond its memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from donna_ray.onnx_export import export_onnx
from donna_ray.training.channels import channels_last


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "own"), [(4, 1, 2, True), (8, 1, 2, False), (4, 3, 2, False)]
)
def test_few_channels_of_a_strided_convolution_of_one_pixel_are_in_torchs_order(
    channels: int, kernel: int, stride: int, own: bool
) -> None:
    """Without that the process is aborted here on a CPU that has no AVX-512."""
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 8, kernel, stride, kernel // 2)
    module = channels_last(channels_last(copy.deepcopy(plain)))  # twice is once
    seen: list[bool] = []
    module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].is_contiguous()))
    images = torch.randn(4, channels, 8, 8)
    for _ in range(30):
        module.zero_grad()
        module(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
    plain(images).square().sum().backward()
    torch.testing.assert_close(module.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
    assert seen == [own] * 30
    assert len(module._forward_pre_hooks) == own


def test_export_is_as_without() -> None:
    module = nn.Conv2d(4, 8, 1, 2).requires_grad_(False)
    assert export_onnx(channels_last(copy.deepcopy(module)), (4, 8, 8)) == export_onnx(
        module, (4, 8, 8)
    )
