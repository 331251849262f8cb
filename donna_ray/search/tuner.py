"""Ray Tune around a search: a Searcher that proposes batches, and the run of a Tuner."""

import json
import logging
import math
import os
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.search import Searcher

from donna_ray.errors import DonnaError
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.evaluators import Evaluator
from donna_ray.search.study.ledger import Outcome
from donna_ray.search.trainable import EvaluateBatch, EvaluatorHost, candidates_of
from donna_ray.space import Architecture

__all__ = [
    "BatchSearcher",
    "SeveralSearches",
    "evaluate_nothing",
    "evaluate_with_tune",
    "trainable_of",
]

# A trial mostly waits for the device, which may have taken every CPU: it must start all the same.
_TRIAL_RESOURCES: dict[str, float] = {"memory": 256 * 2**20}
_HOST_MEMORY = 2**30
_PROCESSES = Path("/proc")
_INLINE = 8 * 2**20  # bytes in a class; Ray warns of 10 MB, and refuses 100
_HOST_CALLS = 32  # batches that are evaluated at once, most of which wait for a device
_TRIALS = 2  # of a search: while one batch is measured the next is lowered
_DEVICES_S = 10.0  # after which devices are counted again
_HELD_S = 60.0  # without a result, after which what Tune was to start again is proposed anew
_TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # whose verbose=0 still prints a table
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # which takes Ctrl-C for the end of a search, also later
    "TUNE_GLOBAL_CHECKPOINT_S": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # seven take minutes, before the first candidate
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # actors start together, not one after the other
}


