"""Where a run is kept, on a laptop and in a job of a Ray cluster."""

import os
import re
from pathlib import Path

from donna_ray.config import RunConfig
from donna_ray.errors import ConfigError
from donna_ray.run.ownership import check_is_ours
from donna_ray.storage.artifacts import digest
from donna_ray.storage.places import user_cache

__all__ = ["copies", "copy_of", "in_job", "name_of", "run_folder"]

_URL = re.compile(r"[A-Za-z][\w+.-]+:/")
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # which Ray sets for the command of a job


def run_folder(config: RunConfig, given: Path | None) -> Path:
    """The run folder: the one given, or one of the configuration's name in `cluster.storage`.

    Of a storage at a URL it is a working copy in the user's cache; without one it is `runs/NAME`.

    Raises:
        ConfigError: it would be in a Ray job's copy of its working directory, which does not last;
            or what is there is no run's.
    """
    if given is not None and _URL.match(str(given)):
        raise ConfigError(
            "--out must be a folder, but is a URL. Set cluster.storage to the URL: the run is "
            "there under its name."
        )
    root = given or _default(config)
    if in_job() and not root.expanduser().is_absolute():
        raise ConfigError(
            "In a Ray job the run folder must outlive the job's copy of the working directory, but "
            f"is {root} in it. Set cluster.storage to a folder that all nodes see, or to a URL "
            "such as s3://BUCKET/runs; or give an absolute --out."
        )
    check_is_ours(root)
    return root


def in_job() -> bool:
    """Whether this process is the command of a Ray job."""
    return _IN_JOB in os.environ


def _default(config: RunConfig) -> Path:
    storage = config.cluster.storage
    if storage is None:
        return Path("runs") / config.name
    if "://" not in storage:
        return Path(storage) / config.name
    return copy_of(storage, config.name)


def copy_of(storage: str, name: str) -> Path:
    """The working copy of the run of this name in a storage at a URL."""
    return copies() / digest(storage) / name


def name_of(root: Path) -> str:
    """What tells a run from others with the same URL: its name, or the `--out` that was given."""
    if root.is_relative_to(copies()):
        return Path(*root.relative_to(copies()).parts[1:]).as_posix()
    return root.as_posix()


def copies() -> Path:
    """Where the working copies of runs at URLs are."""
    return user_cache() / "donna-ray" / "runs"
