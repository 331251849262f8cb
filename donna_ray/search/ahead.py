"""Latency that is measured while networks are still being trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread

import ray

from donna_ray.config import DevicePrecision, Scenario
from donna_ray.errors import DonnaError
from donna_ray.latency.farm import Unmeasured
from donna_ray.latency.starting import farm_at_hand
from donna_ray.library.quantised import lowering_in
from donna_ray.reference.load import load_reference
from donna_ray.run.run import Run
from donna_ray.search.scenario import problem_of
from donna_ray.search.strategies.frontier import Frontier
from donna_ray.storage.artifacts import Artifact

__all__ = ["measuring_ahead"]

_POLL_S = 0.5

Libraries = Mapping[DevicePrecision, Artifact]


@contextmanager
def measuring_ahead(run: Run, reference: Artifact, libraries: Libraries) -> Iterator[None]:
    """Meanwhile measure what the searches begin with, on devices of served farms.

    The farm's cache has it then, so the search has only to ask. Devices of a run's own are left
    alone: they would take cores from the training, and be disturbed by it. So is what a search does
    not begin with the design of ``Frontier``.
    """
    scenarios = [
        each
        for each in run.config.all_scenarios()
        if each.device.farm is not None and each.search.strategy == "frontier"
    ]
    if not scenarios:
        yield
        return
    run.connect()
    enough = Event()
    work = (run, reference, libraries, scenarios, enough)
    thread = Thread(target=_measure, args=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def _measure(
    run: Run, reference: Artifact, libraries: Libraries, scenarios: list[Scenario], enough: Event
) -> None:
    for each in scenarios:
        try:
            _measure_one(run, reference, libraries[each.device.precision], each, enough)
        except (DonnaError, ray.exceptions.RayError) as error:  # the search will say it, too
            run.say(f"  {each.name}: nothing is measured meanwhile: {error}")


def _measure_one(
    run: Run, reference: Artifact, library: Artifact, scenario: Scenario, enough: Event
) -> None:
    farm = farm_at_hand(scenario.device)
    if farm is None:
        return
    teacher, _ = load_reference(run.config, reference)
    problem = problem_of(scenario.search, teacher, library, None)
    problem.check()
    lowering = lowering_in(scenario.device.precision, run, reference, library, teacher)
    design = Frontier(problem, scenario.search.evaluations, run.config.seed).design()
    asked = []
    try:
        for architecture in design:
            if enough.is_set():
                return
            asked.append(farm.submit(lowering.model(problem.space.specs(architecture))))
        waiting = asked
        while waiting and not enough.is_set():
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_S)
        left = set(waiting)
        found = farm.settle([each for each in asked if each not in left])
        failed = [each.reason for each in found if isinstance(each, Unmeasured)]
        more = f", {len(failed)} could not be (such as: {failed[0]})" if failed else ""
        run.say(
            f"  {scenario.name}: {len(found) - len(failed)} candidates measured meanwhile{more}"
        )
    finally:
        farm.close()
