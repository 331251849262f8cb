"""Ray jobs on a real head, with a token: refused, submitted, stopped, and submitted again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.job.common import JobStatus
from ray.dashboard.modules.job.sdk import JobSubmissionClient

from donna_ray.config import shipped_config
from tests.integration.conftest import SMALLEST
from tests.ray_head import ROOT, Head, ray_head
from tests.waiting import wait_for

pytestmark = pytest.mark.soak  # in CI: test_submit.py, test_shared_folder.py and test_endings.py
SUBMIT = str(ROOT / "clusters" / "submit.sh")
CONTROL = re.compile("[\r\x1b]")  # what a progress bar would leave in a log


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.fixture(scope="module")
def client(head: Head) -> JobSubmissionClient:
    """Has the token by hand: a process reads Ray's variables once, and other tests have none."""
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    return JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working directory with a configuration."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(shipped_config("demo"), folder / "search.yaml")
    return folder


def sets(storage: Path) -> list[str]:
    values = SMALLEST | {"library.epochs": 8, "library.pack_size": 1}
    values |= {"cluster.storage": str(storage), "cluster.workers": 2}
    return [f"--set={key}={json.dumps(value)}" for key, value in values.items()]


def submit(head: Head, work: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**head.environment, "RAY_ADDRESS": head.dashboard}
    return subprocess.Popen(
        [SUBMIT, "search.yaml", *words],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(client: JobSubmissionClient, job: str) -> Any:
    wait_for(lambda: client.get_job_status(job).is_terminal(), lambda: client.get_job_logs(job))
    return client.get_job_info(job)


def donna(client: JobSubmissionClient, work: Path, *words: str) -> str:
    """Submit `donna` plainly; the id of the job."""
    command = " ".join(["donna", *(f"'{word}'" for word in words)])
    return str(client.submit_job(entrypoint=command, runtime_env={"working_dir": str(work)}))


def commands_with(word: str) -> list[int]:
    """Processes of `donna` with a word in their arguments."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            with contextlib.suppress(OSError):
                arguments = (each / "cmdline").read_bytes()
                if b"donna" in arguments and word.encode() in arguments:
                    found.append(int(each.name))
    return found


def test_stopped_and_killed_jobs_go_on_when_submitted_again(
    head: Head, client: JobSubmissionClient, work: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    blocks = storage / "demo" / "library" / "blocks"
    process = submit(head, work, *sets(storage))
    try:
        while len(list(blocks.glob("*.safetensors"))) < 2:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        (job,) = [each.submission_id for each in client.list_jobs()]
        assert job is not None
        client.stop_job(job)
        output, _ = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 3, output
    assert "search.yaml can be run: 12 blocks, 64 networks" in output
    assert ended(client, job).status == JobStatus.STOPPED
    stored = {path: path.stat().st_mtime_ns for path in blocks.glob("*.safetensors")}
    assert 2 <= len(stored) < 12
    assert not list((storage / "demo").glob(".seen*"))  # it ended in order

    killed = donna(client, work, "library", "build", "search.yaml", *sets(storage))
    while len(list(blocks.glob("*.safetensors"))) < len(stored) + 2:
        assert not client.get_job_status(killed).is_terminal(), client.get_job_logs(killed)
        time.sleep(0.05)
    for pid in commands_with(str(storage)):
        os.kill(pid, signal.SIGKILL)
    assert ended(client, killed).status == JobStatus.FAILED
    stored = {path: path.stat().st_mtime_ns for path in blocks.glob("*.safetensors")}

    again = donna(client, work, "library", "build", "search.yaml", *sets(storage))
    info = ended(client, again)
    logs = client.get_job_logs(again)
    assert info.status == JobStatus.SUCCEEDED, logs
    assert info.driver_exit_code == 0
    reused = re.search(r"(\d+) of 12 blocks are there already", logs)
    assert reused is not None, logs
    assert int(reused[1]) >= len(stored)  # workers of a killed driver store what they are at
    assert "library    done in" in logs
    for log in (client.get_job_logs(job), logs):
        assert not CONTROL.search(log)
    assert len(list(blocks.glob("*.safetensors"))) == 12
    assert all(path.stat().st_mtime_ns == changed for path, changed in stored.items())


def test_job_that_fails_says_why_in_its_status(
    head: Head, client: JobSubmissionClient, work: Path
) -> None:
    job = donna(client, work, "run", "search.yaml")
    info = ended(client, job)
    assert info.status == JobStatus.FAILED
    assert info.driver_exit_code == 2
    assert "donna: In a Ray job the run folder must outlive" in client.get_job_logs(job)


def test_bad_configuration_is_not_submitted(
    head: Head, client: JobSubmissionClient, work: Path
) -> None:
    before = len(client.list_jobs())
    process = submit(head, work, "--set", "device.connector=none")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "connector" in output
    assert len(client.list_jobs()) == before


def test_dashboard_refuses_those_without_the_token(head: Head) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{head.dashboard}/api/jobs/", timeout=60)
    assert caught.value.code == 401