class BatchSearcher(Searcher):
    """Proposes batches of a search's candidates to Ray Tune and tells it the results.

    For any ``tune.Tuner``: the trainable gets `candidates` in its configuration (see
    ``candidates_of``) and reports `results`, a JSON list of their outcomes, once. Give the tuner
    ``num_samples=-1``: the searcher says when it has finished. The study's journal holds the
    search's state, so a new searcher on the same journal goes on; ``Tuner.restore`` does as well,
    and then the batches that Tune starts again are not proposed a second time.

    Attributes:
        search: what it drives.

    Args:
        setup: of the search.
    """

    def __init__(self, setup: SearchSetup) -> None:
        super().__init__()
        self.search = Search(setup)
        self._asked: dict[str, list[Architecture]] = {}
        self._held: set[str] = set()  # of `_asked`, those that Tune is to start again
        self._most = sys.maxsize
        self._changed = time.monotonic()

    def __reduce__(self) -> tuple[type["BatchSearcher"], tuple[SearchSetup]]:
        return type(self), (self.search.setup,)

    def suggest(self, trial_id: str) -> Any:
        """A batch as a JSON string (a list would be copied and flattened by Tune's loggers)."""
        self._release()
        if len(self._asked) >= self._most:
            return None
        candidates = self.search.ask(self.search.setup.config.batch_size)
        if not candidates:
            return Searcher.FINISHED if self.search.finished else None
        self._asked[trial_id] = candidates
        return {"candidates": json.dumps(candidates)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the search of a batch; one that failed as a whole is proposed again.

        A trial that is not known was proposed after the state was saved that this one restored.
        """
        self._changed = time.monotonic()
        self._held.discard(trial_id)
        known = self._asked.pop(trial_id, None)
        candidates = candidates_of((result or {}).get("config", {})) if known is None else known
        if error or result is None or "results" not in result:
            reason = (result or {}).get("raised", "its process was lost")
            self.search.give_back(candidates, f"its batch failed three times: {reason}")
            return
        outcomes: list[Outcome] = json.loads(result["results"])
        if candidates:
            self.search.tell(zip(candidates, outcomes, strict=True))

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Tune's `max_concurrent_trials`, heeded here: its limiter loses track if it is killed."""
        self._most = max_concurrent
        return True

    def save(self, checkpoint_path: str) -> None:
        """Which trial has which candidates; the study holds all else."""
        Path(checkpoint_path).write_text(json.dumps(self._asked))

    def restore(self, checkpoint_path: str) -> None:
        """The inverse of ``save``: Tune starts these trials again."""
        asked = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self._asked = {name: [tuple(each) for each in batch] for name, batch in asked.items()}
        self._held, self._changed = set(self._asked), time.monotonic()
        self.search.held_elsewhere(each for batch in self._asked.values() for each in batch)

    def _release(self) -> None:
        """Trials that Tune does not start again after all: their candidates are asked for anew."""
        silent = time.monotonic() - self._changed > _HELD_S
        if self._held and silent and self._held >= self._asked.keys():
            for trial_id in self._held:
                self.search.give_back(self._asked.pop(trial_id), "it was never evaluated")
            self._held = set()


class SeveralSearches(Searcher):
    """Drives searches by their names at once; each has as many trials as keep its devices busy.

    A trial's configuration has the `search` that it is for as well.

    Args:
        searchers: by name.
        devices: of each, how many candidates can be evaluated at once, now; by default 1.
    """

    def __init__(
        self,
        searchers: Mapping[str, BatchSearcher],
        devices: Mapping[str, Callable[[], int]] | None = None,
    ) -> None:
        super().__init__()
        self._searchers = dict(searchers)
        self._devices = dict(devices or {})
        self._most: dict[str, int] = {}
        self._counted_at = float("-inf")
        self._owners: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """A batch of the search that has the fewest under way; see ``BatchSearcher.suggest``."""
        self._count_devices()
        under_way = Counter(self._owners.values())
        proposals: list[Any] = []
        for name in sorted(self._searchers, key=lambda each: under_way[each]):
            if under_way[name] >= self._most[name]:
                proposals.append(None)
                continue
            proposal = self._searchers[name].suggest(trial_id)
            if isinstance(proposal, dict):
                self._owners[trial_id] = name
                return {"search": name, **proposal}
            proposals.append(proposal)
        return Searcher.FINISHED if None not in proposals else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the search that proposed it."""
        self._searchers[self._owners.pop(trial_id)].on_trial_complete(trial_id, result, error)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """See ``BatchSearcher``; here it is decided by the devices."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: each search is in its journal."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""

    def _count_devices(self) -> None:
        """One may have been plugged in."""
        if time.monotonic() - self._counted_at < _DEVICES_S:
            return
        self._counted_at = time.monotonic()
        for name, searcher in self._searchers.items():
            devices = self._devices[name]() if name in self._devices else 1
            batches = math.ceil(devices / searcher.search.setup.config.batch_size)
            self._most[name] = max(_TRIALS, 1 + batches)


def trainable_of(evaluators: Evaluator | Mapping[str, Evaluator]) -> Any:
    """The trainable for a ``tune.Tuner`` whose trials are evaluated in a process that this starts.

    The process, an actor of Ray, is on this node, is started again where it is lost, and ends with
    this one.

    Args:
        evaluators: of a ``BatchSearcher``; of each name where they are ``SeveralSearches``.
    """
    named = evaluators if isinstance(evaluators, Mapping) else {"": evaluators}
    # In classes, not arguments: what this process has in Ray's store ends it with its node.
    held, close = _handed_over(cloudpickle.dumps(named))
    holding = type(f"Holding{EvaluatorHost.__name__}", (EvaluatorHost,), held)
    started: Any = ray.remote(holding).options(
        num_cpus=0,
        memory=_HOST_MEMORY,
        label_selector=_this_node(),
        max_concurrency=_HOST_CALLS,
        max_restarts=-1,
        max_task_retries=3,  # one that comes while it is started again fails, too
    )
    bound = type(f"Bound{EvaluateBatch.__name__}", (EvaluateBatch,), {"host": started.remote()})
    weakref.finalize(bound, close)
    return tune.with_resources(
        bound,
        tune.PlacementGroupFactory([_TRIAL_RESOURCES], bundle_label_selector=[_this_node()]),
    )


def _handed_over(pickled: bytes) -> tuple[dict[str, Any], Callable[[], object]]:
    """Attributes of an ``EvaluatorHost``, and what is called once it has no more use for them."""
    if len(pickled) <= _INLINE or not _PROCESSES.is_dir():
        return {"pickled": pickled}, lambda: None
    file = os.fdopen(os.memfd_create("evaluators"), "wb")  # it ends with this process
    file.write(pickled)
    file.flush()
    place = _PROCESSES / str(os.getpid()) / "fd" / str(file.fileno())
    return {"place": str(place)}, file.close


def _this_node() -> dict[str, str]:
    """A label: what runs here is not disturbed by another node's loss."""
    if not ray.is_initialized():
        ray.init()
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def evaluate_with_tune(
    searchers: Mapping[str, BatchSearcher],
    evaluators: Mapping[str, Evaluator],
    storage: Path,
    devices: Mapping[str, Callable[[], int]] | None = None,
    callbacks: Sequence[tune.Callback] = (),
) -> None:
    """Run Ray Tune until no searcher proposes anything more.

    Args:
        searchers: by name; one whose batches always fail is `broken` then.
        evaluators: of each; a copy is in the process that evaluates.
        storage: folder of Tune's own files.
        devices: see ``SeveralSearches``.
        callbacks: of Tune.

    Raises:
        DonnaError: it was interrupted, or batches could not be started; all results so far are
            kept.
    """
    results = _tuned(
        trainable_of(evaluators),
        storage,
        tune.TuneConfig(
            search_alg=SeveralSearches(searchers, devices),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        callbacks,
    )
    cause = f" The cause:\n{results.errors[0]}" if results.errors else ""
    for name, searcher in searchers.items():
        search = searcher.search
        if search.broken:
            search.broken += cause
        if not search.finished:
            raise DonnaError(
                f"The search {name!r} was stopped after {search.done} of "
                f"{search.setup.config.evaluations} candidates. They are kept: the same command "
                f"goes on.{cause}"
            )


class _NoEvaluator:
    def evaluate(self, candidates: Sequence[Architecture]) -> list[Outcome]:
        return []


def evaluate_nothing(storage: Path) -> None:
    """A Ray Tune run of one trial without candidates: what a search takes besides evaluating."""
    _tuned(trainable_of(_NoEvaluator()), storage, tune.TuneConfig(), candidates=json.dumps([]))


def _tuned(
    trainable: Any,
    storage: Path,
    config: tune.TuneConfig,
    callbacks: Sequence[tune.Callback] = (),
    **parameters: Any,
) -> Any:
    """The results of a run of Ray Tune; `parameters` are those of its trials."""
    run_config = tune.RunConfig(
        name="search",
        storage_path=str(storage),
        verbose=0,
        callbacks=list(callbacks),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
    )
    try:
        with _environment(_TUNE_SETTINGS), _quiet_tune():
            return tune.Tuner(
                trainable, param_space=parameters, tune_config=config, run_config=run_config
            ).fit()
    finally:
        ray.kill(trainable.host)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Without what Tune logs, unless much is asked for. It misses its loggers' files, which are
    off, and of a trial that fails it prints a traceback; why, the search says in a line."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    if not logging.getLogger().isEnabledFor(logging.INFO):
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Settings that Ray Tune and its loggers read from the environment; a user's go before."""
    missing = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]
