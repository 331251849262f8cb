"""How these tests are shared out between processes."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="there is one process")
def test_tests_of_a_group_are_in_one_process(request: pytest.FixtureRequest) -> None:
    """Or each process makes a finished run of its own, beside the other's Ray."""
    assert request.node.nodeid.endswith("@one Ray")
