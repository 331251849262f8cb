"""Commands here begin one after the other, but where a test says so."""

from __future__ import annotations

import pytest

from donna_ray.run import lease


@pytest.fixture(autouse=True)
def begun_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lease waits for a command that began at the same moment."""
    monkeypatch.setattr(lease, "_SETTLE_S", 0.0)
