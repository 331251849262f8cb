"""What ``donna library ls``, ``show``, ``verify`` and ``gc`` tell and do, as plain facts."""

import re
from collections import ChainMap
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from donna_ray.block_spec import BlockSpec
from donna_ray.config import RunConfig, load_config
from donna_ray.errors import ConfigError
from donna_ray.storage.artifacts import file_sha256
from donna_ray.storage.files import Storage, folder_in
from donna_ray.storage.index import Group, files_by_key
from donna_ray.storage.records import PAUSED, RecordStore, block_store

__all__ = [
    "Library",
    "bad_records",
    "blocks_of",
    "collect_garbage",
    "library_of",
    "library_to_clean",
    "record_of",
]

Facts = dict[str, Any]

_CONFIG = "config.yaml"
_WORD = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Library:
    """A store of blocks.

    Attributes:
        store: the records.
        run: the run folder that it was named by, or the working copy of that at a URL; None where
            the store itself was named.
        config: of that run.
    """

    store: RecordStore
    run: Path | None = None
    config: RunConfig | None = None

    @property
    def is_in_run(self) -> bool:
        """The store is of this run alone: in its folder, or its place at a URL."""
        local, place = self.store.local, self._place
        if local is None or isinstance(place, str):
            return isinstance(place, str) and self.store.url.startswith(f"{place}/")
        return place is not None and local.resolve().is_relative_to(place.resolve())

    @property
    def _place(self) -> str | Path | None:
        if self.config is None or self.run is None:
            return self.run
        return self.config.cluster.location_of(self.run)

    def artifacts(self) -> dict[Path, float]:
        """Manifests of the run's library step, and when (Unix time) each was made.

        Those of a working copy may have been fetched since: what counts is when they were pushed.
        """
        paths = list((self.run / "library").glob("*/artifact.json")) if self.run else []
        if not isinstance(self._place, str):
            return {path: path.stat().st_mtime for path in paths}
        from donna_ray.run.mirror import OBJECTS  # and Ray

        pushed = Storage(folder_in(self._place, OBJECTS)).listing()
        made = {path: pushed.get(file_sha256(path)) for path in paths}
        return {path: fact.modified for path, fact in made.items() if fact and fact.modified}


def library_of(place: str) -> Library:
    """The store of a run (by its folder, or the URL of its copy), or a store by its path or URL.

    Raises:
        ConfigError: it is neither.
    """
    if "://" in place:
        settings = Storage(place).read(_CONFIG)
        return Library(RecordStore(place) if settings is None else _of_copy(place, settings))
    folder = Path(place).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(
            f"A library must be a run folder, or a store's path or URL, but {place} is no folder. "
            "Correct the path."
        )
    if not (folder / _CONFIG).is_file():
        if any(folder.iterdir()) and not any(folder.glob("*.safetensors")):
            raise ConfigError(
                f"A library must be a run folder, or a store's path or URL, but {place} has "
                "neither config.yaml nor records of blocks. Correct the path."
            )
        return Library(RecordStore(folder))
    config = load_config(folder / _CONFIG)
    store = block_store(config.cluster.location_of(folder), config.library.store)
    return Library(store, folder, config)


def library_to_clean(place: str) -> Library:
    """``library_of``, but of a run at a URL by its working copy, which is brought up to date."""
    if "://" in place and Storage(place).read(_CONFIG) is not None:
        from donna_ray.run.copies import working_copy

        place = str(working_copy(place))
    return library_of(place)


def _of_copy(url: str, settings: bytes) -> RecordStore:
    with TemporaryDirectory() as folder:
        path = Path(folder) / _CONFIG
        path.write_bytes(settings)
        return block_store(url, load_config(path).library.store)


def blocks_of(store: RecordStore, stage: int | None = None) -> list[Facts]:
    """The blocks of a store, by stage and NSR; in each stage those that failed come last.

    Args:
        store: the records.
        stage: this one only, from 0.

    Returns:
        Of each block: key, stage, block in words, nsr, params, macs, seconds (a share of its pack's
        training), and failed, the reason or None. What a record does not tell is None.
    """
    blocks = [
        {
            "key": key,
            "stage": record["stage"],
            "block": str(BlockSpec.from_json(record["block"])),
            **{name: record.get(name) for name in ("nsr", "params", "macs")},
            "seconds": record.get("cost", {}).get("seconds"),
            "failed": record.get("failed"),
        }
        for key, record in store.records().items()
        if "block" in record and stage in (None, record["stage"])
    ]
    return sorted(blocks, key=_by_stage_and_nsr)


