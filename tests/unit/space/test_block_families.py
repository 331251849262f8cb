"""Every block of the presets trains, exports and keeps its shape; timm's stages are described."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import cycle, pairwise
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

from donna_ray.complexity import complexity
from donna_ray.config import preset_space
from donna_ray.errors import ConfigError
from donna_ray.onnx_export import export_onnx
from donna_ray.reference import own_models as models
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.stages import automatic_cut
from donna_ray.space import BlockSpec, StageShape, block_families, block_family, build_block
from donna_ray.space.block import _FAMILIES, BlockFamily

IMAGE_SHAPES = [
    StageShape((8, 8, 8), (16, 4, 4)),
    StageShape((16, 7, 7), (24, 4, 4)),
    StageShape((16, 6, 6), (16, 6, 6)),
]
TOKEN_SHAPES = [StageShape((tokens, 12), (tokens, 12)) for tokens in (9, 10, 18)]
BLOCKS_A_STAGE = {"donna_large": 384, "micro": 48, "mobilenet_v3": 192, "resnet": 240, "vit": 60}


def preset_blocks(name: str) -> list[BlockSpec]:
    blocks = preset_space(name).blocks
    return [
        spec
        for each in blocks
        for spec in block_family(each.family).specs(each.options, each.exclude)
    ]


def in_onnx_runtime(block: nn.Module, features: Tensor) -> np.ndarray[Any, Any]:
    model = export_onnx(block, features.shape[1:])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": features.numpy()})[0]


def check_block(spec: BlockSpec, shape: StageShape) -> None:
    """Shape, gradients, meta device and ONNX; blocks that train together share their input."""
    torch.manual_seed(0)
    block, features = build_block(spec, shape), torch.randn(4, *shape.input)
    before = features.clone()
    output = block.train()(features)
    assert output.shape == (4, *shape.output)
    assert features.equal(before)
    output.square().mean().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert complexity(block, shape.input)["macs"] > 0
    with torch.no_grad():
        expected = block.eval()(features[:1])
    np.testing.assert_allclose(
        in_onnx_runtime(block, features[:1]), expected.numpy(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("preset", sorted(BLOCKS_A_STAGE))
def test_presets_have_the_blocks_that_their_comments_say(preset: str) -> None:
    specs = preset_blocks(preset)
    assert len(set(specs)) == len(specs) == BLOCKS_A_STAGE[preset]


def preset_blocks_of(family: str) -> list[BlockSpec]:
    """Few blocks of the presets, every value of every option in one of them."""
    every = {spec for preset in BLOCKS_A_STAGE for spec in preset_blocks(preset)}
    mixed = sorted((spec for spec in every if spec.family == family), key=lambda spec: spec.id)
    found: set[tuple[str, Any]] = set()
    kept = []
    for spec in mixed:
        if not found.issuperset(spec.options):
            found.update(spec.options)
            kept.append(spec)
    return kept


@pytest.mark.parametrize(
    "family",
    [
        "inverted_residual",
        "grouped_bottleneck",
        "residual_basic",
        "residual_bottleneck",
        "transformer",
    ],
)
def test_blocks_of_presets_train_and_export(family: str) -> None:
    specs = preset_blocks_of(family)
    assert len(specs) >= 3
    for spec, shape in zip(specs, cycle(TOKEN_SHAPES if family == "transformer" else IMAGE_SHAPES)):
        check_block(spec, shape)


@pytest.mark.parametrize(
    ("kernel", "expansion", "depth", "shape"),
    [(3, 1, 3, 0), (5, 2.5, 1, 2), (7, 4, 2, 0), (3, 4, 1, 2)],
)
def test_convnext_blocks_train_and_export(
    kernel: int, expansion: float, depth: int, shape: int
) -> None:
    options = {"kernel": kernel, "expansion": expansion, "depth": depth}
    check_block(BlockSpec.of("convnext", options), IMAGE_SHAPES[shape])


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_pooling_of_tokens_is_poolformers_on_the_patches(prefix: int) -> None:
    options = {"depth": 1, "heads": 1, "mlp_ratio": 2, "mixer": "pooling"}
    shape = StageShape((prefix + 9, 4), (prefix + 9, 4))
    mixer: Any = build_block(BlockSpec.of("transformer", options), shape)[0].attn  # type: ignore[index]
    tokens = torch.randn(1, *shape.input)
    mixed = mixer(tokens)
    middle, corner = prefix + 4, [prefix, prefix + 1, prefix + 3, prefix + 4]
    torch.testing.assert_close(mixed[:, middle], tokens[:, prefix:].mean(1) - tokens[:, middle])
    torch.testing.assert_close(mixed[:, prefix], tokens[:, corner].mean(1) - tokens[:, prefix])
    for number in range(prefix):
        torch.testing.assert_close(mixed[:, number], tokens.mean(1) - tokens[:, number])


# The family of each stage of a model; all of the described blocks have exactly its parameters.
DESCRIBED = {
    "resnet18": "residual_basic",
    "resnet50": "residual_bottleneck",
    "resnext50_32x4d": "residual_bottleneck",
    "regnety_004": "residual_bottleneck",
    "convnext_atto": "convnext",
    "vit_tiny_patch16_224": "transformer",
    "mobilenetv2_100": "inverted_residual",
    "efficientnet_b0": "inverted_residual",
    "donna_digits": "inverted_residual",
    "donna_micro": "inverted_residual",
}


@cache
def cut(name: str) -> list[tuple[nn.Module, StageShape]]:
    """The automatic stages of a timm model on the meta device."""
    with torch.device("meta"), torch.no_grad():
        model = timm.create_model(name)
        own = name.startswith("donna")
        image = (model.conv_stem.in_channels, 32, 32) if own else (3, 224, 224)
        (stem, *stages, _), _ = automatic_cut(model, image)
        features = [stem(torch.empty(1, *image))]
        for stage in stages:
            features.append(stage(features[-1]))
    shapes = [StageShape(*pair) for pair in pairwise(tuple(each.shape[1:]) for each in features)]
    return list(zip(stages, shapes, strict=True))


def descriptions(stage: nn.Module) -> list[BlockSpec]:
    found = [(family.name, family.describe(stage)) for family in block_families()]
    return [BlockSpec.of(name, options) for name, options in found if options is not None]


@pytest.mark.parametrize(("model", "family"), DESCRIBED.items())
def test_timms_stages_are_described_exactly(model: str, family: str) -> None:
    for stage, shape in cut(model):
        (spec,) = descriptions(stage)
        assert spec.family == family
        with torch.device("meta"):
            block = build_block(spec, shape)
        assert complexity(block, shape.input) == complexity(stage, shape.input), spec


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("donna_micro", "micro"),
        ("resnet18", "resnet"),
        ("resnet34", "resnet"),
        ("resnet50", "resnet"),
        ("vit_tiny_patch16_224", "vit"),
        ("deit_small_distilled_patch16_224", "vit"),
    ],
)
def test_presets_hold_the_stages_of_the_networks_they_name(model: str, preset: str) -> None:
    assert {descriptions(stage)[0] for stage, _ in cut(model)} <= set(preset_blocks(preset))


@pytest.mark.parametrize(
    ("model", "number", "options"),
    [
        ("resnext50_32x4d", 2, {"kernel": 3, "ratio": 0.5, "group_size": 16, "depth": 6}),
        ("regnety_004", 1, {"group_size": 8, "ratio": 1, "depth": 3, "squeeze_excite": True}),
        ("convnext_atto", 2, {"kernel": 7, "expansion": 4, "depth": 6}),
        ("vit_tiny_patch16_224", 0, {"heads": 3, "mlp_ratio": 4, "depth": 3}),
        ("efficientnet_b0", 0, {"expansion": 1, "activation": "silu", "squeeze_excite": True}),
        # Mixed stages: the largest expansion of 4 and 3; of 6, 2.5, 2.3 and 2.3.
        ("mobilenetv3_large_100", 1, {"expansion": 4, "depth": 2, "activation": "relu"}),
        ("mobilenetv3_large_100", 3, {"expansion": 6, "depth": 4, "activation": "hard_swish"}),
        ("mobilenetv3_large_100", 4, {"squeeze_excite": "hard"}),
        # Squeeze-excite to another number of channels at another place: no equal parameters.
        ("seresnet50", 0, {"squeeze_excite": True, "ratio": 0.25}),
    ],
)
def test_descriptions_name_the_options(model: str, number: int, options: dict[str, Any]) -> None:
    (spec,) = descriptions(cut(model)[number][0])
    assert options.items() <= dict(spec.options).items()
    assert BlockSpec.from_json(spec.to_json()).id == spec.id


@pytest.mark.parametrize(
    ("model", "number"),
    [
        ("convnextv2_atto", 0),  # GRN in the MLP
        ("mobilenetv4_conv_small", 2),  # universal inverted residuals
        ("mobilenetv3_large_100", 6),  # a single 1x1
        ("mixnet_s", 1),  # several kernels in one layer
        ("efficientnetv2_rw_t", 0),  # edge residuals
        ("ecaresnet26t", 1),  # another attention
        ("swin_tiny_patch4_window7_224", 0),
    ],
)
def test_stages_of_other_kinds_are_not_described(model: str, number: int) -> None:
    assert descriptions(cut(model)[number][0]) == []


def test_only_an_own_family_must_describe_without_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the package that raises is taken for one that does not know the stage."""

    def describe(_stage: nn.Module) -> None:
        raise AttributeError("no act")

    stem, stage, head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten()
    network = StagedNetwork(stem, [stage], head, (3, 8, 8))
    known = block_family("convnext")
    monkeypatch.setitem(_FAMILIES, "convnext", replace(known, describe=describe))
    assert network.own_blocks() == [None]
    monkeypatch.setitem(_FAMILIES, "own", BlockFamily("own", describe, (), describe=describe))
    with pytest.raises(ConfigError, match=r"'own' must give options or None.*no act\. Mend it"):
        network.own_blocks()


