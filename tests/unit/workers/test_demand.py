"""What jobs ask an autoscaler for, in one voice, as long as they are alive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

from donna_ray.workers import demand
from donna_ray.workers.demand import Demands
from tests.unit.workers.clock import Clock

CPU, PHONE = {"CPU": 1.0}, {"phone": 1.0}


class OneCpu:
    """An autoscaler that has a node with a CPU, and says nothing before it is asked to."""

    def __init__(self, says: bool = False) -> None:
        self.says = says
        self.published: list[list[Mapping[str, float]]] = []

    def publish(self, bundles: Sequence[Mapping[str, float]]) -> None:
        self.published.append([*bundles])

    def refuses(self) -> bool | None:
        return self.published[-1] not in ([], [CPU]) if self.says else None


def test_one_job_takes_nothing_from_another() -> None:
    autoscaler = OneCpu()
    demands = Demands(autoscaler)
    demands.ask("one", [[CPU], [CPU]])
    demands.ask("other", [[PHONE]])
    demands.ask("one", [])
    assert autoscaler.published == [[CPU, CPU], [CPU, PHONE, CPU], [PHONE]]


def test_a_silent_job_is_forgotten() -> None:
    autoscaler, clock = OneCpu(), Clock()
    demands = Demands(autoscaler, silence_s=60, clock=clock)
    demands.ask("killed", [[CPU]])
    demands.ask("alive", [[PHONE]])
    clock.now = 50
    demands.ask("alive", [[PHONE]])
    clock.now = 61
    demands.tend()
    demands.tend()
    assert autoscaler.published[2:] == [[PHONE]]
    demands.ask("killed", [[CPU]])  # it was only slow
    assert autoscaler.published[3:] == [[PHONE, CPU]]


def test_a_job_hears_what_can_be_met_as_soon_as_it_is_known() -> None:
    autoscaler = OneCpu()
    demands = Demands(autoscaler)
    assert demands.ask("one", [[CPU], [CPU], [CPU]]) is None
    demands.tend()
    assert demands.ask("one", [[CPU], [CPU], [CPU]]) is None
    autoscaler.says = True
    for _ in range(9):
        demands.tend()
    assert demands.ask("one", [[CPU], [CPU], [CPU]]) == 1
    assert autoscaler.published[-1] == [CPU]


def test_an_answer_counts_that_is_to_what_was_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoscaler looks every 5 s, and its last answer stays until then."""
    status = GetClusterStatusReply()
    cluster, answer = status.cluster_resource_state, status.autoscaling_state
    monkeypatch.setattr(demand, "request_resources", lambda bundles: None)
    monkeypatch.setattr(demand, "autoscaler_status", lambda: status)
    autoscaler = demand._RaysAutoscaler()

    def at(asked: int, answered: int) -> bool | None:
        cluster.cluster_resource_state_version = asked
        answer.last_seen_cluster_resource_state_version = answered
        return autoscaler.refuses()

    answer.infeasible_cluster_resource_constraints.add()
    autoscaler.publish([CPU])
    assert [at(7, 5), at(8, 5), at(10, 9)] == [None, None, True]
    autoscaler.publish([])
    assert [at(11, 9), at(13, 9)] == [None, None]
    del answer.infeasible_cluster_resource_constraints[:]
    assert at(15, 14) is False
    monkeypatch.setattr(demand, "autoscaler_status", lambda: None)
    assert autoscaler.refuses() is None
