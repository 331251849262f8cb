"""How long Chromium takes to draw report.html with many candidates, and how large the page is.

From the start of loading until the chart and the chosen network are shown and painted; the median
of the repeats. Needs the packages of `pip install -e ".[dev]"` and a chromium on the PATH.

    PYTHONPATH=. python scripts/bench_report.py [--candidates 10000] [--repeats 5]
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

from donna_ray.report.html import render
from tests.unit.report.made import results

_PAINTED = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))"


def seconds(file: Path, repeats: int) -> list[float]:
    """Of each repeat, in a window of its own."""
    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(repeats):
            page = browser.new_page()
            started = time.perf_counter()
            page.goto(file.as_uri())
            page.wait_for_selector("article")
            page.evaluate(_PAINTED)
            found.append(time.perf_counter() - started)
            page.close()
        browser.close()
    return found


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        file.write_text(render(results(candidates=arguments.candidates)))
        found = seconds(file, arguments.repeats)
        facts = {"candidates": arguments.candidates, "page_mb": file.stat().st_size / 1e6}
    print(json.dumps(facts | {"seconds": median(found), "slowest": max(found)}))


if __name__ == "__main__":
    main()
