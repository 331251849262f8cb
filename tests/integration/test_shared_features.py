"""The workers of a node distil on features that are kept once."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from donna_ray.config import load_config, shipped_config
from donna_ray.library.step import library_step
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from tests.integration.conftest import SMALLEST

LISTS = Path(tempfile.gettempdir()) / f"donna-ray-shared-{os.getuid()}"


def test_workers_share_kept_features(one_ray: None, tmp_path: Path) -> None:
    """In memory, then on a disk."""
    more = {"library.pack_size": 1, "cluster.workers": 2}
    sets = [f"{key}={json.dumps(value)}" for key, value in {**SMALLEST, **more}.items()]
    with Run(load_config(shipped_config("demo"), sets), tmp_path / "run") as run:
        reference = reference_step(run)
        for features in ("memory", "disk"):
            library = run.config.library.model_copy(update={"features": features})
            run.config = run.config.model_copy(update={"library": library})
            shutil.rmtree(run.root / "library", ignore_errors=True)  # so that nothing is reused
            known = set(LISTS.glob("*"))
            library_step(run, reference)
            found = [_holders(each) for each in set(LISTS.glob("*")) - known]
            [holders] = [each for each in found if len({process for process, *_ in each}) == 2]
            assert len({(device, inode) for *_, device, inode in holders}) == 1, features


def _holders(listed: Path) -> list[tuple[int, ...]]:
    """Of a list, which may be that of another test, and gone."""
    lines = listed.read_text().split("\n") if listed.exists() else []
    return [tuple(json.loads(line)[0]) for line in lines if line]
