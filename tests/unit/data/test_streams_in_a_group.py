"""Streams that several processes train one network on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain, zip_longest
from pathlib import Path

PROGRAM = "tests.unit.data.two_readers"


def interleaved(first: list[str], second: list[str]) -> list[str]:
    return [each for each in chain(*zip_longest(first, second)) if each is not None]


def test_two_processes_share_out_each_batch_of_a_stream_once(tmp_path: Path) -> None:
    """timm's readers would divide it as well. What one process alone reads, is read whole."""
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    sources = json.loads(done.stdout.splitlines()[-1])
    assert len(sources) == 3
    for alone, first, second in sources:
        for name in ("sizes", "validated", "tested"):
            assert first[name] == second[name] == alone[name]
        for whole, one, other in zip(
            *(each["trained"] for each in (alone, first, second)), strict=True
        ):
            assert len(whole) == len(one) == len(other)
            assert list(map(interleaved, one, other)) == whole
        assert alone["trained"][0] != alone["trained"][1]
