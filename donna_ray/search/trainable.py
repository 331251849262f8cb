"""What an actor of Ray Tune runs. It imports little: Tune starts more of them than it uses.

Where a batch ends before the actor for the next one has started, Tune gives the next one to the
actor that is free, and ends the other; so each batch may start an actor. With torch and timm in it,
that took seconds of a core beside the device that is timed. So another process has the evaluators.
"""

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle, tune

from donna_ray.errors import DonnaError

if TYPE_CHECKING:
    from donna_ray.search.evaluators import Evaluator

__all__ = ["EvaluateBatch", "EvaluatorHost", "candidates_of"]


def candidates_of(config: dict[str, Any]) -> list[tuple[int, ...]]:
    """The batch in a trial's configuration."""
    return [tuple(each) for each in json.loads(config.get("candidates", "[]"))]


class EvaluateBatch(tune.Trainable):
    """Has one batch evaluated, in one step. The actor is reused for the next batch.

    Attributes:
        host: of ``EvaluatorHost``, an actor's handle.
    """

    host: Any = None

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._search = new_config.get("search", "")
        self._candidates = candidates_of(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The outcomes; or why there are none, for another try."""
        try:
            told = ray.get(self.host.evaluate.remote(self._search, self._candidates))
        except ray.exceptions.RayError as error:
            told = {"raised": f"the process that evaluates was lost: {error}"}
        return {**told, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A batch has no state between steps."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """See ``save_checkpoint``."""


class EvaluatorHost:
    """An actor for ``EvaluateBatch``: it has the evaluators, whose libraries take seconds to load.

    Attributes:
        pickled: the evaluators by the search's name; so who has a handle need not load them.
        place: of a file of the process that starts this, which has them instead.
    """

    pickled = b""
    place: str | None = None

    def __init__(self) -> None:
        pickled = self.pickled if self.place is None else Path(self.place).read_bytes()
        self._evaluators: Mapping[str, Evaluator] = cloudpickle.loads(pickled)

    def evaluate(self, search: str, candidates: list[tuple[int, ...]]) -> dict[str, str]:
        """`results`, the outcomes as JSON; or, for other searches go on, `raised`: why not."""
        try:
            return {"results": json.dumps(self._evaluators[search].evaluate(candidates))}
        except DonnaError as error:
            return {"raised": str(error)}
        except Exception:
            return {"raised": traceback.format_exc()}
