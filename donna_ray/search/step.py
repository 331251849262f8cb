"""Step 4: the searches of all scenarios, as many at once as there are CPUs for their devices."""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from donna_ray.config import DevicePrecision, Scenario
from donna_ray.errors import DonnaError, MissingArtifactError
from donna_ray.finetune.assemble import library_space
from donna_ray.latency.farm import LatencyFarm, Unmeasured
from donna_ray.latency.figures import Latency, peak_memory
from donna_ray.latency.quantised import AnyLowering
from donna_ray.latency.recorded import RECORDED, record_facts
from donna_ray.latency.shifts import in_shifts
from donna_ray.latency.starting import start_farms
from donna_ray.library.quantised import lowering_in
from donna_ray.reference.load import load_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.doubts import front_doubts
from donna_ray.run.run import Run
from donna_ray.search.ask_tell import Search
from donna_ray.search.evaluators import FarmEvaluator
from donna_ray.search.scenario import (
    candidates_of_search,
    check_measured,
    problem_of,
    result_of,
    searcher_of,
)
from donna_ray.search.study.problem import SearchProblem
from donna_ray.search.tracking import Tracked, Tracking, loggers_of
from donna_ray.search.tuner import BatchSearcher, evaluate_with_tune
from donna_ray.search.verify import ROUNDS, Verification, verify
from donna_ray.storage.artifacts import Artifact, Files, StepFolder, write_json
from donna_ray.workers.pool import pool_of

__all__ = ["search_step"]

_CANDIDATES = "candidates.json"

Made = Mapping[DevicePrecision, tuple[Artifact, Artifact]]
"""Library and predictor in each precision that a scenario has."""


def search_step(run: Run, reference: Artifact, made: Made) -> Artifact:
    """Step 4: for each scenario the front of predicted accuracy and measured latency.

    Those that are not finished run at once, as far as the cluster has CPUs for their devices, else
    one group after the other; they share library, predictor and measurements. At the
    end what may be on the fronts is measured again, and so is the reference: see
    ``search.verify``. The result maps a scenario's name to its front (architecture, predicted
    accuracy, latency), the reference's own latency, the number of candidates, the yardstick, and
    what measuring again has changed. The folder of each holds the study's journal and all
    candidates, those that could not be measured with their reason.

    Raises:
        DonnaError: no architecture keeps a scenario's limits (with the nearest that one keeps),
            none could be measured, or a device is out: for each scenario that has no front. The
            others have theirs, and what is measured is kept.
    """
    scenarios = {each.name: each for each in run.config.all_scenarios()}
    folders = {
        name: StepFolder(run.root, f"search/{name}", _inputs(run, each, made))
        for name, each in scenarios.items()
    }
    missing = [each for name, each in scenarios.items() if folders[name].load() is None]
    searches = _Searches(run, reference, made, missing)
    parts, errors = {}, dict[str, DonnaError]()
    for name, folder in folders.items():
        compute = searches.compute(scenarios[name], folders)
        try:
            parts[name] = run.step(f"search/{name}", folder.inputs, compute)
        except MissingArtifactError:
            raise
        except DonnaError as error:
            errors[name] = error  # the others have their fronts all the same
    if errors:
        raise DonnaError(_in_words(errors, len(scenarios) > 1)) from next(iter(errors.values()))
    return Artifact(
        step="search",
        path=run.root / "search",
        result={
            "scenarios": {name: part.result for name, part in parts.items()},
            "digests": {name: part.digest for name, part in parts.items()},
            "candidates": {
                name: (part.path / _CANDIDATES).relative_to(run.root).as_posix()
                for name, part in parts.items()
            },
            "doubts": [each for part in parts.values() for each in part.result.get("doubts", [])],
            "cost": {"image_passes": 0},
        },
        files={},
        seconds=sum(part.seconds for part in parts.values()),
        reused=all(part.reused for part in parts.values()),
    )


def _inputs(run: Run, scenario: Scenario, made: Made) -> dict[str, Any]:
    library, predictor = made[scenario.device.precision]
    return {
        "predictor": predictor.digest,
        "library": library.digest,
        "seed": run.config.seed,
        "search": scenario.search.model_dump(),
        "device": scenario.device.model_dump(),
        "verified": "all" if scenario.device.connector == RECORDED else ROUNDS,
        **record_facts(scenario.device),
    }


