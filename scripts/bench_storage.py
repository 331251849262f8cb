"""How many requests a store and a run's copy at an S3 server take, and what a large store takes.

Requests are counted at the server. The floor is one for each object that is stored or read. What
takes more: a listing of up to 1,000 files, and the index, are a request each. Then the same store
behind a proxy that adds 75 ms a request: 8 workers at once store blocks and read them; the floor is
two requests a block, one after the other.

A store of 20,000 records on a disk: CPU seconds of a listing after the first one (target 0.5), of
`donna library ls` (2), and of `verify`, beside reading and hashing the same files, its floor.

    python scripts/bench_storage.py [--records 20000]

Prints tables and, last, one JSON line.
"""

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import s3fs
import torch
from moto.server import ThreadedMotoServer
from rich.console import Console
from rich.table import Table
from soak_store import DELAY_S, Proxy

from donna_ray.run.mirror import Mirror
from donna_ray.storage.records import RecordStore

BLOCKS, FILES, WORKERS = 96, 96, 8
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=20_000, help="of the large store")
    count = parser.parse_args().records
    requests, port = _serve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = {**_store(requests), **_copy(requests, folder)}
        far = _far(requests, port)
        large = _large(folder / "large", count)
    table = Table("action", "requests", "a block or file")
    for action, (total, each) in rows.items():
        table.add_row(action, str(total), f"{each:.2f}")
    Console().print(table)
    figures = Table("what", "figure")
    for what, figure in (far | large).items():
        figures.add_row(what, f"{figure:.3g}")
    Console().print(figures)
    each = {action: round(each, 3) for action, (_, each) in rows.items()}
    facts = each | {what: round(figure, 3) for what, figure in (far | large).items()}
    print(json.dumps({what.replace(" ", "_"): figure for what, figure in facts.items()}))


def _serve() -> tuple[Requests, int]:
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
    return requests, port


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


def _far(requests: Requests, port: int) -> dict[str, float]:
    """Requests and seconds of a block with a worker each, by a server that is far away."""
    proxy = Proxy(port)
    os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{proxy.port}"
    s3fs.S3FileSystem.clear_instance_cache()
    weights = {"w": torch.ones(1000)}

    def work(number: int) -> None:
        store = RecordStore(f"{URL}/far")
        store.put(f"far{number}", {"nsr": 0.1}, weights)
        store.weights(f"far{number}")

    begun, before = time.perf_counter(), requests.count
    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(work, range(BLOCKS)))
    RecordStore(f"{URL}/far").records()
    taken = time.perf_counter() - begun
    count = (requests.count - before) / BLOCKS
    proxy.close()
    return {
        "requests a block": count,
        "s a block of each of 8 workers at 75 ms": taken * WORKERS / BLOCKS,
        "floor of it": 2 * DELAY_S,
    }


def _large(folder: Path, count: int) -> dict[str, float]:
    """CPU seconds of what looks at a store of so many blocks."""
    store, weights = RecordStore(folder), {"w": torch.ones(1000)}
    block = {"family": "inverted_residual", "options": {"kernel": 3, "depth": 2}}
    for number in range(count):
        facts = {"stage": number % 5, "block": block, "nsr": number / count, "params": 1, "macs": 1}
        store.put(f"{number:016x}", facts, weights)
    listing = [sys.executable, "-m", "donna_ray", "library", "ls", str(folder)]
    actions: dict[str, Callable[[], object]] = {
        "first listing": store.records,
        "listing": store.records,
        "library ls": lambda: subprocess.run(listing, check=True, stdout=subprocess.DEVNULL),
        "verify": store.verify,
        "floor of verify": lambda: [
            hashlib.sha256(path.read_bytes()).digest() for path in folder.glob("*.safetensors")
        ],
    }
    return {f"{name}, CPU s": _cpu_s(action) for name, action in actions.items()}


def _cpu_s(action: Callable[[], object]) -> float:
    """Of this process and those that it starts."""
    before = os.times()
    action()
    return sum(os.times()[:4]) - sum(before[:4])


if __name__ == "__main__":
    main()
