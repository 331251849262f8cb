"""Finds blocks that cannot stand in their stage, and what every block costs, before training."""

from collections.abc import Sequence

import torch
from torch import nn

from donna_ray.artifacts import digest
from donna_ray.complexity import probe
from donna_ray.errors import ConfigError
from donna_ray.export import export_onnx, onnx_error
from donna_ray.space.block import BlockSpec, StageShape, block_family, build_block
from donna_ray.space.costs import CostCache
from donna_ray.space.space import SearchSpace, Stage

__all__ = ["Costs", "check_space", "covering"]

Costs = list[list[dict[str, int]]]
"""`params` and `macs` of every choice of every stage."""


def check_space(space: SearchSpace) -> Costs:
    """Check every block of every stage; what was checked before is read from the user's cache.

    Every block is built on the meta device: it must keep the stage's shape and have parameters.
    Every block of a user's family, and of the other families blocks that show every value of every
    option, is also run: its output and gradients must be finite, and its ONNX export must compute
    the same.

    Raises:
        ConfigError: names the block, the stage and the rule that it breaks.
    """
    with CostCache() as cache:
        return [_check_stage(stage, number, cache) for number, stage in enumerate(space.stages)]


def covering(specs: Sequence[BlockSpec]) -> list[BlockSpec]:
    """Few blocks that together show every value of every option of every family."""
    pairs = [{(spec.family, *option) for option in spec.options} for spec in specs]
    unseen = set().union(*pairs)
    chosen = []
    while unseen:
        best = max(range(len(specs)), key=lambda index: len(pairs[index] & unseen))
        unseen -= pairs[best]
        chosen.append(specs[best])
    return chosen


def _check_stage(stage: Stage, number: int, cache: CostCache) -> list[dict[str, int]]:
    builtin = [spec for spec in stage.choices if block_family(spec.family).builtin]
    run = {*covering(builtin), *(spec for spec in stage.choices if spec not in set(builtin))}
    costs = []
    for spec in stage.choices:
        key = _key(spec, stage.shape, run=spec in run)
        cost = cache.get(key)
        if cost is None:
            cost = _check_block(spec, stage.shape, number)
            if spec in run:
                _run_block(spec, stage.shape, number)
            cache.put(key, cost)
        costs.append(cost)
    return costs


def _key(spec: BlockSpec, shape: StageShape, *, run: bool) -> str:
    source = block_family(spec.family).source
    return digest([spec.to_json(), shape.input, shape.output, source, torch.__version__, run])


def _check_block(spec: BlockSpec, shape: StageShape, number: int) -> dict[str, int]:
    try:
        with torch.device("meta"):
            block = build_block(spec, shape).eval()
        trainable = any(parameter.requires_grad for parameter in block.parameters())
        cost, output = probe(block.requires_grad_(False), shape.input)
    except ConfigError:
        raise
    except Exception as error:
        reason = f"building it raised {type(error).__name__}: {error}"
        raise _broken(spec, number, reason) from error
    if output != shape.output:
        raise _broken(spec, number, f"it turns {shape.input} into {output}, not {shape.output}")
    if not trainable:
        raise _broken(spec, number, "it has no parameters to train")
    return cost


def _run_block(spec: BlockSpec, shape: StageShape, number: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = build_block(spec, shape)
        features = torch.randn(2, *shape.input)
    try:
        _check_gradients(block.train(), features)
        onnx_error(export_onnx(block, shape.input), block.eval().requires_grad_(False), features)
    except Exception as error:
        reason = f"running it raised {type(error).__name__}: {error}"
        raise _broken(spec, number, reason) from error


def _check_gradients(block: nn.Module, features: torch.Tensor) -> None:
    output = block(features)
    output.square().mean().backward()
    if not output.isfinite().all():
        raise ValueError("its output is not finite")
    for name, parameter in block.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise ValueError(f"the gradient of {name} is not finite")


def _broken(spec: BlockSpec, number: int, reason: str) -> ConfigError:
    return ConfigError(
        f"{spec} must be a block that can stand in stage {number}, but {reason}. Correct the "
        "space, or the family's build function."
    )
