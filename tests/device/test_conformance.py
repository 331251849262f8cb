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
    """The example of the documentation, as it stands there."""
    _, text = (ROOT / "docs/device-farm.md").read_text().split("### A connector of your own\n")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = "my_package.py", "conftest.py", "test_my_board.py"
    for name, block in zip(names, blocks, strict=True):
        (tmp_path / name).write_text(block)
    return tmp_path


def run(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, str(package)],
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
        file.write("class Wrong(MyBoardConnector):\n")
        file.write("    def close(self):\n        pass\n")
        file.write("    def probe(self):\n")
        file.write("        import dataclasses\n")
        file.write("        return dataclasses.replace(super().probe(), name='another')\n")
        file.write("MyBoardConnector = Wrong\n")
    result = run(package, "-k", "probe or close or settings")
    assert "2 failed, 2 passed" in result.stdout
    assert "test_close_is_idempotent_and_final" in result.stdout
    assert re.search(r"assert \('another', .*\) == \('board', ", result.stdout)  # with the values
