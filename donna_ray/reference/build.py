"""A timm model built and cut into stem, stages and head: the reference before it is trained."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from donna_ray.complexity import deployed, folding, output_deployed
from donna_ray.config import ReferenceConfig, RunConfig
from donna_ray.data import class_count, image_format, used_preprocessing
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.onnx_export import TOLERANCE, logits_error
from donna_ray.reference.cut import cut_model
from donna_ray.reference.first_run import check_runs
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.own_network import is_own
from donna_ray.reference.stages import automatic_cut
from donna_ray.reference.timm_models import create_timm_model, other_size, preprocessing_of
from donna_ray.reference.told_arguments import told_arguments
from donna_ray.reference.trace import LARGER, CannotCutError

__all__ = ["build_reference", "check_cut", "cut_error", "cut_reference", "outline"]

_CUT_TOLERANCE = 1e-5


def build_reference(
    config: RunConfig,
    *,
    classes: int | None = None,
    load_weights: bool = True,
    preprocessing: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[StagedNetwork, dict[str, Any]]:
    """Build the model and cut it.

    Args:
        config: names the model, the data's format and the weights.
        classes: of the data; None asks the data.
        load_weights: load what `reference.weights` names (nothing for `train`); else the weights
            are left random, for a caller that loads them itself.
        preprocessing: timm's data configuration of a finished reference, from whose `input_size`
            the model is built; None asks the model and what lies beside its weights.
        arguments: of ``told_arguments``, of a finished reference; None asks what lies beside its
            weights or is in them.

    Returns:
        The reference in eval mode, and timm's data configuration of it (input_size, mean, …).

    Raises:
        ConfigError: timm does not know the model, it cannot be cut, or its weights cannot be had.
    """
    known = class_count(config.data) if classes is None else classes
    model, reference, used = outline(
        config,
        known,
        load_weights=load_weights,
        preprocessing=preprocessing,
        arguments=arguments,
    )
    check_cut(model, reference, config.reference.model)
    return reference, used


def outline(
    config: RunConfig,
    classes: int | None,
    *,
    load_weights: bool,
    preprocessing: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, StagedNetwork, dict[str, Any]]:
    """The model of a configuration and its cut, which is not compared with it.

    Args:
        config: names the model, the images' format and the weights.
        classes: of the data; None is timm's default for the model.
        load_weights: as in ``build_reference``.
        preprocessing: likewise.
        arguments: likewise.

    Returns:
        The model, the reference of the same modules, and timm's data configuration.
    """
    image, named = image_format(config.data), config.reference
    size = image["size"]
    if preprocessing is not None:
        named = named.model_copy(update={"weights": "train"})  # what lies beside them is known
        size = size or other_size(named.model, preprocessing["input_size"])
    if arguments is None:
        arguments = told_arguments(named, say=load_weights)
    model = create_timm_model(
        named,
        classes=classes,
        channels=image["channels"],
        image_size=size,
        load_weights=load_weights,
        arguments=arguments,
    )
    if preprocessing is None:
        own = preprocessing_of(model, image["channels"], size)
        preprocessing = used_preprocessing(config.data, own) | config.data.preparation()
    shape = tuple(preprocessing["input_size"])
    reference = cut_reference(model, config.reference, shape, arguments)
    return model, reference, dict(preprocessing)


def cut_reference(
    model: nn.Module,
    config: ReferenceConfig,
    input_shape: Any,
    arguments: Mapping[str, Any] | None = None,
) -> StagedNetwork:
    """A timm model as a ``StagedNetwork``, cut where `reference.stages` says or automatically.

    Args:
        model: shares its modules with the result.
        config: for `stages`.
        input_shape: (channels, height, width) of an image.
        arguments: that timm was told to build it with, beside what the images say.

    Raises:
        ConfigError: it cannot be cut there, does not take images of this size, or gives something
            else than a tensor with a row for each.
    """
    check_runs(model, input_shape)

    def enlarged() -> nn.Module:
        channels, height, _ = input_shape
        with torch.device("meta"):
            return create_timm_model(
                ReferenceConfig(model=config.model),
                channels=channels,
                image_size=LARGER * height,
                arguments=arguments,
            )

    try:
        if config.stages is None:
            parts, stages = automatic_cut(model, input_shape, enlarged)
        else:
            stages = [(each,) if isinstance(each, str) else tuple(each) for each in config.stages]
            parts = cut_model(model, stages, input_shape, enlarged)
    except CannotCutError as reason:
        raise ConfigError(_not_cut(config, model, reason)) from reason
    stem, *middle, head = parts
    return StagedNetwork(stem, middle, head, input_shape, names=stages)


def _not_cut(config: ReferenceConfig, model: nn.Module, reason: CannotCutError) -> str:
    return (
        f"A reference must be a model that can be cut into stages, but {type(model).__name__} "
        f"cannot be cut here: {reason}. {_remedy(config, model, reason)}"
    )


def _remedy(config: ReferenceConfig, model: nn.Module, reason: CannotCutError) -> str:
    if is_own(model):
        if reason.remedy is not None:
            return reason.remedy
    elif config.stages is None or reason.remedy is not None:
        return "Choose another model: docs/models.md lists many that can be cut."
    return (
        f"Name {'other ' if config.stages else ''}modules in reference.stages, such as [layer1, "
        "[layer2.0, layer2.1]]: each is called once, and one tensor goes from each stage to the "
        f"next. It has {', '.join(name for name, _ in model.named_children())}."
    )


def check_cut(
    model: nn.Module, reference: StagedNetwork, name: str, images: Tensor | None = None
) -> None:
    """Refuse a cut that does not compute what the model does.

    Args:
        model: the whole, in messages under this name.
        reference: the cut.
        images: on the device of both; None takes two random ones.

    Raises:
        DonnaError: the outputs differ by more than rounding, or those of the form that is deployed,
            or those of the whole from each other.
    """
    whole, cut = _outputs(model, reference, images)
    if whole.isnan().any():
        raise DonnaError(
            f"The output of a reference must be numbers, but {name} gives NaN{_where(model)}. "
            "Mend its weights, or its images."
        )
    error = _largest(whole - cut)
    if error > _CUT_TOLERANCE * max(1.0, _largest(whole)):
        again, _ = _outputs(model, reference, images)
        if not _largest(again - whole) <= _CUT_TOLERANCE * max(1.0, _largest(whole)):
            raise DonnaError(
                f"A reference in eval mode must give the same for the same images, but {name} "
                f"differs by {_largest(again - whole):.2e} from itself: its forward draws random "
                "numbers, or keeps something. Let it do so only where `self.training` is true."
            )
        raise DonnaError(
            f"The cut reference must equal {name} to {_CUT_TOLERANCE}, but differs by {error:.2e}. "
            f"{_lost(model)}"
        )
    if kinds := folding(reference):
        own = copy.deepcopy(reference).cpu()  # a GPU may round products to TF32
        given = _random(reference) if images is None else images.cpu()
        with torch.no_grad():
            folded = output_deployed(deployed(own), own, given.clone())
            _check_folded(folded, own(given.clone()), name, kinds)


def _lost(model: nn.Module) -> str:
    """What the cut leaves out, and what to do."""
    if model._forward_hooks or model._forward_pre_hooks:
        return "It has forward hooks of its own, which are lost: do in its forward what they do."
    return (
        "A `with` in its forward, such as torch.autocast, is lost: move it into the forward of a "
        "module that a stage is made of. Else choose other stages in reference.stages, or another "
        "model."
    )


def _check_folded(folded: Tensor, own: Tensor, name: str, kinds: Sequence[str]) -> None:
    error = logits_error(folded, own)
    if not error <= TOLERANCE:
        raise DonnaError(
            f"The form that {name} is deployed in must give its outputs to {TOLERANCE} of the "
            f"largest (or 1), but differs by {error:.2e}. A method fuse, reparameterize or "
            "switch_to_deploy without arguments folds a module, or torch's parametrizations are "
            f"taken out of one ({', '.join(kinds)}): mend it, or rename the method if it does "
            "something else."
        )


def _where(model: nn.Module) -> str:
    """The first of its weights that has NaN, in words."""
    names = (name for name, value in model.state_dict().items() if value.isnan().any())
    return next((f": its {name} has NaN" for name in names), "")


def cut_error(model: nn.Module, reference: StagedNetwork) -> float:
    """Largest absolute difference of the outputs for two random images, in eval mode."""
    whole, cut = _outputs(model, reference, None)
    return _largest(whole - cut)


@torch.no_grad()
def _outputs(
    model: nn.Module, reference: StagedNetwork, images: Tensor | None
) -> tuple[Tensor, Tensor]:
    if images is None:
        images = _random(reference)
    return model.eval()(images.clone()), reference.eval()(images.clone())


def _random(reference: StagedNetwork) -> Tensor:
    """Two images, the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *reference.input_shape, generator=generator)


def _largest(values: Tensor) -> float:
    return values.abs().max().item()
