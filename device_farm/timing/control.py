"""The control model: a small, fixed network that tells how fast the device is right now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from device_farm.workload import Workload

if TYPE_CHECKING:
    from torch import nn

__all__ = ["control_workload"]

_STAGES = ((16, 32), (32, 16), (64, 8), (128, 4))
"""Channels and image size of each stage: one inverted residual block, then a strided one."""
_EXPANSION = 4


@cache
def control_workload() -> Workload:
    """A MobileNet in small on a 16 x 32 x 32 input, about 0.4 ms on a server's core.

    It has what slows down mobile networks when a host is busy: dense, expanding and depthwise
    convolutions, images that shrink as channels grow, and 1 MB of weights. Its bytes never
    change, for the baselines of devices hang on their digest.
    """
    return replace(Workload.from_onnx(_build().SerializeToString()), module=_module)


def _module() -> nn.Module:
    """The same convolutions and ReLUs as modules of torch."""
    import torch
    from torch import nn

    graph = _build().graph
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    layers: list[nn.Module] = []
    for node in graph.node:
        if node.op_type == "Relu":
            layers.append(nn.ReLU())
            continue
        weight = torch.from_numpy(weights[node.input[1]].copy())
        at = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        out, channels, size, _ = weight.shape
        conv = nn.Conv2d(
            channels * at["group"],
            out,
            size,
            stride=at["strides"],
            padding=at["pads"][0],
            groups=at["group"],
            bias=False,
        )
        conv.weight = nn.Parameter(weight, requires_grad=False)
        layers.append(conv)
    return nn.Sequential(*layers)


def _build() -> onnx.ModelProto:
    graph = _Graph([], [])
    tensor = "input"
    for stage, (channels, _) in enumerate(_STAGES):
        following = _STAGES[min(stage + 1, len(_STAGES) - 1)][0]
        tensor = graph.block(f"stage{stage}.0", tensor, channels, channels, 1)
        if following != channels:
            tensor = graph.block(f"stage{stage}.1", tensor, channels, following, 2)
    ends = (("input", *_STAGES[0]), (tensor, *_STAGES[-1]))
    source, sink = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, size, size])
        for name, channels, size in ends
    )
    proto = helper.make_graph(graph.nodes, "control", [source], [sink], graph.weights)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(proto, opset_imports=[opset], ir_version=8)


@dataclass
class _Graph:
    nodes: list[onnx.NodeProto]
    weights: list[onnx.TensorProto]

    def block(self, name: str, tensor: str, channels: int, out: int, stride: int) -> str:
        """Appends an inverted residual block without the residual; returns its output's name."""
        wide = _EXPANSION * channels
        tensor = self._conv(f"{name}.expand", tensor, (wide, channels, 1, 1))
        tensor = self._conv(f"{name}.depthwise", tensor, (wide, 1, 3, 3), wide, stride)
        return self._conv(f"{name}.project", tensor, (out, wide, 1, 1))

    def _conv(
        self,
        name: str,
        tensor: str,
        shape: tuple[int, int, int, int],
        groups: int = 1,
        stride: int = 1,
    ) -> str:
        """Appends a convolution and a ReLU; returns its output's name."""
        # Exact in binary, so the bytes are the same on every platform; far from denormals.
        values = (np.arange(np.prod(shape)) % 17 - 7.5).reshape(shape).astype(np.float32) / 64
        self.weights.append(numpy_helper.from_array(values, f"{name}.weight"))
        conv = helper.make_node(
            "Conv",
            [tensor, f"{name}.weight"],
            [f"{name}.conv"],
            group=groups,
            pads=[shape[2] // 2] * 4,
            strides=[stride, stride],
        )
        self.nodes += [conv, helper.make_node("Relu", [f"{name}.conv"], [name])]
        return name
