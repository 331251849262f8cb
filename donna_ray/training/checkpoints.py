"""The state of trainings under way, kept after every epoch: a death costs an epoch at most."""

from donna_ray.storage.records import RecordStore
from donna_ray.training.trainer import Trainer

__all__ = ["Checkpoints"]


class Checkpoints:
    """Checkpoints by key, a record each. Picklable.

    The last two epochs are kept, so that one is intact whenever the process dies.

    Args:
        store: of nothing else.
    """

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    def save(self, key: str, trainer: Trainer) -> None:
        """Keep the state of a training under a key."""
        tensors, facts = trainer.state()
        self._store.put(_names(key)[trainer.epoch % 2], facts, tensors)

    def newest(self, key: str) -> str | None:
        """The name of the newest intact checkpoint of a key; None where there is none."""
        records = ((self._store.get(name) or {}, name) for name in _names(key))
        epochs = [(record["epoch"], name) for record, name in records if record]
        return max(epochs)[1] if epochs else None

    def resume(self, name: str, trainer: Trainer) -> None:
        """Bring a new training of the same arguments to where a checkpoint was taken.

        Raises:
            DonnaError: the checkpoint is gone, torn or altered.
        """
        trainer.restore(self._store.weights(name), self._store.get(name) or {})

    def remove(self, *keys: str) -> None:
        """Forget the checkpoints of these keys; nothing where there are none."""
        self._store.remove([name for key in keys for name in _names(key)])


def _names(key: str) -> list[str]:
    return [f"{key}-even", f"{key}-odd"]
