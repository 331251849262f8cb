"""What no network of the space can be is told before anything is trained."""

from __future__ import annotations

import pytest

from donna_ray.config import load_config, shipped_config
from donna_ray.errors import ConfigError
from donna_ray.pipeline import check
from donna_ray.reference.facts import space_facts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "predictor.samples=9000000",
            "predictor.samples must be at most the networks of the space",
        ),
        (
            "library.recipes={inverted_residuals: {epochs: 9}}",
            "library.recipes must be of families",
        ),
        ("search.params_limit=1", r"search.params_limit must be feasible, but is 1 and"),
        ("search.macs_limit=0.0001x", "search.macs_limit must be feasible"),
        ("finetune.architectures=[99-0-0]", "99"),
    ],
)
def test_wishes_that_no_network_keeps_are_told_before_training(change: str, words: str) -> None:
    config = load_config(shipped_config("demo"), [change])
    with pytest.raises(ConfigError, match=words):
        space_facts(config)
    with pytest.raises(ConfigError, match=words):
        check(config)


def test_a_latency_that_the_least_macs_do_not_keep_is_doubted() -> None:
    said: list[str] = []
    least, most = space_facts(load_config(shipped_config("demo"), []), said.append)["macs"]
    assert not any("warning" in line for line in said)
    share = 0.9 * least / most  # of the reference no more
    tight = load_config(shipped_config("demo"), [f"search.latency_limit={share:.3f}x"])
    space_facts(tight, said.append)
    [warned] = [line for line in said if line.startswith("warning: ")]
    assert f"search.latency_limit is {share:.3f}x, but the smallest network" in warned
    said.clear()
    check(load_config(shipped_config("demo"), ["search.latency_limit=1ms"]), said.append)
    assert not any("warning" in line for line in said)
