"""More choices in a finished run: only the new blocks are distilled, the predictor is kept.

One of the new families cannot be trained: it is left out, and the run goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from donna_ray.report.results import Results
from tests.command_line import donna_here
from tests.integration.conftest import SMALLEST, results_of, words_of_demo

OWN_BLOCK = """
from torch import nn
from donna_ray.space import register_block

@register_block("plain_convolution", ("kernel",))
def build(in_channels, out_channels, stride, *, kernel):
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )

class Exploding(nn.Conv2d):
    steps = 0

    def forward(self, x):
        self.steps += self.training
        return super().forward(x) / float(self.steps < 4 or not self.training)

@register_block("exploding", ("kernel",))
def build_exploding(in_channels, out_channels, stride, *, kernel):
    return Exploding(in_channels, out_channels, kernel, stride, kernel // 2)
"""


@pytest.mark.soak
def test_extended_space_distils_new_blocks_and_keeps_the_predictor(
    one_ray: None, copy_of_finished: Path, tmp_path: Path
) -> None:
    before = Results.model_validate(results_of(copy_of_finished))
    module = tmp_path / "my_block.py"
    module.write_text(OWN_BLOCK)
    blocks: Any = SMALLEST["space.blocks"]
    own = {"family": "plain_convolution", "options": {"kernel": [3]}}
    exploding = {"family": "exploding", "options": {"kernel": [3]}}
    command = words_of_demo(
        copy_of_finished,
        "--set=cluster.workers=1",
        f"--set=space.modules={json.dumps([str(module)])}",
        f"--set=space.blocks={json.dumps([own, *blocks, exploding])}",
    )
    completed = donna_here(*command)
    assert completed.returncode == 0, completed.stderr
    assert "12 of 18 blocks are there already" in completed.stderr
    assert "exploding(kernel=3) in stage 2 failed and is left out: loss became" in completed.stderr
    assert "the predictor was fitted: it is kept" in completed.stderr.replace("\n", " ")
    after = Results.model_validate(results_of(copy_of_finished))

    assert after.predictor.architectures == before.predictor.architectures
    assert after.predictor.kendall_tau == before.predictor.kendall_tau
    assert [block.stage for block in after.library.failed] == [0, 1, 2]
    assert all(str(block.block) == "exploding(kernel=3)" for block in after.library.failed)
    assert (before.predictor.library_size, after.predictor.library_size) == (12, 12)
    for old, new in zip(before.library.stages, after.library.stages, strict=True):
        assert len(new.blocks) == 5
        assert [block.key for block in new.blocks[1:]] == [block.key for block in old.blocks]
    known = {tuple(map(str, point.blocks)): point.id for point in before.scenarios[0].front}
    again = {tuple(map(str, point.blocks)): point.id for point in after.scenarios[0].front}
    for blocks_of, identity in again.items():
        assert known.get(blocks_of, identity) == identity

    again_done = donna_here(*command)
    assert again_done.returncode == 0, again_done.stderr
    assert "library    reused" in again_done.stderr
    assert "search/default reused" in again_done.stderr
