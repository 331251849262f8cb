"""The measurement of the precision chooses one and leaves everything as it was."""

from __future__ import annotations

import pytest
import torch

from donna_ray.data.split import images_read
from donna_ray.distill import precision
from donna_ray.distill.precision import measured_precision
from donna_ray.reference.network import StagedNetwork


def test_measurement_leaves_the_reference_and_the_generator_alone(
    reference: StagedNetwork,
) -> None:
    state = {name: value.clone() for name, value in reference.state_dict().items()}
    generator, moved = torch.get_rng_state(), images_read()
    assert measured_precision(reference, batch_size=4) in ("fp32", "bf16")
    assert images_read() >= moved + 2 * 4 * 4 * len(reference.stages)  # it may take half an hour
    assert torch.get_rng_state().equal(generator)
    assert all(value.equal(state[name]) for name, value in reference.state_dict().items())
    assert not reference.training
    assert not any(value.requires_grad for value in reference.parameters())


@pytest.mark.parametrize(("bf16", "expected"), [(0.8, "bf16"), (0.9, "fp32"), (2.0, "fp32")])
def test_bf16_must_be_a_fifth_faster(
    reference: StagedNetwork, monkeypatch: pytest.MonkeyPatch, bf16: float, expected: str
) -> None:
    seconds = {"fp32": 1.0, "bf16": bf16}
    monkeypatch.setattr(
        precision, "step_cost", lambda _block, _features, way, _memory: (seconds[way], 0)
    )
    assert measured_precision(reference, batch_size=4) == expected
