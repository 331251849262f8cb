"""A run's distillation and search on a cluster that scales; prints what became of the nodes.

Arguments: a folder, the address of the cluster. Prints one JSON line. With `abandon` it asks for
nodes, prints how many are there then, and has to be killed.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray

from donna_ray.config import DeviceConfig, load_config, shipped_config
from donna_ray.latency.starting import start_farm
from donna_ray.run.run import Run
from donna_ray.workers import demand
from donna_ray.workers.pool import pool_of
from donna_ray.workers.spread import Unit, spread
from tests.ray_head import RAY

UNITS, PHONE = 60, "phone:pixel-8"
PATIENCE_S = 90.0
demand.SILENCE_S = 3.0


class Work:
    """Takes its time until two nodes have worked; then the rest is quick."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def __call__(self, number: int) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        (self._notes / node).touch()
        time.sleep(1.0 if len(list(self._notes.iterdir())) < 2 else 0.05)
        return {"number": number, "node": node}


def alive() -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def wait_for(count: int) -> int:
    """Until there are so many nodes, or for a while; how many there are."""
    deadline = time.monotonic() + PATIENCE_S
    while len(alive()) != count and time.monotonic() < deadline:
        time.sleep(0.3)
    return len(alive())


def abandon() -> None:
    """Ask for both nodes, and do nothing with them."""
    ray.init(log_to_driver=False)
    demand.Demand().ask([[{"CPU": 1}]] * 2 + [[{PHONE: 1}]])
    print(wait_for(3), flush=True)
    time.sleep(PATIENCE_S)


def main() -> None:
    folder, address = Path(sys.argv[1]), sys.argv[2]
    config = load_config(shipped_config("demo"), ["cluster.workers=9"])
    notes = folder / "notes"
    notes.mkdir()
    said: list[str] = []
    with Run(config, folder / "run") as run:
        run.connect()
        run.say = said.append  # type: ignore[method-assign]
        before = wait_for(1)
        facts = spread(
            run, "library", "units", [Unit(number) for number in range(UNITS)], Work(notes)
        )
        pool_of(run).lend(math.inf)  # as for the search, which gives the nodes back
        after = wait_for(1)
        device = DeviceConfig(connector="simulated", resources={PHONE: 1})
        waited: list[str] = []
        host = threading.Thread(target=join_when_asked, args=(waited, address), daemon=True)
        host.start()
        farm = start_farm(device, folder / "cache.sqlite", waited.append)
        farm.close()
        own = start_farm(DeviceConfig(), folder / "cache.sqlite", waited.append)
        own.close()
    nodes = sorted({fact["node"] for fact in facts})
    shares = [sum(fact["node"] == node for fact in facts) for node in nodes]
    numbers = [fact["number"] for fact in facts]
    found = {"before": before, "shares": shares, "numbers": numbers, "after": after}
    print(json.dumps({**found, "said": said, "waited": waited}))


def join_when_asked(said: list[str], address: str) -> None:
    """A host with the phone joins once the search has said that it waits for one."""
    while not said:
        time.sleep(0.1)
    offers = json.dumps({PHONE: 1})
    command = [RAY, "start", f"--address={address}", "--num-cpus=0", f"--resources={offers}"]
    subprocess.run([*command, "--disable-usage-stats"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    abandon() if sys.argv[1:] == ["abandon"] else main()
