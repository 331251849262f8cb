"""A network as one Python file that needs torch, timm and safetensors, but not this package."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any

import timm
from torch import Tensor, fx, nn

from donna_ray.complexity import fold
from donna_ray.errors import DonnaError
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import UNSHRUNK, BlockSpec, StageShape, block_family
from donna_ray.space.bundle import Bundle

__all__ = ["entry_name", "standalone_source", "timm_source"]

_IMPORTS = (
    *("import json", "import safetensors.torch", "import sys", "import timm", "import torch"),
    *("from pathlib import Path", "from timm.models import load_pretrained"),
    *("from timm.models import register_model", "from torch import nn"),
)
_NAMES = ("Head", "Network", "Stem", "WEIGHTS", "adopt", "load", "model")
_FREED = re.compile(r";  (?:\w+ = )+None$", re.MULTILINE)  # what torch.fx adds to free memory

_ADOPT = '''
def adopt(part, model, names):
    """Give a part the model's modules, parameters and buffers of these names."""
    for name in names:
        owner, source, path = part, model, name.split(".")
        for each in path[:-1]:
            if not hasattr(owner, each):
                owner.add_module(each, nn.Module())
            owner, source = getattr(owner, each), getattr(source, each)
        value = getattr(source, path[-1])
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            owner.register_buffer(path[-1], value)
        else:
            setattr(owner, path[-1], value)
'''
_NETWORK = '''
class Network(nn.Module):
    """Normalised images (N, {shape}) to logits (N, {classes})."""

    def __init__(self):
        super().__init__()
        model = {model}
        self.stem = {stem}
        self.stages = nn.Sequential(
{stages}
        )
        self.head = {head}

    def forward(self, images):
        return self.head(self.stages(self.stem(images)))


WEIGHTS = Path(__file__).with_name("model.safetensors")


def load(path=WEIGHTS):
    """The network with its weights, in eval mode, its branches for training folded together."""
    network = Network()
    network.load_state_dict(safetensors.torch.load_file(path))
    return {fold}(network.eval())


def {entry}(
    pretrained=False, pretrained_cfg=None, cache_dir=None, pretrained_model_args=None, **others
):
    """What timm makes of a folder that names it, such as this one, with the weights of that folder:
    `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    own = {own}
    for name, value in others.items():
        if value is not None and (name not in own or value != own[name]):
            raise ValueError(
                f"{{name}} must be {{own.get(name, 'left out')}}, as the network is so, but is "
                f"{{value!r}}. Make it without, and replace its modules, such as `network.head`."
            )
    network = Network()
    network.num_classes, network.num_features = own["num_classes"], {features}
    named = pretrained_cfg
    if not named:
        config = WEIGHTS.with_name("config.json")
        known = json.loads(config.read_text())["pretrained_cfg"] if config.exists() else {{}}
        named = {{**known, "source": "local-dir", "file": str(WEIGHTS.parent)}}
    network.pretrained_cfg = network.default_cfg = {{**named, "architecture": "{entry}"}}
    if pretrained:
        load_pretrained(network, named, own["num_classes"], own["in_chans"], cache_dir=cache_dir)
    return network


if __name__ in sys.modules:
    register_model({entry})
'''
_TIMM = '''"""{title}"""

from pathlib import Path

import safetensors.torch
import timm
from timm.utils import reparameterize_model


def load(path=Path(__file__).with_name("model.safetensors")):
    """The network with its weights, in eval mode, its branches for training folded together."""
    network = timm.create_model("{name}", {arguments})
    network.load_state_dict(safetensors.torch.load_file(path))
    return reparameterize_model(network.eval())
'''


def entry_name(architecture: str, weights_sha256: str) -> str:
    """Under which timm knows a network of its own kind, once its Python file is imported.

    Args:
        architecture: its id, which networks on other references have, too.
        weights_sha256: of its weights.
    """
    return f"donna_{architecture}_{weights_sha256[:8]}"


def timm_source(architecture: str, name: str, arguments: Mapping[str, Any]) -> str:
    """The text of a module with the function `load`, for a network that is timm's own model.

    Args:
        architecture: id of the network.
        name: timm's, of the model.
        arguments: that timm's factory makes it of.
    """
    title = _title(architecture, f"timm's {name} itself.")
    return _TIMM.format(title=title, name=name, arguments=_written(arguments))


def standalone_source(
    architecture: str,
    entry: str,
    model: nn.Module,
    name: str,
    arguments: Mapping[str, Any],
    reference: StagedNetwork,
    specs: Sequence[BlockSpec],
) -> str:
    """The text of a module with the class `Network` and the function `load`; timm knows it then.

    `Network().state_dict()` has the names of the network that ``assemble`` makes of these blocks.
    Code of this package and of users' block families is copied into it, as far as it is used.

    Args:
        architecture: id of the network.
        entry: its ``entry_name``.
        model: the timm model.
        name: timm's, of the model.
        arguments: that timm's factory makes the model of.
        reference: its cut, of the same modules.
        specs: one block a stage.

    Raises:
        DonnaError: code that has to be copied cannot be (see ``Bundle.add``).
    """
    kinds = [f"Stage{number}" for number in range(len(specs))]
    bundle = Bundle(_IMPORTS, (*_NAMES, entry, *kinds))
    factory = _factory(bundle, name)
    original = timm.create_model(name, **arguments)  # without what the cut has added
    classes: list[str] = []

    def part(kind: str, module: nn.Module) -> str:
        call, definition = _part(bundle, kind, module, model, original)
        classes.extend([definition] if definition else [])
        return call

    stem, head = part("Stem", reference.stem), part("Head", reference.head)
    stages = [
        _call(bundle, spec, shape, partial(part, kind, own))
        for kind, spec, shape, own in zip(
            kinds, specs, reference.shapes, reference.stages, strict=True
        )
    ]
    network = _NETWORK.format(
        shape=", ".join(map(str, reference.input_shape)),
        classes=reference.classes,
        model=f"{factory}{_written(arguments)})",
        stem=stem,
        stages="\n".join(f"            {stage}," for stage in stages),
        head=head,
        entry=entry,
        features=getattr(model, "num_features", None),
        fold=bundle.add(fold),
        own={**_own_arguments(reference, model), **arguments},
    )
    title = _title(architecture, f"{len(specs)} stages on the stem and head of {name}.")
    return _text(title, bundle, classes, network)


def _text(title: str, bundle: Bundle, classes: Sequence[str], network: str) -> str:
    """Of the whole module: what is imported and copied, the classes of its parts, the network."""
    start = f'"""{title}"""\n\nfrom __future__ import annotations\n\n'
    texts = [start + "\n".join(sorted(bundle.imports)), *bundle.definitions]
    texts += [_ADOPT, *classes] if classes else []
    return "\n\n\n".join(text.strip("\n") for text in (*texts, network) if text) + "\n"


def _own_arguments(reference: StagedNetwork, model: nn.Module) -> dict[str, Any]:
    """Of what timm's tools give every model: what changes nothing of this one."""
    known = {"num_classes": reference.classes, "in_chans": reference.input_shape[0]}
    return {**known, "features_only": False, "drop_rate": getattr(model, "drop_rate", 0.0)}


