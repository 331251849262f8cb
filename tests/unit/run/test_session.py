"""Which Ray a run is on."""

import pytest

from donna_ray.run.session import RaySession


def test_a_named_cluster_is_joined_and_local_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for address, joins in [
        ("10.0.0.1:6379", True),
        ("ray://10.0.0.1:10001", True),
        ("local", False),
    ]:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert RaySession.joins() is joins
    monkeypatch.delenv("RAY_ADDRESS")
    assert not RaySession.joins()
