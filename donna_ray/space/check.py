"""Finds blocks that cannot stand in their stage, and what every block costs, before training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace

import safetensors.torch
import timm
import torch
from torch import nn

from device_farm.foreign import exits_are_errors
from donna_ray.complexity import probe, shadow
from donna_ray.errors import ConfigError
from donna_ray.onnx_export import check_onnx_error, export_onnx, onnx_error
from donna_ray.space.block import BlockSpec, StageShape, block_family, build_block
from donna_ray.space.costs import CostCache
from donna_ray.space.space import SearchSpace, Stage
from donna_ray.storage.artifacts import digest
from donna_ray.versions import VERSION

__all__ = ["Costs", "check_space", "covering"]

Costs = list[list[dict[str, int]]]
"""`params` and `macs` of every choice of every stage."""

_MANY = 100
"""Blocks of a stage, whose check takes seconds and is told."""


def check_space(
    space: SearchSpace,
    say: Callable[[str], None] = lambda text: None,
    *,
    remembered: bool = True,
) -> Costs:
    """Check every block of every stage; what was checked before is read from the user's cache.

    Every block is built on the meta device: it must keep the stage's shape and have parameters.
    Every block of a user's family, and of the other families blocks that show every value of every
    option, is also run: its output and gradients must be finite, its input is left as it is, its
    state_dict is the whole of it, and its ONNX export computes the same.

    Args:
        space: whose blocks.
        say: called with a line before many blocks of a stage are checked.
        remembered: False leaves the cache alone, as for families of a notebook, whose code has no
            file.

    Raises:
        ConfigError: names the block, the stage and the rule that it breaks.
    """
    with closing(CostCache()) if remembered else nullcontext() as cache:
        return [
            _check_stage(stage, number, cache, say) for number, stage in enumerate(space.stages)
        ]


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


def _check_stage(
    stage: Stage, number: int, cache: CostCache | None, say: Callable[[str], None]
) -> list[dict[str, int]]:
    shape = stage.shape
    if shape.own is not None:
        shape = replace(shape, own=shadow(shape.own))
    builtin = [spec for spec in stage.choices if block_family(spec.family).builtin]
    run = {*covering(builtin), *(spec for spec in stage.choices if spec not in set(builtin))}
    keys = [_key(spec, stage.shape, run=spec in run) if cache else "" for spec in stage.choices]
    known = [cache.get(key) if cache else None for key in keys]
    if (unknown := known.count(None)) >= _MANY:
        say(f"checking {unknown} blocks of stage {number}, which are remembered")
    costs = []
    for spec, key, cost in zip(stage.choices, keys, known, strict=True):
        if cost is None:
            cost = _check_block(spec, shape, number)
            if spec in run:
                _run_block(spec, stage.shape, number)
            if cache:
                cache.put(key, cost)
        costs.append(cost)
    return costs


def _key(spec: BlockSpec, shape: StageShape, *, run: bool) -> str:
    family = block_family(spec.family)
    versions = [VERSION, torch.__version__, timm.__version__]
    facts = [spec.to_json(), shape.input, shape.output, family.source, versions, run]
    return digest([*facts, *shape.facts()] if family.of_stage else facts)


def _check_block(spec: BlockSpec, shape: StageShape, number: int) -> dict[str, int]:
    with _named(spec, number, "building it"):
        with torch.device("meta"):
            block = build_block(spec, shape).eval()
        trainable = any(parameter.requires_grad for parameter in block.parameters())
        cost, output = probe(block.requires_grad_(False), shape.input)
    if output != shape.output:
        raise _broken(spec, number, f"it turns {shape.input} into {output}, not {shape.output}")
    if not trainable:
        raise _broken(spec, number, "it has no parameters to train")
    return cost


def _run_block(spec: BlockSpec, shape: StageShape, number: int) -> None:
    with _named(spec, number, "running it"):
        block = _seeded_block(spec, shape, seed=0)
        features = torch.randn(2, *shape.input, generator=torch.Generator().manual_seed(0))
        _check_training(block.train(), features)
        _check_state(block.eval(), _seeded_block(spec, shape, seed=1).eval(), features)
        model = export_onnx(block, shape.input)
        check_onnx_error(onnx_error(model, block.requires_grad_(False), features))


def _seeded_block(spec: BlockSpec, shape: StageShape, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_block(spec, shape)


def _check_training(block: nn.Module, features: torch.Tensor) -> None:
    output = _output(block, features)
    output.square().mean().backward()
    if not output.isfinite().all():
        raise ValueError("its output is not finite")
    for name, parameter in block.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise ValueError(f"the gradient of {name} is not finite")


@torch.no_grad()
def _check_state(block: nn.Module, twin: nn.Module, features: torch.Tensor) -> None:
    """What is stored is the whole block: another one with its state computes the same."""
    state = block.state_dict()
    own = torch.contiguous_format  # as what is stored, of memory that no two names share
    safetensors.torch.save({name: each.clone(memory_format=own) for name, each in state.items()})
    twin.load_state_dict(state)
    if not torch.allclose(_output(block, features), twin(features), rtol=1e-4, atol=1e-5):
        raise ValueError("another block with the same state_dict computes something else")


def _output(block: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """What a block gives for features that it leaves as they are, by torch's count and by value."""
    version, kept = features._version, features.clone()
    output: torch.Tensor = block(features)
    if features._version != version or not features.equal(kept):
        raise ValueError("it changes its input in place, which other blocks get as well")
    return output


@contextmanager
def _named(spec: BlockSpec, number: int, doing: str) -> Iterator[None]:
    """Turn whatever a block raises into an error that names it."""
    try:
        with exits_are_errors():
            yield
    except ConfigError as error:
        raise _broken(spec, number, str(error)) from error
    except Exception as error:
        reason = f"{doing} raised {type(error).__name__}: {' '.join(str(error).split())}"
        raise _broken(spec, number, reason) from error


def _broken(spec: BlockSpec, number: int, reason: str) -> ConfigError:
    return ConfigError(
        f"{spec} must be a block that can stand in stage {number}, but "
        f"{reason.rstrip('.')}. Correct the space, or the family's build function."
    )
