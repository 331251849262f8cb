"""The state of trainings under way, kept after every epoch, and in long ones every few minutes."""

from functools import partial

from donna_ray.storage.records import RecordStore
from donna_ray.training.trainer import Trainer
from donna_ray.workers.group import ALONE, Group

__all__ = ["Checkpoints"]


class Checkpoints:
    """Checkpoints by key, a record each. Picklable.

    The last two states are kept, so that one is intact whenever the process dies.

    Args:
        store: of nothing else.
    """

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._last: dict[str, str] = {}  # name of what was kept or resumed last, by key

    def train(self, key: str, trainer: Trainer, group: Group = ALONE) -> None:
        """Train for all that is left under a key; it is kept until ``remove``."""
        newest = group.from_first(lambda: self.newest(key))
        if newest is not None:
            self.resume(newest, trainer)
        keep = partial(self.save, key, trainer) if group.first else None
        while not trainer.finished():
            trainer.train_epoch(keep)
            if keep is not None and not trainer.finished():
                keep()

    def save(self, key: str, trainer: Trainer) -> None:
        """Keep the state of a training under a key."""
        tensors, facts = trainer.state()
        name = next(each for each in _names(key) if each != self._last.get(_prefix(key)))
        self._store.put(name, facts, tensors)
        self._last[_prefix(key)] = name

    def newest(self, key: str) -> str | None:
        """The name of the newest intact checkpoint of a key; None where there is none."""
        records = ((self._store.get(name) or {}, name) for name in _names(key))
        known = [(each["epoch"], each["step"], name) for each, name in records if each]
        return max(known)[-1] if known else None

    def resume(self, name: str, trainer: Trainer) -> None:
        """Bring a new training of the same arguments to where a checkpoint was taken.

        Raises:
            DonnaError: the checkpoint is gone, torn or altered.
        """
        trainer.restore(self._store.weights(name), self._store.get(name) or {})
        self._last[name.rpartition("-")[0]] = name

    def remove(self, *keys: str) -> None:
        """Forget the checkpoints of these keys; nothing where there are none."""
        self._store.remove([name for key in keys for name in _names(key)])


def _prefix(key: str) -> str:
    """With the version of the state: one of an earlier version is not gone on from."""
    return f"{key}-2"


def _names(key: str) -> list[str]:
    return [f"{_prefix(key)}-even", f"{_prefix(key)}-odd"]
