"""The queue of units: each is leased to one worker and completed once, whoever dies."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from donna_ray.workers.queue import UnitQueue
from tests.unit.workers.clock import Clock


def queue_of(count: int, clock: Clock | None = None) -> UnitQueue:
    queue = UnitQueue([1] * count, silence_s=60, clock=clock or Clock())
    for worker in ("a", "b"):
        queue.join(worker, f"place of {worker}", f"node of {worker}")
    return queue


def test_units_are_leased_in_order_and_completed_once() -> None:
    queue = UnitQueue([1, 5, 1])
    queue.join("a", "0", "node")
    assert [queue.lease("a"), queue.lease("a"), queue.lease("a"), queue.lease("a")] == [
        0,
        1,
        2,
        None,
    ]
    queue.complete(1, {"n": 1})
    queue.complete(1, {"n": "again"})
    assert queue.state() == {"done": 5, "open": 2, "workers": 1}
    assert not queue.finished()
    queue.complete(2, {"n": 2})
    queue.complete(0, {"n": 0})
    assert queue.finished()
    assert queue.result() == ([{"n": 0}, {"n": 1}, {"n": 2}], None)


def test_successor_at_a_place_returns_what_was_held() -> None:
    queue = queue_of(3)
    assert [queue.lease("a"), queue.lease("b")] == [0, 1]
    queue.join("c", "place of a", "another node")
    assert queue.lease("b") == 0
    assert queue.lease("c") == 2


def test_lost_node_returns_what_its_workers_held() -> None:
    queue = queue_of(2)
    assert [queue.lease("a"), queue.lease("b")] == [0, 1]
    queue.lose(["node of a"])
    assert queue.lease("b") == 0
    assert queue.lease("b") is None


def test_silent_worker_is_taken_for_dead_and_may_still_be_first() -> None:
    clock = Clock()
    queue = queue_of(1, clock)
    assert queue.lease("a") == 0
    clock.now = 59
    assert queue.lease("b") is None
    queue.beat("a")
    clock.now = 118
    assert queue.lease("b") is None
    clock.now = 120
    assert queue.lease("b") == 0
    queue.complete(0, {"by": "a"})  # it was only slow
    queue.complete(0, {"by": "b"})
    assert queue.result() == ([{"by": "a"}], None)


def test_unit_that_raises_ends_the_queue() -> None:
    queue = queue_of(2)
    queue.lease("a")
    queue.fail("raised ValueError", "Traceback")
    queue.fail("second")
    assert queue.finished()
    assert queue.lease("b") is None
    assert queue.result() == ([], ("raised ValueError", "Traceback"))


def test_unit_is_tried_again_as_often_as_retries_says() -> None:
    queue = UnitQueue([1, 1], retries=2)
    for worker in ("a", "b"):
        queue.join(worker, worker, "node")
    assert queue.lease("b") == 0
    queue.complete(0, {})
    for _ in range(2):
        assert queue.lease("a") == 1
        queue.try_again(1, "a", "it raised OSError: stale", "Traceback")
        queue.try_again(1, "a", "told twice")  # counts once
        assert not queue.finished()
    assert queue.lease("a") == 1
    queue.try_again(1, "a", "it raised OSError: stale", "Traceback")
    what = "failed 3 times (cluster.retries: 2), at last because it raised OSError: stale"
    assert queue.result() == ([{}], (what, "Traceback"))


def test_deaths_are_counted_by_unit() -> None:
    """A hundred workers may die, of which each held another unit."""
    queue = UnitQueue([1] * 100, retries=1)
    for number in range(100):
        queue.join(f"first {number}", str(number), f"node {number}")
        queue.lease(f"first {number}")
    for number in range(100):
        queue.join(f"second {number}", str(number), f"node {number}")
    assert not queue.finished()
    assert queue.lease("second 0") == 99
    queue.join("third", "0", "node 0")
    assert queue.finished()
    what = "failed 2 times (cluster.retries: 1), at last because its worker died"
    assert queue.result() == ([], (what, ""))


def test_workers_that_only_die_end_the_queue() -> None:
    queue = UnitQueue([1], retries=2)
    for place in ("0", "1"):
        queue.join(f"first at {place}", place, "node")
    for number in range(5):
        assert not queue.finished()
        queue.join(str(number), "0", "node")
    assert queue.result() == ([], ("lost 5 workers in a row (cluster.retries: 2)", ""))


def test_holder_that_leaves_with_its_unit_has_not_died() -> None:
    """Nor has its node a fault, nor is there a limit to how often that may be."""
    queue = UnitQueue([1] * 5, retries=0)
    for number in range(5):
        queue.join(f"by name {number}", "0", "node")
        assert queue.lease(f"by name {number}") == number
        queue.complete(number, {"n": number}, leaves=True)
        queue.complete(number, {"n": "of another process"}, leaves=True)
    assert queue.result() == ([{"n": number} for number in range(5)], None)
    assert not queue._faults


def test_lost_nodes_are_no_fault_of_the_units() -> None:
    queue = UnitQueue([1], retries=0)
    for number in range(5):
        queue.join(str(number), str(number), str(number))
        assert queue.lease(str(number)) == 0
        queue.lose([str(number)])
    assert not queue.finished()


def test_bad_node_is_avoided_while_there_is_a_better_one() -> None:
    clock = Clock()
    queue = UnitQueue([1] * 9, retries=2, clock=clock)
    queue.join("bad", "0", "bad node")
    queue.join("good", "1", "good node")
    for _ in range(3):
        index = queue.lease("bad")
        assert index is not None
        queue.try_again(index, "bad", "CUDA error")
        assert queue.lease("good") == index
        queue.complete(index, {})
    assert queue.lease("bad") is None
    assert queue.lease("good") == 3
    clock.now = 61  # the good one is silent
    assert queue.lease("bad") is not None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["lease", "complete", "die"]))))
def test_whatever_happens_every_unit_is_completed_once(events: list[tuple[int, str]]) -> None:
    """Eight places; their workers lease, complete and die in any order, then all work on."""
    queue, held, born = UnitQueue([1] * 20), {}, 0
    workers: dict[int, str] = {}
    completed: list[int] = []

    def worker_at(place: int) -> str:
        nonlocal born
        if place not in workers:
            born += 1
            workers[place] = f"worker {born}"
            queue.join(workers[place], str(place), "node")
        return workers[place]

    def complete(place: int) -> None:
        if place in held:
            completed.append(held.pop(place))
            queue.complete(completed[-1], {})

    def lease(place: int) -> None:
        unit = None if place in held else queue.lease(worker_at(place))
        if unit is not None:
            assert unit not in held.values()
            assert unit not in completed
            held[place] = unit

    for place, event in events:
        if event == "die":
            held.pop(place, None)
            workers.pop(place, None)
        else:
            {"lease": lease, "complete": complete}[event](place)
    for _ in range(20):
        for place in range(8):
            worker_at(place)
            lease(place)
            complete(place)
    assert sorted(completed) == list(range(20))
    assert queue.finished()


def test_progress_of_a_long_unit_is_told_by_the_images_that_are_read() -> None:
    queue = UnitQueue([100, 8], images=[400, 0])
    queue.join("a", "0", "node")
    queue.join("b", "1", "node")
    assert (queue.lease("a"), queue.lease("b")) == (0, 1)
    queue.beat("a", 100)
    queue.beat("b", 100)
    assert queue.state()["done"] == 25
    queue.beat("a", 4000)  # BatchNorm is measured anew, too
    assert queue.state()["done"] == 100
    queue.complete(0, {})
    assert queue.state()["done"] == 100
