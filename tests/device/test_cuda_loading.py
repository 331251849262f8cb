"""What the cuda connector runs, here on the CPU: ONNX Runtime bound to memory, and torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from timm.layers import BatchNormAct2d, StdConv2d
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.parametrizations import weight_norm

from device_farm import ModelError, Workload
from device_farm.connectors.cuda.folding import fold_batchnorm
from device_farm.connectors.cuda.loading import Loaded, agreement, load_onnx, load_torch
from device_farm.connectors.cuda.settings import CudaSettings
from device_farm.connectors.onnx_session import CPU, check_agreement, reference_outputs
from device_farm.timing.control import control_workload

HOST = torch.device("cpu")
IMAGE = torch.zeros(1, 3, 16, 16)
NETWORK = """
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import nn

WEIGHTS = Path(__file__).with_name("model.safetensors")
WEIGHTS.with_name("executed").touch()


@dataclass
class Made:
    channels: "int" = 4


def load():
    network = nn.Sequential(nn.Conv2d(3, Made().channels, 3), nn.ReLU())
    network.load_state_dict(safetensors.torch.load_file(WEIGHTS))
    return network
"""


def by_torch(workload: Workload, **settings: Any) -> Loaded:
    return load_torch(workload, CudaSettings(runtime="torch", **settings), HOST)


def by_onnx(workload: Workload, batch: int = 1) -> Loaded:
    return load_onnx(workload, batch, HOST, [(CPU, {})])


def check(loaded: Loaded, workload: Workload, limit: float = 1e-4) -> None:
    """After other runs the outputs are those of the ONNX model still."""
    loaded.run()
    check_agreement(loaded.outputs(), reference_outputs(workload), limit)


def settle(module: nn.Module) -> nn.Module:
    """Statistics and weights of BatchNorm that are not those of the identity."""
    generator = torch.Generator().manual_seed(0)
    for each in module.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            for tensor in (each.weight, each.bias, each.running_mean, each.running_var):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


class Branches(nn.Module):
    """A tensor, and a mapping of two."""

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return image.mean(1), {"cut": image[:, :, 2:], "all": image.relu()}


@pytest.mark.parametrize("batch", [1, 3])
def test_control_model_is_the_same_either_way(batch: int) -> None:
    workload = control_workload()
    for loaded in (by_torch(workload, batch=batch), by_onnx(workload, batch)):
        check(loaded, workload)
        assert loaded.outputs()[0].shape[0] == batch


def test_a_network_of_timm_is_run_with_batchnorm_folded() -> None:
    network = settle(timm.create_model("mobilenetv3_small_050", num_classes=10))
    workload = Workload.from_torch(network, torch.zeros(1, 3, 32, 32))
    loaded = by_torch(workload)
    called: list[type[nn.Module]] = []
    hook = register_module_forward_hook(lambda module, *_: called.append(type(module)))
    try:
        check(loaded, workload, 1e-3)
    finally:
        hook.remove()
    assert called
    assert not any(issubclass(each, nn.BatchNorm2d) for each in called)
    norms = sum(isinstance(each, nn.BatchNorm2d) for each in network.modules())
    assert norms == 34
    assert loaded.facts == {"batchnorm_folded": norms, "batchnorm_left": 0}


def test_a_model_in_half_precision_may_round() -> None:
    proto = onnx.load_model_from_string(control_workload().model)
    half = convert_float_to_float16(proto, keep_io_types=True)
    OnnxModel(half).topological_sort()
    workload = Workload.from_onnx(half.SerializeToString())
    assert agreement(CudaSettings(), workload) == 0.02
    assert agreement(CudaSettings(), control_workload()) == 1e-3
    check(by_onnx(workload), workload, agreement(CudaSettings(), workload))


def test_ways_of_torch_that_round() -> None:
    workload = Workload.from_torch(settle(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())), IMAGE)
    for way in ({"dtype": "bfloat16"}, {"dtype": "float16", "channels_last": True}):
        settings = CudaSettings(runtime="torch", **way)
        loaded = load_torch(workload, settings, HOST)
        check(loaded, workload, agreement(settings, workload))
        with pytest.raises(ModelError, match="differs by"):
            check(loaded, workload, 1e-6)


@pytest.mark.soak
def test_compiled_modules_that_share_code_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its limit torch goes on eagerly, without an error."""
    graphs: list[Any] = []

    def compile_(module: nn.Module, mode: str) -> Any:
        backend: Callable[..., Any] = lambda graph, _: graphs.append(mode) or graph.forward  # noqa: E731
        return compiled(module, backend=backend)

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    for width in range(1, 4):
        workload = Workload.from_torch(Named(width), IMAGE)
        check(by_torch(workload, compile="default"), workload)
        assert graphs == ["default"] * width