UNUSUAL = (  # pruned, whose widths no ratio gives; normalisations and layers of many kinds
    *("efficientnet_b1_pruned", "ecaresnet50d_pruned", "test_efficientnet_evos", "regnety_2560"),
    *("resnet50_gn", "regnetz_b16_evos", "mixnet_s", "tresnet_m", "nf_resnet26", "fbnetv3_b"),
    *("mobilenetv4_conv_small", "ghostnet_100", "convnextv2_atto", "test_convnext3", "resnest14d"),
    *("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "deit_tiny_distilled_patch16_224"),
    *("seresnext26d_32x4d", "skresnet18", "edgenext_xx_small", "levit_128s", "cait_xxs24_224"),
)


@pytest.mark.parametrize("model", UNUSUAL)
def test_every_family_describes_any_layer_or_none(model: str) -> None:
    """Of timm's models, whole and in parts, without an error."""
    with torch.device("meta"):
        network = timm.create_model(model)
    parts = [part for name, part in network.named_modules() if name.count(".") < 2]
    for part in parts:
        for spec in descriptions(part):
            assert None not in dict(spec.options).values()


def test_grouped_bottleneck_describes_its_own_blocks_only() -> None:
    changed = {"kernel": 5, "expansion": 2, "depth": 2, "squeeze_excite": True}
    spec = BlockSpec.of("grouped_bottleneck", INVERTED | changed)
    assert descriptions(build_block(spec, IMAGE_SHAPES[0])) == [spec]


INVERTED = {
    "kernel": 3,
    "expansion": 1,
    "depth": 1,
    "activation": "relu",
    "squeeze_excite": False,
}
RESIDUAL = {key: value for key, value in INVERTED.items() if key != "expansion"} | {"ratio": 0.5}
TOKENS = {"depth": 1, "heads": 2, "mlp_ratio": 2, "mixer": "attention"}


@pytest.mark.parametrize(
    ("family", "options", "shape", "words"),
    [
        ("inverted_residual", INVERTED | {"activation": "swash"}, ((8, 4, 4),) * 2, "'swash'"),
        (
            "inverted_residual",
            INVERTED | {"squeeze_excite": "soft"},
            ((8, 4, 4),) * 2,
            "squeeze_excite of .* must be one of .*hard.*'soft'",
        ),
        ("grouped_bottleneck", INVERTED, ((12, 4, 4),) * 2, "multiple of the group size 8.* 12"),
        (
            "residual_basic",
            RESIDUAL | {"squeeze_excite": "hard"},
            ((8, 4, 4),) * 2,
            "squeeze_excite of .* must be one of false, true, but is 'hard'",
        ),
        (
            "residual_bottleneck",
            RESIDUAL | {"group_size": 16},
            ((8, 4, 4), (48, 4, 4)),
            "multiple of the group size 16.* 24",
        ),
        ("transformer", TOKENS, ((9, 8), (9, 16)), "keep its channels.* 8 .* 16"),
        ("transformer", TOKENS | {"heads": 3}, ((9, 8),) * 2, "heads must divide .* 8 .* 3"),
        ("transformer", TOKENS | {"mixer": "fft"}, ((9, 8),) * 2, "attention.*'fft'"),
        (
            "transformer",
            TOKENS | {"mixer": "pooling"},
            ((12, 8),) * 2,
            "square of patches.* 12",
        ),
    ],
)
def test_mistakes_are_named(
    family: str, options: dict[str, Any], shape: tuple[Any, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build_block(BlockSpec.of(family, options), StageShape(*shape))(torch.zeros(1, *shape[0]))


def test_pooling_has_one_head_in_a_space() -> None:
    values: dict[str, Any] = {"depth": [1], "heads": [1, 2], "mlp_ratio": [2]}
    specs = block_family("transformer").specs(values | {"mixer": ["attention", "pooling"]})
    kinds = [(spec["mixer"], spec["heads"]) for spec in (dict(each.options) for each in specs)]
    assert kinds == [("attention", 1), ("pooling", 1), ("attention", 2)]
    with pytest.raises(ConfigError, match="must have at least one block"):
        block_family("transformer").specs(values | {"heads": [2], "mixer": ["pooling"]})


@pytest.mark.parametrize("name", models.__all__)
def test_own_networks_have_no_pretrained_weights(name: str) -> None:
    with pytest.raises(ConfigError, match=f"checkpoint for {name}"):
        timm.create_model(name, pretrained=True)


def test_donna_micro_is_what_it_says() -> None:
    model = timm.create_model("donna_micro")
    assert 550_000 < complexity(model, (3, 32, 32))["params"] < 650_000
    shapes = [shape for _, shape in cut("donna_micro")]
    assert shapes[0].input == (16, 32, 32)
    assert [shape.output[0] for shape in shapes] == [24, 40, 80, 112]
    assert [shape.stride for shape in shapes] == [2, 2, 1, 2]
