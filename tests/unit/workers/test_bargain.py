"""What is asked of an autoscaler that refuses as a whole what it cannot meet as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from donna_ray.workers.bargain import AGAIN_S, Bargain
from tests.unit.workers.clock import Clock
from tests.unit.workers.shipped_autoscaler import ShippedAutoscaler

WORKER, PHONE, HUGE = {"CPU": 8.0, "GPU": 1.0}, {"phone:pixel-8": 1.0}, {"CPU": 512.0}
TRIES = 16


def looked(bargain: Bargain, times: int = TRIES) -> Bargain:
    for _ in range(times):
        bargain.look()
    return bargain


def launched(name: str, **wanted: list[list[dict[str, float]]]) -> tuple[int, list[int | None]]:
    """Nodes that a shipped cluster starts, and what each asker is told."""
    autoscaler = ShippedAutoscaler(name)
    bargain = Bargain(autoscaler)
    bargain.ask(wanted)
    looked(bargain)
    return sum(autoscaler.launched().values()), [bargain.met(asker) for asker in wanted]


@pytest.mark.parametrize(
    ("name", "most"),
    [("aws-v100", 9), ("gcp", 9), ("kuberay/raycluster", 8), ("kuberay/rayjob", 8)],
)
def test_more_workers_than_a_cluster_can_hold_get_all_its_nodes(name: str, most: int) -> None:
    """Ray's scheduler starts none where one too many is asked for."""
    whole = ShippedAutoscaler(name)
    whole.publish([WORKER] * (most + 1))
    assert whole.refuses()
    assert whole.launched() == {}
    for workers in (1, most, most + 1, 16):
        nodes = min(workers, most)
        assert launched(name, run=[[WORKER]] * workers) == (nodes, [nodes])


def test_a_resource_that_no_node_type_has_takes_no_other_with_it() -> None:
    assert launched("aws-v100", run=[[WORKER]] * 8, search=[[PHONE]]) == (8, [8, 0])
    assert launched("kuberay/raycluster", run=[[WORKER]] * 8, search=[[PHONE]]) == (9, [8, 1])
    assert launched("aws-v100", huge=[[HUGE], [WORKER]], run=[[WORKER]] * 9) == (9, [1, 8])


def test_jobs_share_what_there_is() -> None:
    assert launched("aws-v100", one=[[WORKER]] * 8, other=[[WORKER]] * 8) == (9, [5, 4])
    assert launched("aws-v100", one=[[WORKER]] * 2, other=[[WORKER]] * 16) == (9, [2, 7])


def test_of_a_group_no_part_is_asked_for() -> None:
    assert launched("aws-v100", run=[[WORKER] * 4] * 4) == (8, [2])
    assert launched("aws-v100", run=[[WORKER] * 10]) == (0, [0])


def test_the_second_try_has_nodes_started_and_few_more_are_needed() -> None:
    """A try takes the autoscaler 5 s."""
    autoscaler = ShippedAutoscaler("aws-v100")
    bargain = Bargain(autoscaler)
    bargain.ask({"run": [[WORKER]] * 16})
    looked(bargain, 1)
    assert sum(autoscaler.launched().values()) == 8
    assert bargain.met("run") is None
    looked(bargain)
    assert [len(each) for each in autoscaler.published] == [16, 8, 12, 10, 9]


def test_it_grows_when_more_can_be_met_and_shrinks_when_less_can() -> None:
    autoscaler, clock = ShippedAutoscaler("aws-v100"), Clock()
    bargain = Bargain(autoscaler, clock)
    bargain.ask({"run": [[WORKER]] * 16, "search": [[PHONE]]})
    looked(bargain)
    autoscaler.types["v100"]["max_workers"] = 4  # `ray up` of another configuration
    before = len(autoscaler.published)
    clock.now = AGAIN_S - 1
    looked(bargain)
    assert bargain.met("run") == 9
    clock.now = AGAIN_S
    looked(bargain)
    assert (bargain.met("run"), bargain.met("search")) == (12, 0)
    tries = [len(each) for each in autoscaler.published[before:]]
    assert tries == [10, 10, 12, 16, 14, 13, 12]  # a phone; one worker more, two, four, ...
    assert sum(autoscaler.launched().values()) == 12
    clock.now = AGAIN_S * 2
    looked(bargain)
    assert [len(each) for each in autoscaler.published[-3:]] == [13, 13, 12]  # one of each kind
    autoscaler.types["v100_spot"]["max_workers"] = 2
    looked(bargain)
    assert bargain.met("run") == sum(autoscaler.launched().values()) == 6
    bargain.ask({"run": [[WORKER]] * 2})
    looked(bargain)
    assert autoscaler.launched() == {"v100": 1, "v100_spot": 1}


def test_an_autoscaler_that_does_not_say_is_asked_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As version 1, or a cluster without one."""
    autoscaler = ShippedAutoscaler("aws-v100")
    monkeypatch.setattr(autoscaler, "refuses", lambda: None)
    bargain = Bargain(autoscaler)
    bargain.ask({"run": [[WORKER]] * 16})
    looked(bargain)
    assert [len(each) for each in autoscaler.published] == [16]
    assert bargain.met("run") is None


@given(
    room=st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)),
    wanted=st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=4),
)
def test_one_more_of_any_kind_would_be_refused(
    room: dict[str, int], wanted: list[list[str]]
) -> None:
    class Nodes:
        def publish(self, bundles: Sequence[Mapping[str, float]]) -> None:
            self.published = Counter(kind for each in bundles for kind in each)

        def refuses(self) -> bool:
            return any(count > room.get(kind, 0) for kind, count in self.published.items())

    nodes = Nodes()
    bargain = Bargain(nodes)
    bargain.ask(
        {str(number): [[{kind: 1.0}] for kind in kinds] for number, kinds in enumerate(wanted)}
    )
    looked(bargain, 40)
    asked = Counter(kind for kinds in wanted for kind in kinds)
    assert +nodes.published == +Counter({k: min(asked[k], room.get(k, 0)) for k in asked})
    told = [bargain.met(str(number)) or 0 for number in range(len(wanted))]
    assert sum(told) == nodes.published.total()


class Restarting(ShippedAutoscaler):
    """Its first requests get lost."""

    def __init__(self, name: str, lost: int) -> None:
        super().__init__(name)
        self._lost = lost

    def publish(self, bundles: Sequence[Mapping[str, float]]) -> None:
        if self._lost:
            self._lost -= 1
            raise ConnectionError("the head restarts")
        super().publish(bundles)


@pytest.mark.parametrize("lost", [1, 3])
def test_a_request_that_gets_lost_is_made_again(lost: int) -> None:
    autoscaler = Restarting("aws-v100", lost)
    bargain = Bargain(autoscaler)
    bargain.ask({"run": [[WORKER]] * 16})
    assert looked(bargain).met("run") == sum(autoscaler.launched().values()) == 9
