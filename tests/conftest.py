"""Tests leave the user's cache alone, and never find in it what they are to compute."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

_cache = tempfile.TemporaryDirectory(prefix="donna-ray-cache-")  # removed at the end
os.environ["XDG_CACHE_HOME"] = _cache.name
AWS = Path(_cache.name) / "aws"
"""The settings of S3's clients, in place of the user's; workers of a Ray begun before find them."""
for _name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[_name]
os.environ |= {"AWS_CONFIG_FILE": str(AWS), "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
settings.register_profile("shared host", deadline=None, derandomize=True)  # time says nothing
settings.load_profile("shared host")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell has it in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
MODULES = (ROOT, ROOT / "tests" / "device")
"""Where workers find the modules of tests, and the connector that one of them registers."""


@pytest.fixture(scope="session")
def _stopped_at_the_end() -> Iterator[None]:
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture
def one_ray(_stopped_at_the_end: None) -> None:
    """A local Ray that all tests share; started again where a test has stopped it for its own."""
    start_ray()


def start_ray() -> None:
    """Starts it, if it does not run."""
    import ray

    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as patch:
        paths = [*map(str, MODULES), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        for left in reversed(range(3)):  # on a busy host Ray's own limit, of 30 s, may be too short
            try:
                ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
                return
            except Exception as error:
                if not left or "timed out during startup" not in " ".join(str(error).split()):
                    raise
                ray.shutdown()


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[None]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    lines = (
        "[default]",
        f"endpoint_url = http://{host}:{port}",
        "region = us-east-1",
        "aws_access_key_id = key",
        "aws_secret_access_key = secret",
    )
    AWS.write_text("\n".join(lines))
    yield
    server.stop()


@pytest.fixture
def bucket(_s3_server: None) -> str:
    """The URL of an empty bucket at an S3 server of the tests, which workers find, too."""
    import s3fs

    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"
