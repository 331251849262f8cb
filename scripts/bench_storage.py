"""How many requests a store and a run's copy at an S3 server take, counted at the server.

Prints a table and, last, one JSON line. The floor is one request for each object that is stored or
read. What takes more: a listing of up to 1,000 files, and the index, are a request each.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import s3fs
import torch
from moto.server import ThreadedMotoServer
from rich.console import Console
from rich.table import Table

from donna_ray.run.mirror import Mirror
from donna_ray.storage.records import RecordStore

BLOCKS, FILES = 96, 96
URL = "s3://bucket/run"


class Requests(logging.Handler):
    """Counts what the server logs."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "HTTP/1" in record.getMessage()

    def of(self, action: Callable[[], object]) -> int:
        before = self.count
        action()
        return self.count - before


def main() -> None:
    requests = _serve()
    with tempfile.TemporaryDirectory() as folder:
        rows = {**_store(requests), **_copy(requests, Path(folder))}
    table = Table("action", "requests", "a block or file")
    for name, (count, each) in rows.items():
        table.add_row(name, str(count), f"{each:.2f}")
    Console().print(table)
    print(json.dumps({name.replace(" ", "_"): round(each, 3) for name, (_, each) in rows.items()}))


def _serve() -> Requests:
    requests, log = Requests(), logging.getLogger("werkzeug")
    log.addHandler(requests)
    log.setLevel(logging.INFO)
    log.propagate = False
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    os.environ |= {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3fs.S3FileSystem().mkdir("bucket")
    return requests


def _store(requests: Requests) -> dict[str, tuple[int, float]]:
    store, keys = RecordStore(f"{URL}/library/blocks"), [f"key{n}" for n in range(BLOCKS)]
    weights = {"w": torch.ones(1000)}
    actions: dict[str, Callable[[], object]] = {
        "store blocks": lambda: [store.put(key, {"nsr": 0.1}, weights) for key in keys],
        "list new blocks": store.records,
        "list known blocks": store.records,
        "read blocks": lambda: [store.weights(key) for key in keys],
    }
    counts = {name: requests.of(action) for name, action in actions.items()}
    return {name: (count, count / BLOCKS) for name, count in counts.items()}


def _copy(requests: Requests, folder: Path) -> dict[str, tuple[int, float]]:
    here, there = folder / "here", folder / "there"
    here.mkdir()
    for number in range(FILES):
        (here / f"{number}.txt").write_text(f"{number}")
    copy = Mirror(here, URL)
    actions: dict[str, Callable[[], object]] = {
        "push files": copy.push,
        "push again": copy.push,
        "pull files": Mirror(there, URL).pull,
        "pull again": Mirror(there, URL).pull,
    }
    counts = {name: requests.of(action) for name, action in actions.items()}
    return {name: (count, count / FILES) for name, count in counts.items()}


if __name__ == "__main__":
    main()
