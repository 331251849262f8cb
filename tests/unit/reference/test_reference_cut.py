"""Any timm model, cut into stem, stages and head, computes what it computed before."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import TensorDataset

from donna_ray.complexity import complexity
from donna_ray.config import ReferenceConfig
from donna_ray.data import Split
from donna_ray.distill.features import Teacher
from donna_ray.errors import ConfigError
from donna_ray.onnx_export import export_onnx, onnx_error
from donna_ray.reference.build import cut_error, cut_reference
from donna_ray.reference.cut import cut_model
from donna_ray.reference.facts import reference_facts
from donna_ray.reference.network import StagedNetwork, own_weights
from donna_ray.reference.timm_models import create_timm_model
from donna_ray.reference.trace import CannotCutError
from donna_ray.reference.work import calibrate
from donna_ray.training.loop import seeded

# Of every family: a model, the size of an image, and the number of stages.
FAMILIES = [
    ("efficientnet_b0", 64, 7),
    ("efficientnet_b4", 64, 7),
    ("efficientnet_lite0", 64, 7),
    ("tf_efficientnet_b0", 65, 7),
    ("mobilenetv2_100", 64, 7),
    ("mobilenetv2_140", 64, 7),
    ("mobilenetv3_small_100", 64, 6),
    ("mobilenetv3_large_100", 64, 7),
    ("mobilenetv4_conv_small", 64, 5),
    ("mobilenetv4_hybrid_medium", 64, 5),
    ("mnasnet_100", 64, 7),
    ("semnasnet_100", 64, 7),
    ("resnet18", 64, 4),
    ("resnet50", 64, 4),
    ("resnext50_32x4d", 64, 4),
    ("regnetx_002", 64, 4),
    ("regnety_004", 64, 4),
    ("convnext_atto", 64, 4),
    ("convnextv2_atto", 64, 4),
    ("vit_tiny_patch16_224", 48, 4),
    ("deit_tiny_patch16_224", 48, 4),
    ("deit_tiny_distilled_patch16_224", 48, 4),
    ("mixer_s16_224", 224, 4),
    ("poolformer_s12", 64, 4),
    ("densenet121", 64, 4),
    ("cait_xxs24_224", 64, 4),
    ("legacy_xception", 96, 4),
    ("swin_tiny_patch4_window7_224", 64, 4),  # height x width x channels
    ("test_vit_relpos", 32, 4),  # a second tensor, which has weights
    ("vit_tiny_patch16_dinov3_qkvb", 64, 4),  # a second tensor without
    ("mvitv2_tiny", 64, 4),  # a second argument, the features' size
    ("hrnet_w18_small", 64, 2),  # several tensors go on within a stage
    ("ghostnet_050", 64, 8),  # of 10
    ("donna_digits", 16, 3),
    ("donna_micro", 32, 4),
]


@pytest.mark.parametrize(("name", "size", "stages"), FAMILIES, ids=[row[0] for row in FAMILIES])
def test_parts_compute_what_the_model_does(name: str, size: int, stages: int) -> None:
    with seeded(0):
        model = create_timm_model(ReferenceConfig(model=name), classes=7, image_size=size)
    channels = 1 if name == "donna_digits" else 3
    reference = cut_reference(model, ReferenceConfig(model=name), (channels, size, size))
    assert cut_error(model, reference) <= 1e-5
    assert len(reference.stages) == stages
    assert reference.classes == 7
    weights = {id(parameter) for parameter in reference.parameters()}
    assert weights == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("name", ["test_mambaout", "test_vit_relpos"])
def test_cut_parts_are_exported_trained_and_stored(name: str) -> None:
    """Those with features in another order, and those that share a tensor."""
    config = ReferenceConfig(model=name)
    with seeded(0):
        reference = cut_reference(create_timm_model(config, image_size=64), config, (3, 64, 64))
    images = torch.randn(3, 3, 64, 64)
    reference.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in reference.parameters())
    reference.eval().requires_grad_(False)
    assert onnx_error(export_onnx(reference, (3, 64, 64)), reference, images) <= 1e-5
    with seeded(1):
        other = cut_reference(create_timm_model(config, image_size=64), config, (3, 64, 64))
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(own_weights(reference))))
    assert torch.equal(other(images), reference(images))


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0", "fastvit_t8", "repghostnet_050"])
def test_branches_of_training_are_not_deployed(name: str) -> None:
    config, shape = ReferenceConfig(model=name), (3, 64, 64)
    model = create_timm_model(config)
    reference = cut_reference(model, config, shape).requires_grad_(False)
    weights, folded = (
        sum(parameter.numel() for parameter in each.parameters())
        for each in (model, reparameterize_model(model))
    )
    with torch.no_grad():
        model.train()(torch.randn(4, *shape))  # statistics of BatchNorm that differ
    exported = export_onnx(reference.eval(), shape)
    assert len(exported) == pytest.approx(4 * folded, rel=0.02)
    assert onnx_error(exported, reference, torch.randn(2, *shape)) <= 1e-4
    assert complexity(reference, shape)["params"] == folded < weights
    assert sum(parameter.numel() for parameter in reference.parameters()) == weights


def test_stages_can_be_named() -> None:
    config = ReferenceConfig(
        model="resnet18", stages=["layer1.1", ["layer2.0", "layer2.1"], ["layer3.0"]]
    )
    model = create_timm_model(config)
    reference = cut_reference(model, config, (3, 64, 64))
    assert cut_error(model, reference) <= 1e-5
    assert [shape.output for shape in reference.shapes] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
    ]


@pytest.mark.parametrize(
    ("name", "stages", "words"),
    [
        ("resnet18", ["layer5"], ["no 'layer5'", "layer1, layer2, layer3, layer4"]),
        ("resnet18", ["layer1.7"], ["no 'layer1.7'", "layer1 has 0, 1"]),
        ("resnet18", ["layer2", "layer1"], ["not in the order"]),
        ("resnet18", ["layer1", "layer1"], ["not in the order"]),
        ("resnet18", ["layer1.0.conv1", "layer2"], ["2 tensors go on (maxpool, layer1_0_conv1)"]),
        ("pit_ti_224", ["transformers.0"], ["several tensors go on"]),
        ("crossvit_tiny_240", None, ["tensors go on", "Choose another model"]),
        ("vgg11", None, ["% of its MACs", "reference.stages"]),
        ("levit_128s", None, ["(3, 64, 64)", "data.image_size"]),
    ],
)
def test_model_that_cannot_be_cut_says_why(
    name: str, stages: list[str] | None, words: list[str]
) -> None:
    size = {"pit_ti_224": 224, "crossvit_tiny_240": 240, "vgg11": 32}.get(name, 64)
    config = ReferenceConfig(model=name, stages=stages)
    with torch.device("meta"), pytest.raises(ConfigError) as caught:
        cut_reference(create_timm_model(config), config, (3, size, size))
    for word in words:
        assert word in str(caught.value)


def test_forward_that_cannot_be_traced_is_named() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(images)) if images.sum() > 0 else images

    with pytest.raises(CannotCutError, match=r"cannot trace its forward \(TraceError"):
        cut_model(Branching(), [("a",), ("b",)], (3, 4, 4))


@pytest.mark.parametrize(
    ("make", "maker"),
    [
        (nn.utils.weight_norm, "WeightNorm"),
        (nn.utils.spectral_norm, "SpectralNorm"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "L1Unstructured"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weights_that_a_hook_makes_are_named(make: Any, maker: str) -> None:
    model = PreActivated()
    make(model.b[1])
    model(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match=rf"{maker} makes those of b\.1 in PreActivated.*remove"):
        cut_model(model, [("a",), ("b",)], (3, 8, 8))


def test_model_that_is_not_copied_is_not_blamed_on_its_images() -> None:
    model = PreActivated()
    model.a.known = model.a[0].weight * 2  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"copy\.deepcopy copies, but with PreActivated"):
        cut_model(model, [("a",), ("b",)], (3, 8, 8))


def test_stage_between_glue_keeps_the_glue() -> None:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (self.b(self.a(images + 1) * 2) - 3).mean((2, 3))

    model = Doubling()
    stem, *stages, head = cut_model(model, [("a",), ("b",)], (3, 4, 4))
    network = StagedNetwork(stem, stages, head, (3, 4, 4))
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(network(images), model(images))
    torch.testing.assert_close(network.features(images)[0], images + 1)


class InPlace(nn.Module):
    """Its forward has calls whose result nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)
        self.unused = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.clone()
        images.mul_(2).add_(1)
        features = self.a(images)
        self.act(features)
        nn.functional.hardtanh(features.flatten(1), 0.1, 0.3, True)  # a view, by position
        self.unused(features)
        features = self.b(features)
        nn.functional.relu_(features)
        return features.mean((2, 3))


