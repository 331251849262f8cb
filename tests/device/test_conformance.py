"""The conformance suite as a third party runs it: in a folder of its own, by pytest alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The example of the documentation, with a board that is really a simulated device."""
    text = (ROOT / "docs/device-farm.md").read_text()
    [conftest, suite] = re.findall(r"```python\n(import pytest\n.*?)```", text, re.DOTALL)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_my_board.py").write_text(suite)
    (tmp_path / "my_package.py").write_text(
        "from device_farm.connectors.simulated import SimulatedConnector\n"
        "class MyBoardConnector(SimulatedConnector):\n"
        "    def __init__(self, device, settings):\n"
        "        given = {key: settings[key] for key in settings if key != 'address'}\n"
        "        super().__init__(device, given)\n"
    )
    return tmp_path


def run(package: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package)],
        cwd=package,
        env={**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=3000,
    )


def test_a_connector_that_conforms_passes(package: Path) -> None:
    result = run(package)
    assert (result.returncode, "13 passed" in result.stdout) == (0, True), result.stdout


def test_one_that_does_not_is_told_where(package: Path) -> None:
    with (package / "my_package.py").open("a") as file:
        file.write("    def close(self):\n        pass\n")
        file.write("    def probe(self):\n")
        file.write("        import dataclasses\n")
        file.write("        return dataclasses.replace(super().probe(), name='another')\n")
    result = run(package)
    assert "2 failed, 11 passed" in result.stdout
    assert "test_close_is_idempotent_and_final" in result.stdout
    assert re.search(r"assert \('another', .*\) == \('board', ", result.stdout)  # with the values
