"""One run: its configuration, its folder, its lock, and how a step is computed or reused."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from donna_ray.config import RunConfig, kept_module
from donna_ray.errors import DonnaError, MissingArtifactError
from donna_ray.run.folder import copies, name_of
from donna_ray.run.lease import Lease
from donna_ray.run.mirror import Mirror
from donna_ray.run.ownership import Forgotten, hold, remove_if_empty
from donna_ray.run.progress import PROGRESS, Progress, write_progress
from donna_ray.run.session import RayLost, RaySession
from donna_ray.run.shared_folder import SharedFolder, check_nodes
from donna_ray.storage.artifacts import Artifact, Files, StepFolder, write_atomic
from donna_ray.storage.files import folder_in
from donna_ray.storage.records import RecordStore
from donna_ray.storage.refusals import is_full

__all__ = ["Run"]

Compute = Callable[[StepFolder], tuple[dict[str, Any], Files]]
"""Computes a step; returns the result as plain JSON and the files that belong to it."""

_RECORDS = (
    *("reference/unfinished", "networks", "networks/unfinished"),
    *("library/blocks", "library/blocks/paused", "library/blocks/unfinished"),
    *("library/blocks/int8", "networks/int8", "networks/fp16"),
)


class Run:
    """A run folder held by this process; a context manager that also stops Ray at its end.

    Args:
        config: what to run.
        root: the run folder; made where it is missing.
        only: the one step that may be computed; the steps before it must have been. None: all.
    """

    def __init__(self, config: RunConfig, root: Path, *, only: str | None = None) -> None:
        self.config = config
        self.root = root.expanduser().resolve()
        quiet = not logging.getLogger().isEnabledFor(logging.WARNING)
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.ray = RaySession(config.cluster)
        self.shared = SharedFolder(config.cluster.location_of(self.root))
        url = self.shared.location
        self._mirror: Mirror | None = None
        self._lease: Lease | None = None
        if isinstance(url, str):
            settings = yaml.safe_load(self._settings())
            self._mirror = Mirror(self.root, url, name_of(root), settings)
            self._lease = Lease(self.root, url)
        self._open = ExitStack()
        self._kept: dict[str, Any] = {}
        self._nodes_are_checked = False
        self._under_way: str | None = None  # the step that is computed
        self.only = only
        self._made: list[Path] = []
        self._forgotten = Forgotten(self.root)

    def __enter__(self) -> "Run":
        """Hold the folder.

        Raises:
            ConfigError: the folder, or its copy, is no run's or another's.
            RunLockedError: another process holds it.
        """
        with _room_in(self.root), ExitStack() as opened:
            self._made, lock = hold(self.root)
            opened.enter_context(lock)
            failed = opened.enter_context(ExitStack())
            failed.callback(remove_if_empty, self._made)
            self._forgotten.recover()
            if self._mirror is not None and self._lease is not None:
                opened.enter_context(self._lease)
                self._mirror.pull()
                self.push()  # what a command that was killed had made, or one without the URL
            shutil.rmtree(self.root / "ray", ignore_errors=True)  # of a process that was killed
            opened.enter_context(self.shared.marked())
            failed.pop_all()  # nothing did
            self._open = opened.pop_all()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if isinstance(error, Exception):
                self.ray.look()
            self._close(error)
        except RayLost:
            raise self._ray_is_lost() from None
        except BaseException as another:
            another.__context__ = error if isinstance(error, BaseException) else None
            raise  # as what came while that ended: an ExitStack forgets it
        finally:
            if isinstance(error, BaseException) and not isinstance(error, Exception):
                error.add_note(self._what_is_kept())
        if self.ray.lost and isinstance(error, Exception | RayLost):
            raise self._ray_is_lost() from error

    def _close(self, error: object) -> None:
        with self._open:
            with ExitStack() as closing:  # what was made last is closed first, Ray at the end
                closing.callback(self.ray.close)
                for each in () if self.ray.lost else self._kept.values():
                    closing.callback(each.close)
            if error is None:
                shutil.rmtree(self.root / "ray", ignore_errors=True)
                if self.only is None:
                    (self.root / PROGRESS).unlink(missing_ok=True)
            if error is not None and self._forgotten.put_back():
                (self.root / PROGRESS).unlink(missing_ok=True)
                self.say(f"{self.relative(self.root)} is as it was: no step was finished")
            self.push()
            if error is not None:
                remove_if_empty(self._made)

    def forget(self) -> None:
        """Start over: forget what the folder holds of earlier runs.

        It is moved aside, removed as soon as a step is computed, and put back if the run ends
        before that.
        """
        self._forgotten.move()

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What is made at the first call and kept for later steps; its `close` ends the run."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def connect(self) -> None:
        """Be connected to Ray, on a cluster whose nodes all see what they must.

        Raises:
            DonnaError: the cluster does not answer, is too small, or has a node that does not see
                the run's folder.
        """
        self.ray.ensure()
        if not self._nodes_are_checked:
            check_nodes(self.shared)
            self._nodes_are_checked = True

    def step(
        self,
        name: str,
        inputs: dict[str, Any],
        compute: Compute,
        intact: Callable[[Artifact], bool] = lambda artifact: True,
    ) -> Artifact:
        """The artifact of a step, reused where it is finished under the same inputs.

        Args:
            name: of the step, or `step/part`.
            inputs: what it is made from, as plain JSON.
            compute: makes it.
            intact: whether what a finished one refers to outside of its own files is still there.

        Raises:
            MissingArtifactError: it has to be computed, but this run may compute another step only.
        """
        folder = StepFolder(self.root, name, inputs)
        artifact = folder.load()
        if artifact is not None and intact(artifact):
            self.say(f"{name:<10} reused from {self.relative(folder.path)}", "dim")
            self.doubt(artifact)
            return artifact
        step = name.partition("/")[0]
        if self.only not in (None, step):
            raise MissingArtifactError(
                f"Step {self.only!r} needs the finished step {step!r} of the same settings, but "
                f"{self.root} does not have it. Run `donna {step} build` on the same configuration "
                "first."
            )
        self._check_lease()
        with _room_in(self.root):
            self.write_config()
            folder.path.mkdir(parents=True, exist_ok=True)
            self.say(name, "bold")
            started = time.perf_counter()
            with self._computing(name):
                result, files = compute(folder)
            artifact = folder.commit(result, files, time.perf_counter() - started)
        (self.root / PROGRESS).unlink(missing_ok=True)
        self._check_lease()  # before records of another command would go
        if self._forgotten.remove():
            self._remove_records()
        self.push()
        self.say(f"{name:<10} done in {artifact.seconds:.1f} s")
        self.doubt(artifact)
        return artifact

    @contextmanager
    def _computing(self, name: str) -> Iterator[None]:
        """What is long inside is told as a phase of this step."""
        write_progress(self.root, name, time.time())
        self._under_way = name
        try:
            yield
        finally:
            self._under_way = None

    def doubt(self, artifact: Artifact) -> None:
        """Say what makes an artifact doubtful, also where a command is to be quiet."""
        for each in artifact.result.get("doubts", []):
            self.warn(each)

    def warn(self, text: str) -> None:
        """Say it, also where a command is to be quiet."""
        loud = Console(stderr=True, highlight=False) if self.console.quiet else self.console
        loud.print(Text(f"warning: {text}", "bold yellow"), soft_wrap=True)

    def write_config(self) -> None:
        """Make this configuration the one that the run folder stands for (`config.yaml`).

        Its Python files are kept beside it, since those of a Ray job go with it (``load_config``).
        """
        for number, name in enumerate(self.config.space.modules):
            kept = kept_module(self.root, number, name)
            if name.endswith(".py") and Path(name) != kept and Path(name).is_file():
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(kept, Path(name).read_bytes())
        write_atomic(self.root / "config.yaml", self._settings().encode())

    def push(self) -> None:
        """Bring what is new in the folder to the storage at a URL, if the run has one."""
        if self._mirror is not None:
            self._check_lease()
            self._mirror.push()

    def _check_lease(self) -> None:
        """Refuse to go on with a copy that another command has gone on with."""
        if self._lease is not None:
            self._lease.check()

    def progress(self, name: str, total: int, unit: str) -> Progress:
        """A display for `total` units of a long step."""
        return Progress(self.console, self.root, name, total, unit, self._under_way)

    def say(self, text: str, style: str = "") -> None:
        """One line for the person who watches, in a style of rich's; the text is no markup."""
        self.console.print(Text(text, style), soft_wrap=True)

    def relative(self, path: Any) -> str:
        """A path of the run folder as a person would write it."""
        near = Path(path).is_relative_to(Path.cwd())
        return os.path.relpath(path) if near else str(path)

    @property
    def named(self) -> str:
        """As commands of any host may name it: its folder, or the URL of a working copy."""
        url = self.shared.location
        is_copy = isinstance(url, str) and self.root.is_relative_to(copies())
        return str(url) if is_copy else self.relative(self.root)

    def _settings(self) -> str:
        return yaml.safe_dump(self.config.model_dump(), sort_keys=False)

    def _ray_is_lost(self) -> DonnaError:
        return DonnaError(
            "Ray must run as long as the command, but its raylet has ended (it or its agent was "
            f"killed, perhaps for want of memory). {self._what_is_kept()}"
        )

    def _what_is_kept(self) -> str:
        if not self.root.exists():
            return "Nothing was finished yet: the same command begins anew."
        folder = self.relative(self.root)
        place = folder if self._mirror is None else f"{folder} and at {self.shared.location}"
        return (
            f"What is finished is kept in {place}, of a training all but its "
            "last minutes: the same command (without --fresh) goes on from there."
        )

    def _remove_records(self) -> None:
        """Those at a URL; a store that `library.store` names is not the run's own."""
        if self._mirror is None:
            return
        for folder in _RECORDS:
            store = RecordStore(folder_in(self.shared.location, folder))
            store.remove(store.records())


@contextmanager
def _room_in(root: Path) -> Iterator[None]:
    """A full disk is told with the remedy."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise DonnaError(
            f"The disk of the run folder {root} must have room, but is full ({error}). Make room, "
            "then give the same command again: what is finished is kept."
        ) from error