def test_calls_that_change_in_place_stay() -> None:
    model = InPlace()
    stem, *stages, head = cut_model(model, [("a",), ("b",)], (3, 4, 4))
    network = StagedNetwork(stem, stages, head, (3, 4, 4))
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(network(images), model(images))
    assert not [name for name in network.state_dict() if "unused" in name]


class PreActivated(nn.Module):
    """Its stages, and its head, begin with an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.b = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu_(self.b(self.a(images))).mean((2, 3))


def test_features_stay_when_what_follows_begins_in_place() -> None:
    model = PreActivated().requires_grad_(False)
    shape = (3, 8, 8)
    stem, *stages, head = cut_model(model, [("a",), ("b",)], shape)
    network = StagedNetwork(stem, stages, head, shape)
    images = torch.randn(4, *shape).contiguous(memory_format=torch.channels_last)
    true = model.a(images)
    assert true.min() < 0
    assert torch.equal(network.features(images)[1], true)
    assert torch.equal(Teacher(network)(images, [0, 1, 2])[1], true)
    data = TensorDataset(images, torch.zeros(4))
    variance, _ = calibrate(network, Split(data))
    torch.testing.assert_close(variance, true.var((0, 2, 3), unbiased=False))
    last = network.features(images)[-1]
    network.head(last)
    assert last.min() < 0
    assert onnx_error(export_onnx(network, shape), network, images) <= 1e-5


def test_dropout_in_the_forward_still_drops_in_training() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.b(self.a(images)).mean((2, 3))
            return nn.functional.dropout(features, p=0.5, training=self.training)

    stem, *stages, head = cut_model(Dropping(), [("a",), ("b",)], (3, 4, 4))
    network = StagedNetwork(stem, stages, head, (3, 4, 4))
    images = torch.randn(64, 3, 4, 4)
    assert (network.eval()(images) != 0).all()
    share = (network.train()(images) == 0).float().mean().item()
    assert 0.3 < share < 0.7


def test_blocks_of_one_resolution_make_four_stages() -> None:
    config = ReferenceConfig(model="vit_tiny_patch16_224")
    with torch.device("meta"):
        stages = cut_reference(create_timm_model(config), config, (3, 224, 224)).names
    assert stages[0] == ("blocks.0", "blocks.1", "blocks.2")
    assert [len(stage) for stage in stages] == [3, 3, 3, 3]


def test_facts_of_a_reference_add_up() -> None:
    facts = reference_facts("mobilenetv2_100", image_size=64, classes=10)
    assert facts["input"] == [3, 64, 64]
    assert [part["part"] for part in facts["parts"]][:2] == ["stem", "stage 0"]
    assert sum(part["params"] for part in facts["parts"]) == facts["params"]
    assert sum(part["macs"] for part in facts["parts"]) == facts["macs"]
    assert sum(part["share"] for part in facts["parts"]) == pytest.approx(1)
    assert facts["parts"][2]["stride"] == 2
    assert facts["parts"][-1]["output"] == [10]
    assert facts["max_error"] <= 1e-5


def test_macs_are_those_that_the_model_is_known_for() -> None:
    """By the papers, which round, and count pooling and squeezes differently."""
    papers = {"mobilenetv2_100": 300e6, "efficientnet_b0": 390e6, "resnet50": 4.1e9}
    for name, known in papers.items():
        with torch.device("meta"):
            model = timm.create_model(name)
        assert complexity(model, (3, 224, 224))["macs"] == pytest.approx(known, rel=0.03)
