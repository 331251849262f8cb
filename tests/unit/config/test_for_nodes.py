"""A configuration that is checked on a laptop and run on a cluster."""

from __future__ import annotations

import pytest

from donna_ray.config import load_config, shipped_config
from donna_ray.errors import ConfigError
from donna_ray.pipeline import check
from tests.command_line import donna_here


def test_what_only_nodes_have_is_checked_by_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop's check of what is for a cluster; the job, on the head, looks itself."""
    demo = str(shipped_config("demo"))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    settings = ("reference.weights=/on/the/nodes.pth", "device.settings.threads=4")
    sets = [f"--set={each}" for each in (*settings, "device.precision=fp16")]
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert donna_here("config", "check", demo, *sets).stderr == ""
    recorded = "device={connector: recorded, settings: {path: /on/the/nodes.json}}"
    assert donna_here("config", "check", demo, "--set", recorded).returncode == 0
    for wrong in ("device.settings.threads=none", recorded.replace("path", "file")):
        assert donna_here("config", "check", demo, "--set", wrong).returncode == 2
    with pytest.raises(ConfigError, match=r"weights must be .* exists, but is '/on/the/nodes.pth'"):
        check(load_config(shipped_config("demo"), [settings[0]]))
    with pytest.raises(ConfigError, match=r"path must be a record .* cannot be read"):
        check(load_config(shipped_config("demo"), [recorded]))