def bad_records(store: RecordStore) -> list[str]:
    """Keys of records that are torn, altered or half there, those of paused blocks included."""
    return [*store.verify(), *(f"{PAUSED}/{key}" for key in store.within(PAUSED).verify())]


def record_of(store: RecordStore, key: str) -> Facts:
    """A record, and name and bytes of each of its files.

    Raises:
        ConfigError: no intact record has this key.
    """
    record = store.get(key)
    if record is None:
        raise ConfigError(
            f"The key must be of an intact record in {store.url}, but {key!r} is not. `donna "
            "library ls` prints the keys, `donna library verify` those of bad records."
        )
    group = files_by_key(store.files())[key]
    files = [{"name": name, "bytes": fact.size} for name, fact in sorted(group.items())]
    return {"record": record, "files": files}


def collect_garbage(library: Library, *, dry_run: bool) -> Facts:
    """Remove what nothing needs: stale files, and blocks that no artifact of the run refers to.

    Blocks are only removed from a store in its run folder, and only those that are older than the
    run's newest library artifact: younger ones are of a step that is not finished yet.

    Args:
        library: the store; of a run folder, it is held for the time.
        dry_run: tell what would be removed, and remove nothing.

    Returns:
        stale_files (names), blocks (keys), bytes (of both), removed (False in a dry run), and
        blocks_kept: why no blocks were looked at, or None.

    Raises:
        ConfigError: the folder holds no record, so that it may be no store.
        RunLockedError: a process works on the run.
    """
    from donna_ray.run.run import Run  # and Ray, which the other tools do without

    run, config, store = library.run, library.config, library.store
    held = Run(config, run) if config and run and not dry_run else nullcontext()
    with held:
        _check_is_store(library)
        paused = store.within(PAUSED)
        stale, stale_paused = store.stale_files(), paused.stale_files()
        blocks_kept = _why_blocks_are_kept(library)
        blocks = {} if blocks_kept else _abandoned(store, library.artifacts())
        doomed = ChainMap(stale, *blocks.values())
        if not dry_run:
            store.remove_files(doomed)
            paused.remove_files(stale_paused)
            if run:  # or they would be stored at its URL again
                block_store(run, None).remove(blocks)
    return {
        "stale_files": [*stale, *(f"{PAUSED}/{name}" for name in stale_paused)],
        "blocks": list(blocks),
        "bytes": sum(fact.size for fact in (*doomed.values(), *stale_paused.values())),
        "blocks_kept": blocks_kept,
        "removed": not dry_run,
    }


def _by_stage_and_nsr(block: Facts) -> tuple[int, bool, float, str]:
    nsr = block["nsr"]
    return block["stage"], nsr is None, nsr or 0.0, block["key"]


def _check_is_store(library: Library) -> None:
    """Files of a folder that holds no record could be anybody's."""
    store = library.store
    if library.is_in_run or store.records():
        return
    raise ConfigError(
        f"Only a folder with at least one intact record is known to be a store, but {store.url} "
        "has none. Correct the path, or remove what is in it yourself."
    )


def _why_blocks_are_kept(library: Library) -> str | None:
    if library.run is None:
        return "a store alone does not tell which blocks its runs need; name the run folder"
    if not library.is_in_run:
        return f"{library.store.url} is outside of {library.run}, so other runs may use its blocks"
    if not library.artifacts():
        return f"no library of {library.run} is finished yet, so each block may be needed"
    return None


def _abandoned(store: RecordStore, artifacts: dict[Path, float]) -> dict[str, Group]:
    """Files, by key, of blocks that no artifact refers to and that are older than the newest."""
    needed = {word for path in artifacts for word in _WORD.findall(path.read_text())}
    newest = max(artifacts.values())
    known, groups = store.records(), files_by_key(store.files())
    return {
        key: groups[key]
        for key in sorted(known.keys() & groups.keys() - needed)
        if all((fact.modified or newest) < newest for fact in groups[key].values())
    }
