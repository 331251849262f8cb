"""A run at an S3 server: made, made again, and gone on with on another host."""

from __future__ import annotations

from pathlib import Path

import pytest

from donna_ray.run.lease import LEASE
from donna_ray.run.shared_folder import MARK
from donna_ray.storage.files import Storage
from tests.command_line import donna_here
from tests.integration.conftest import results_of, words_of_demo


@pytest.mark.soak
def test_run_at_an_object_store(
    one_ray: None, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of_demo(Path("run"), f"--set=cluster.storage={bucket}/runs")
    words += ["--set=search.evaluations=8", "--set=finetune.networks=1"]
    words += ["--set=device={connector: simulated, settings: {noise_percent: 0}}"]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    made = donna_here(*words)
    assert made.returncode == 0, made.stderr
    copy = Storage(f"{bucket}/runs/run")
    assert copy.read("results.json") == (here / "run" / "results.json").read_bytes()

    written: list[str] = []
    write = Storage.write

    def noted(store: Storage, name: str, data: bytes) -> None:
        if name != LEASE and not name.startswith(MARK):
            written.append(name)
        write(store, name, data)

    monkeypatch.setattr(Storage, "write", noted)
    for folder in (here, there):
        written.clear()
        monkeypatch.chdir(folder)
        again = donna_here(*words)
        assert again.returncode == 0, again.stderr
        assert " done in " not in again.stderr
        # no block, network or artifact: what a reused run writes anew (its report) and the manifest
        assert len(written) <= 3, written
    one, other = (results_of(folder / "run") for folder in (here, there))
    assert one | {"made": None} == other | {"made": None}
    listed = donna_here("library", "ls", f"{bucket}/runs/run", "--json")
    assert listed.stdout.count('"key"') == 12