class Named(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image).relu()


@pytest.mark.soak
def test_compiled_by_inductor() -> None:
    workload = Workload.from_torch(settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), IMAGE)
    check(by_torch(workload, compile="default"), workload)


def test_outputs_in_a_structure() -> None:
    workload = Workload.from_torch(Branches(), IMAGE)
    for loaded in (by_torch(workload, batch=2), by_onnx(workload, 2)):
        check(loaded, workload)
        assert [each.shape for each in loaded.outputs()] == [
            (2, 16, 16),
            (2, 3, 14, 16),
            (2, 3, 16, 16),
        ]


class Headed(nn.Module):
    """BatchNorm, and whatever a network makes of it."""

    def __init__(self, head: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), head

    def forward(self, image: Tensor) -> Any:
        return self.head(self.norm(self.conv(image)))


@pytest.mark.parametrize(
    ("head", "outputs"),
    [
        (lambda y: (y, y > 0), 2),
        (lambda y: {"most": y.flatten(1).argmax(1), "all": y}, 2),
        (lambda y: [y, y[:, :0]], 2),
        (lambda y: (y, None), 1),
    ],
)
def test_outputs_that_are_no_numbers_are_compared_as_what_they_are(
    head: Callable[[Tensor], Any], outputs: int
) -> None:
    """Masks, indices, what a detector finds in noise, and a head that is off."""
    torch.manual_seed(0)
    workload = Workload.from_torch(settle(Headed(head)), IMAGE)
    for batch in (1, 2):
        loaded = by_torch(workload, batch=batch)
        check(loaded, workload)
        assert len(loaded.outputs()) == outputs
        assert loaded.facts == {"batchnorm_folded": 1, "batchnorm_left": 0}


def test_a_folder_is_code_weights_and_a_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(ModelError, match=r"there is no .*model\.onnx: give"):
        Workload.from_folder(tmp_path)
    (tmp_path / "model.onnx").write_bytes(Workload.from_torch(module, IMAGE).model)
    (tmp_path / "network.py").write_text(NETWORK)
    workload = Workload.from_folder(tmp_path)
    check(by_onnx(workload), workload)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ModelError, match=r"fails \(FileNotFoundError: .*load\(\) of its network"):
        by_torch(workload)
    safetensors.torch.save_file(module.state_dict(), tmp_path / "model.safetensors")
    check(by_torch(workload), workload)
    assert (tmp_path / "executed").exists()


def test_onnx_alone_has_no_module() -> None:
    with pytest.raises(ModelError, match=r"this model is ONNX alone: .* take runtime onnxruntime"):
        by_torch(Workload.from_onnx(control_workload().model))


def test_a_module_that_takes_other_inputs_is_told() -> None:
    workload = replace(control_workload(), module=Pair)
    with pytest.raises(
        ModelError, match=r"torch cannot run the module \(TypeError: .*in their order"
    ):
        by_torch(workload)


