"""Takes pictures of a run's report in Chromium: light, dark, and as on a phone.

The first is docs/demo-report.png. Needs the packages of `pip install -e ".[dev]"` and a chromium on
the PATH.

    python scripts/picture_report.py runs/demo pictures
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

_PICTURES = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 1240}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 1240}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 375, "height": 800}},
}


def main() -> None:
    """Prints the files: of the first screen, and of the whole page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("to", type=Path, help="the folder of the pictures")
    arguments = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, settings in _PICTURES.items():
            page = browser.new_page(**settings)
            page.goto((arguments.run / "report.html").resolve().as_uri())
            page.wait_for_selector("article, #cost")
            for part, whole in (("", False), ("-whole", True)):
                file = arguments.to / f"{name}{part}.png"
                page.screenshot(path=file, full_page=whole)
                print(file)
        browser.close()


if __name__ == "__main__":
    main()