def _title(architecture: str, what: str) -> str:
    return (
        f"{architecture}: {what}\n\nNeeds torch, timm and safetensors. `load()` gives it with its "
        "weights."
    )


def _factory(bundle: Bundle, name: str) -> str:
    """The beginning of the call that makes the model, up to its keywords."""
    entry = timm.model_entrypoint(name)
    if entry.__module__.partition(".")[0] == "timm":
        return f'timm.create_model("{name}", '
    return f"{bundle.add(entry)}("


def _call(bundle: Bundle, spec: BlockSpec, shape: StageShape, own_stage: Callable[[], str]) -> str:
    if spec == UNSHRUNK:
        return own_stage()
    family = block_family(spec.family)
    first = (own_stage(), shape.input) if family.of_stage else (*shape.channels, shape.stride)
    arguments = ", ".join(map(str, first))
    return f"{bundle.add(family.build)}({arguments}, {_written(dict(spec.options))})"


def _written(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _part(
    bundle: Bundle, kind: str, part: nn.Module, model: nn.Module, original: nn.Module
) -> tuple[str, str]:
    """What makes a part of `model`; the class that this needs, if any."""
    if isinstance(part, fx.GraphModule):
        return f"{kind}(model)", _traced(bundle, kind, part, original)
    names = {module: name for name, module in model.named_modules()}

    def written(module: nn.Module) -> str:
        known = _has(original, names[module])
        return f'model.get_submodule("{names[module]}")' if known else _dropout(module)

    if part in names:
        return written(part), ""
    return f"nn.Sequential({', '.join(map(written, part.children()))})", ""


def _traced(bundle: Bundle, kind: str, part: fx.GraphModule, original: nn.Module) -> str:
    """The class of a part whose code torch.fx has written."""
    nodes = (node for node in part.graph.nodes if node.op in ("call_module", "get_attr"))
    targets = list(dict.fromkeys(str(node.target) for node in nodes))
    adopted = [name for name in targets if _has(original, name)]
    own = [name for name in targets if name not in adopted]
    code = part.graph.python_code("self")
    forward = _FREED.sub("", code.src).strip("\n")
    bundle.imports.update(_imports(code.globals, forward))
    lines = [
        f"class {kind}(nn.Module):",
        "    def __init__(self, model):",
        "        super().__init__()",
        f"        adopt(self, model, {adopted})",
        *(f"        {_made(name, attrgetter(name)(part))}" for name in own),
        "",
        *(f"    {line}".rstrip() for line in forward.splitlines()),
    ]
    return "\n".join(lines)


def _made(name: str, value: Any) -> str:
    """What the cut has added to the model: dropout that was a function, and constant tensors."""
    if isinstance(value, Tensor):
        empty = f"torch.zeros({tuple(value.shape)}, dtype={value.dtype})"
        return f'self.register_buffer("{name}", {empty})'
    return f"self.{name} = {_dropout(value)}"


def _dropout(module: Any) -> str:
    if type(module) is not nn.Dropout:
        raise DonnaError(
            f"The parts of a reference must be its model's own to be exported, but "
            f"{type(module).__name__} is not. Report the model as a defect."
        )
    return f"nn.Dropout({module.p})"


def _imports(names: Mapping[str, Any], code: str) -> Iterator[str]:
    """Lines that bind the names which torch.fx gives to what its code uses."""
    for name, value in names.items():
        if not re.search(rf"\b{name}\b", code):
            continue
        if isinstance(value, ModuleType):
            yield f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}")
        elif isinstance(value, float):
            yield f"from math import {name}"  # inf or nan
        else:
            yield f"from {value.__module__} import {value.__qualname__} as {name}"


def _has(model: nn.Module, name: str) -> bool:
    try:
        attrgetter(name)(model)
    except AttributeError:
        return False
    return True
