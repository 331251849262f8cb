"""What `frontier` takes to propose a candidate, as a search grows.

The made-up device of `bench_search.py`: 5 stages of 384 blocks. Two batches of 20 are in flight.
Prints a table and, last, one JSON line: milliseconds of a CPU for each candidate, to ask for it and
to tell of it, over the thousand before each number of measurements. The floor is what a strategy
takes that looks at nothing (`random`).

    python scripts/bench_ask.py --measurements 10000
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_search import BATCH, outcomes, problem_of
from rich.console import Console
from rich.table import Table
from search_problem import make_problem

from donna_ray.config import SearchConfig
from donna_ray.search.ask_tell import Search, SearchSetup

EVERY = 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--measurements", type=int, default=10_000)
    count = parser.parse_args().measurements
    figures = {strategy: milliseconds(strategy, count) for strategy in ("frontier", "random")}
    table = Table("measurements", *figures)
    for number in figures["frontier"]:
        table.add_row(str(number), *(f"{each.get(number, 0):.1f}" for each in figures.values()))
    Console().print(table)
    print(json.dumps(figures))


def milliseconds(strategy: str, count: int) -> dict[int, float]:
    """Of a CPU for each candidate, by the number of measurements."""
    law, generator = make_problem(0), np.random.default_rng(0)
    config = SearchConfig(strategy=strategy, evaluations=count)
    with tempfile.TemporaryDirectory() as folder:
        search = Search(SearchSetup(problem_of(law), config, 0, Path(folder) / "journal"))
        waiting, found = [search.ask(BATCH), search.ask(BATCH)], {}
        told, since, began = 0, 0, time.process_time()
        while waiting:
            batch = waiting.pop(0)
            search.tell(zip(batch, outcomes(law, batch, generator), strict=True))
            told += len(batch)
            if new := search.ask(BATCH):
                waiting.append(new)
            if told - since >= EVERY or not waiting:
                spent = time.process_time() - began
                found[told] = round(1e3 * spent / (told - since), 2)
                since, began = told, time.process_time()
    return found


if __name__ == "__main__":
    main()
