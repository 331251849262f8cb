"""What is deployed: modules that fold themselves, and methods of the same names that do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from donna_ray.complexity import complexity, deployed, fold
from donna_ray.config import ReferenceConfig
from donna_ray.errors import DonnaError
from donna_ray.onnx_export import TOLERANCE, export_onnx, onnx_error
from donna_ray.reference.build import check_cut, cut_reference

SHAPE = (4, 6, 6)


class Branches(nn.Module):
    """Two convolutions whose sum is one."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.one(features) + self.other(features)

    def fuse(self) -> nn.Module:
        self.one.weight.data += self.factor * self.other.weight
        return self.one


class Pyramid(Branches):
    """Its `fuse` is another one; its `reparameterize` is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.reparameterize = nn.Conv2d(4, 4, 1)

    def fuse(self, one: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return one + other

    def forward(self, features: Tensor) -> Tensor:
        return self.fuse(self.one(features), self.reparameterize(features))


class Wrong(Branches):
    factor = 2.0


class Raising(Branches):
    def fuse(self) -> nn.Module:
        raise KeyError("of something else")


def network(stage: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(stage), nn.Conv2d(4, 4, 1), nn.Flatten())


@torch.no_grad()
def test_own_modules_fold_themselves_as_timms_do() -> None:
    model = network(Branches())
    weights, images = 4 * 4 * 4 + 2 * 4, torch.randn(2, *SHAPE)
    assert complexity(model, SHAPE)["params"] == weights - 4 * 4
    torch.testing.assert_close(deployed(model)(images), model(images))
    assert sum(each.numel() for each in model.parameters()) == weights
    root = Branches()
    assert fold(root) is root.one


class Normed(nn.Module):
    """Weights that are computed at each call."""

    def __init__(self) -> None:
        super().__init__()
        kinds = (parametrizations.spectral_norm, parametrizations.orthogonal)
        layers = [make(nn.Conv2d(4, 4, 1)) for make in (*kinds, parametrizations.weight_norm)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class Unnormed(Normed):
    """It takes one of the parametrizations itself."""

    def fuse(self) -> None:
        parametrize.remove_parametrizations(self.layers[1], "weight")


@torch.no_grad()
@pytest.mark.parametrize("kind", [Normed, Unnormed])
def test_weights_that_torch_parametrises_are_deployed_as_they_are(kind: type[Normed]) -> None:
    """Twice, and the module stays as it is: copies of it have its class."""
    model, images = network(kind()).train(), torch.randn(2, *SHAPE)
    model(images)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        assert complexity(model, SHAPE)["params"] == 5 * (4 * 4 + 4)
        made = export_onnx(model, SHAPE)
        torch.testing.assert_close(deployed(model)(images), model.eval()(images))
        assert onnx_error(made, model, images) < TOLERANCE
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())


class Reading(nn.Conv2d):
    """Its forward reads what computes its weight."""

    def forward(self, features: Tensor) -> Tensor:
        length = self.parametrizations.weight.original0.mean()  # type: ignore[union-attr]
        return super().forward(features) * length


class Telling(nn.Conv2d):
    """Its forward asks whether its weight is computed."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * (2 if parametrize.is_parametrized(self) else 1)


def test_forward_that_needs_a_parametrisation_is_named() -> None:
    """Where it is costed, and where a reference is checked."""
    model = network(parametrizations.weight_norm(Reading(4, 4, 1))).eval()
    words = "with Reading it raised AttributeError: .*Let its forward read the weight itself"
    with pytest.raises(DonnaError, match=words):
        complexity(model, SHAPE)
    reference = cut_reference(model, ReferenceConfig(model="model", stages=["1", "2"]), SHAPE)
    with pytest.raises(DonnaError, match=words):
        check_cut(model, reference, "model")
    model[1][0] = parametrizations.weight_norm(Telling(4, 4, 1))
    reference = cut_reference(model, ReferenceConfig(model="model", stages=["1", "2"]), SHAPE)
    with pytest.raises(DonnaError, match=r"must give its outputs .*\(Telling\): mend it"):
        check_cut(model, reference, "model")


def test_module_that_never_runs_says_why_itself() -> None:
    with pytest.raises(RuntimeError, match="Invalid channel"):
        complexity(network(parametrizations.weight_norm(nn.Conv2d(5, 4, 1))), SHAPE)


@torch.no_grad()
def test_methods_of_other_meanings_are_not_called() -> None:
    model, images = network(Pyramid()), torch.randn(2, *SHAPE)
    assert complexity(model, SHAPE)["params"] == 5 * 4 * 4 + 3 * 4
    assert deployed(model)(images).equal(model(images))


def test_folding_that_changes_what_is_computed_is_named() -> None:
    model = network(Wrong())
    reference = cut_reference(model, ReferenceConfig(model="model", stages=["1", "2"]), SHAPE)
    with pytest.raises(DonnaError, match=r"Wrong\): mend it"):
        check_cut(model, reference, "model")


def test_folding_that_raises_is_named() -> None:
    with pytest.raises(DonnaError, match="with Raising one raised KeyError"):
        deployed(network(Raising()))
