"""What jobs ask an autoscaler for, in one voice, as long as they are alive."""

from __future__ import annotations

from donna_ray.workers.demand import Demands

CPU, PHONE = {"CPU": 1.0}, {"phone": 1.0}


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_job_takes_nothing_from_another() -> None:
    published: list[list[dict[str, float]]] = []
    demands = Demands(published.append)
    demands.ask("one", [CPU, CPU])
    demands.ask("other", [PHONE])
    demands.ask("one", [])
    assert published == [[CPU, CPU], [CPU, CPU, PHONE], [PHONE]]


def test_a_silent_job_is_forgotten() -> None:
    published: list[list[dict[str, float]]] = []
    clock = Clock()
    demands = Demands(published.append, silence_s=60, clock=clock)
    demands.ask("killed", [CPU])
    demands.ask("alive", [PHONE])
    clock.now = 50
    demands.ask("alive", [PHONE])
    clock.now = 61
    demands.forget_silent()
    demands.forget_silent()
    assert published[2:] == [[PHONE]]
    demands.ask("killed", [CPU])  # it was only slow
    assert published[3:] == [[PHONE, CPU]]
