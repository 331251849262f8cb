"""What the tests of the export share."""

from __future__ import annotations

import pytest
import torch

from donna_ray.export import step
from tests.unit.export.made import loaded


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python file is checked in this process: its own takes seconds to start, and one test
    has it."""
    run = torch.no_grad()(lambda folder, images: loaded(folder)(images))
    monkeypatch.setattr(step, "_logits_alone", run)