class Pair(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


class Token(nn.Module):
    """One token for one image, as an export has it."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([torch.ones(1, 1, 256), image.flatten(2)], 1)


class Fixed(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.view(1, 768)


def test_a_batch_that_a_graph_does_not_take_is_told() -> None:
    token, fixed = (Workload.from_torch(module, IMAGE) for module in (Token(), Fixed()))
    check(by_onnx(token), token)
    with pytest.raises(ModelError, match="a batch of 1 alone, export it for 2"):
        by_onnx(token, 2)
    with pytest.raises(RuntimeError, match="ONNX Runtime cannot run the model"):
        by_onnx(fixed, 2)


def test_a_module_of_other_weights_is_not_timed() -> None:
    torch.manual_seed(0)
    one, other = (Workload.from_torch(nn.Conv2d(3, 4, 3), IMAGE) for _ in range(2))
    with pytest.raises(ModelError, match=r"output '\d+' must be .* up to 0\.001 .* differs by \d"):
        check(by_torch(replace(one, module=other.module)), one, agreement(CudaSettings(), one))


VALUES = np.array([[1.0, -4.0, np.nan]])


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (VALUES, None),
        (VALUES.repeat(3, axis=0), None),
        (VALUES + 0.039, None),
        (VALUES + 0.044, r"differs by 0\.011"),
        (np.vstack([VALUES, VALUES + 0.044]), r"differs by 0\.011"),
        (np.array([[1.0, -4.0, 0.0]]), "differs by inf"),
        (np.array([[1.0, np.inf, np.nan]]), "differs by inf"),
        (VALUES[:, :2], r"shape \(1, 2\) in place of shape \(1, 3\)"),
        (VALUES[0], r"shape \(3,\) in place of shape \(1, 3\)"),
    ],
)
def test_agreement(found: np.ndarray, error: str | None) -> None:
    if error is None:
        check_agreement([found], {"y": VALUES}, 0.01)
        return
    with pytest.raises(ModelError, match=error):
        check_agreement([found], {"y": VALUES}, 0.01)


def test_agreement_of_integers_and_of_nothing() -> None:
    check_agreement([np.array([3, 4])], {"y": np.array([3, 4])}, 0.0)
    check_agreement([np.zeros((0, 4))], {"y": np.zeros((0, 4))}, 0.0)
    with pytest.raises(ModelError, match=r"differs by 0\.25"):
        check_agreement([np.array([3, 5])], {"y": np.array([3, 4])}, 0.01)
    with pytest.raises(ModelError, match=r"the 2 that the ONNX model has \(y, z\), but are 1"):
        check_agreement([VALUES], {"y": VALUES, "z": VALUES}, 0.01)


def test_agreement_of_sequences_mappings_and_words() -> None:
    """Such as scikit-learn's exports have: for each input the probability of each label."""
    check_agreement([[VALUES, VALUES]], {"y": [VALUES, VALUES]}, 0.01)
    check_agreement([[{"cat": 0.5, "dog": 0.5}]], {"y": [{"cat": 0.5, "dog": 0.504}]}, 0.01)
    check_agreement([np.array(["cat"], object)], {"y": np.array(["cat"], object)}, 0.0)
    check_agreement([[]], {"y": []}, 0.0)
    faults: list[tuple[Any, Any, str]] = [
        ([VALUES], [VALUES, VALUES], r"differs by inf \(1 values in place of 2 values"),
        ([VALUES + 0.044], [VALUES], r"differs by 0\.011"),
        ([{"cat": 0.5}], [{"dog": 0.5}], "differs by inf"),
        (VALUES, [VALUES], r"differs by inf \(shape \(1, 3\) in place of 1 values"),
        (np.array(["cat"], object), np.array(["dog"], object), "differs by inf"),
    ]
    for found, wanted, words in faults:
        with pytest.raises(ModelError, match=words):
            check_agreement([found], {"y": wanted}, 0.01)


class Shared(nn.Module):
    """One convolution, run before a BatchNorm and alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.conv(image)) + self.conv(image)


@pytest.mark.parametrize(
    ("made", "counts"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (1, 0)),
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), BatchNormAct2d(6)), (1, 0)),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (1, 0)),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), (0, 1)),
        (lambda: nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4)), (0, 1)),
        (lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), (0, 1)),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
         (0, 1)),
        (Shared, (0, 1)),
    ],
)  # fmt: skip
def test_only_what_can_be_folded_is(made: Callable[[], nn.Module], counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module, image = settle(made()), torch.randn(2, 3, 8, 8)
    expected = module(image)
    assert fold_batchnorm(module, [image]) == counts
    assert torch.allclose(module(image), expected, atol=1e-5)
    left = sum(isinstance(each, nn.BatchNorm2d) for each in module.modules())
    assert left == counts[1]


def test_what_runs_on_nothing_is_folded() -> None:
    """As the head of a detector that finds nothing in noise."""
    module = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert fold_batchnorm(module, [torch.zeros(0, 3, 8, 8)]) == (1, 0)


class _Read(nn.Module):
    """What its convolution gives is normalized, and read once more beside that."""

    def __init__(self, by_name: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.by_name = by_name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        named = {"input": self.norm(x)}
        y = self.second(**named) if self.by_name else self.second(named["input"])
        return x + self.last(y)


@pytest.mark.parametrize(("by_name", "folded"), [(False, 1), (True, 0)])
def test_a_convolution_that_is_read_twice_or_called_by_name_is_left(
    by_name: bool, folded: int
) -> None:
    module = _Read(by_name).eval()
    for norm in (module.norm, module.last):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    images = torch.randn(2, 3, 8, 8)
    wanted = module(images)
    assert fold_batchnorm(module, [images]) == (folded, 2 - folded)
    assert torch.allclose(module(images), wanted, atol=1e-5)