def _in_words(errors: Mapping[str, DonnaError], named: bool) -> str:
    """Each error once, with the scenarios that it ended if they are `named`."""
    scenarios: dict[str, list[str]] = {}
    for name, error in errors.items():
        scenarios.setdefault(str(error), []).append(name)
    return "\n".join(
        f"Scenario {', '.join(names)}: {text}" if named else text
        for text, names in scenarios.items()
    )


class _Searches:
    """Runs the scenarios that are missing, those whose devices fit the cluster together at once,
    as soon as the first of them is asked for."""

    def __init__(self, run: Run, reference: Artifact, made: Made, missing: list[Scenario]) -> None:
        self._run, self._missing = run, missing
        self._reference, self._made = reference, made
        self._searches: dict[str, Search] = {}
        self._verifications: dict[str, Verification] = {}
        self._failures: dict[str, DonnaError] = {}

    def compute(
        self, scenario: Scenario, folders: dict[str, StepFolder]
    ) -> Callable[[StepFolder], tuple[dict[str, Any], Files]]:
        """What ``Run.step`` calls for one of them."""

        def compute(folder: StepFolder) -> tuple[dict[str, Any], Files]:
            self._search_once(scenario.name, {name: each.path for name, each in folders.items()})
            search = self._searches[scenario.name]
            verification = self._verifications[scenario.name]
            if verification.failure is not None:
                raise verification.failure
            file = folder.path / _CANDIDATES
            doubts = front_doubts(scenario.name, verification.disturbed_percent())
            try:
                result = result_of(scenario, search, verification.rounds)
            except DonnaError as error:
                raise DonnaError(" ".join([str(error), *doubts])) from error
            result["doubts"] = doubts
            write_json(file, candidates_of_search(search, verification.rounds))
            return result, [file]

        return compute

    def _search_once(self, name: str, folders: dict[str, Path]) -> None:
        if name not in self._searches and name not in self._failures:
            together = [each.name for each in self._missing]
            try:
                if name in self._problems:
                    self._run.connect()
                    [together] = [each for each in self._shifts if name in each]
                    self._search([each for each in self._missing if each.name in together], folders)
            except DonnaError as error:  # of all of them
                self._failures = dict.fromkeys(together, error) | self._failures
        if name in self._failures:
            raise self._failures[name]

    @contextmanager
    def _apart(self, name: str) -> Iterator[None]:
        """What goes wrong inside ends the search of this scenario, and of no other."""
        try:
            yield
        except DonnaError as error:
            self._leave_out(name, error)

    def _leave_out(self, name: str, error: DonnaError) -> None:
        self._failures[name] = error
        if len(self._missing) > 1:
            self._run.say(f"  {name} is left out: {error}")

    @cached_property
    def _teacher(self) -> StagedNetwork:
        return load_reference(self._run.config, self._reference)[0]

    @cached_property
    def _problems(self) -> dict[str, SearchProblem]:
        """Of each scenario whose limits some network keeps."""
        problems, teacher = {}, self._teacher
        for each in self._missing:
            with self._apart(each.name):
                problem = problem_of(each.search, teacher, *self._made[each.device.precision])
                problem.check()
                problems[each.name] = problem
        return problems

    @cached_property
    def _shifts(self) -> list[list[str]]:
        usable = [each for each in self._missing if each.name in self._problems]
        return in_shifts({each.name: each.device for each in usable})

    def _search(self, together: Sequence[Scenario], folders: dict[str, Path]) -> None:
        run = self._run
        cache = run.root / "search" / "measurements.sqlite"
        devices = {each.name: each.device for each in together}
        [(library, _), *_] = self._made.values()
        space = library_space(library)
        served, failures = start_farms(devices, cache, run.say, pool_of(run).lend, space)
        for name, error in failures.items():
            self._leave_out(name, error)
        try:
            lowerings = self._lowerings(together)
            models = {name: lowerings[name].reference() for name in served}
            latencies = self._reference_latencies(models, served)
            searchers, evaluators = {}, {}
            for scenario in [each for each in together if each.name in latencies]:
                name = scenario.name
                with self._apart(name):
                    problem = self._limited(scenario, latencies[name])
                    searchers[name] = searcher_of(scenario, problem, run.config.seed, folders[name])
                    evaluators[name] = FarmEvaluator(problem, lowerings[name], served[name])
            if not searchers:
                return
            counts = {name: served[name].devices for name in searchers}
            self._run_tune(searchers, evaluators, counts)
            searches = {name: searcher.search for name, searcher in searchers.items()}
            self._verify(searches, models, lowerings, served)
            self._searches |= searches
        finally:
            for farm in served.values():
                farm.close()

    def _reference_latencies(
        self, models: Mapping[str, bytes], served: Mapping[str, LatencyFarm]
    ) -> dict[str, Latency]:
        """Latency of the reference itself, on the device of each scenario that can measure it."""
        limited = {each.name for each in self._missing if each.search.memory_limit is not None}
        asked = {name: farm.submit(models[name]) for name, farm in served.items()}
        latencies = {}
        for name, each in asked.items():
            with self._apart(name):
                [found] = served[name].wait([each])
                told = served[name].with_memory(models[name], found) if name in limited else found
                latencies[name] = found if isinstance(told, Unmeasured) else told
        return latencies

    def _limited(self, scenario: Scenario, reference: Latency) -> SearchProblem:
        """With the limits on what is measured, which may be in parts of the reference's.

        Raises:
            DonnaError: there is a limit on memory, and that of the reference is not told.
        """
        config, problem = scenario.search, self._problems[scenario.name]
        limit_ms = config.latency_limit_ms(reference["median_ms"])
        problem = replace(problem, latency_limit_ms=limit_ms)
        if config.memory_limit is None:
            return problem
        return replace(problem, memory_limit_mb=config.memory_limit_mb(peak_memory(reference)))

    def _lowerings(self, together: Sequence[Scenario]) -> dict[str, AnyLowering]:
        """To the models that each scenario's device measures."""
        made = {
            precision: lowering_in(precision, self._run, self._reference, library, self._teacher)
            for precision, (library, _) in self._made.items()
        }
        return {each.name: made[each.device.precision] for each in together}

    def _verify(
        self,
        searches: Mapping[str, Search],
        models: Mapping[str, bytes],
        lowerings: Mapping[str, AnyLowering],
        served: Mapping[str, LatencyFarm],
    ) -> None:
        """Measure again what may be on the fronts, of the searches that can have one."""
        verifications = dict[str, Verification]()
        for name, search in searches.items():
            with self._apart(name):
                check_measured(name, search)
                own = Verification(search, models[name], lowerings[name], served[name])
                verifications[name] = own
        self._verifications |= verifications
        every = list(verifications.values())
        turns = max((each.rounds_due * (len(each.networks) + 1) for each in every), default=0)
        with self._run.progress("front measured again", turns, "networks") as progress:
            for _ in verify(every, self._run.say):
                progress.advance()

    def _run_tune(
        self,
        searchers: Mapping[str, BatchSearcher],
        evaluators: Mapping[str, FarmEvaluator],
        devices: Mapping[str, Callable[[], int]],
    ) -> None:
        run = self._run
        searches = {name: searcher.search for name, searcher in searchers.items()}
        for name, search in searches.items():
            most = search.setup.config.evaluations
            if search.done:
                run.say(f"  {name}: {search.done} of {most} candidates are measured already")
        unfinished = {name: searchers[name] for name in searches if not searches[name].finished}
        storage = run.root / "ray" / f"search-{uuid.uuid4().hex[:8]}"
        total = sum(
            min(each.setup.config.evaluations, each.setup.problem.space.size)
            for each in searches.values()
        )
        if unfinished:
            with (
                run.progress("search", total, "candidates") as progress,
                progress.following(lambda: sum(each.done for each in searches.values())),
            ):
                evaluate_with_tune(
                    unfinished, evaluators, storage, devices, [self._tracking(searches)]
                )
            shutil.rmtree(storage, ignore_errors=True)
        for name, search in searches.items():
            ledger = search.ledger
            run.say(f"  {name}: {len(ledger.measured)} measured, {len(ledger.failed)} failed")

    def _tracking(self, searches: Mapping[str, Search]) -> Tracking:
        folder = self._run.root / "search" / "tracking"
        runs = {
            name: Tracked.of(name, search, folder / name)
            for name, search in searches.items()
            if not search.finished
        }
        return Tracking(loggers_of(self._run.config), runs, self._run.say)
