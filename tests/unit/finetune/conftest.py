"""The test of finished networks, made up."""

from __future__ import annotations

from typing import Any

import pytest

from donna_ray.finetune import step
from donna_ray.finetune.tested import wilson


@pytest.fixture(autouse=True)
def _answers_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """90 of 100 test images are right, for every network."""

    def tested(_run: Any, _reference: Any, _store: Any, networks: Any, _workers: int) -> Any:
        return [wilson(90, 100)] * (1 + len(networks))

    monkeypatch.setattr(step, "tested", tested)
