"""report.html in Chromium: what a person sees, clicks and types, and what a screen reader finds.

One browser is started for all tests; the page is made of a results fixture.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from donna_ray.report.html import render
from donna_ray.report.results import Results
from tests.unit.report.made import point, results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
    pytest.mark.xdist_group("chromium"),
]
AXE = Path(__file__).parent / "axe" / "axe.min.js"
WORDS = {"2", "3", "1", "95", "0"}  # R2, fewer than 3, over 1%, 95% intervals, stage 0
_LIMIT = 120_000  # milliseconds; only ends what hangs: hosts may be slow
Page = Any
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    settings: dict[str, Any] = {"executable_path": CHROMIUM, "args": arguments, "timeout": _LIMIT}
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(**settings)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page of results; what it says to the console, or throws, fails the test."""
    said: list[str] = []
    contexts = []

    def open_page(found: Results, width: int = 1280, scheme: str = "light") -> Page:
        file = tmp_path / "report.html"
        file.write_text(render(found))
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, offline=True))
        page = contexts[-1].new_page()
        page.set_default_timeout(_LIMIT)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri())
        page.wait_for_selector("article")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said


def full(**options: Any) -> Results:
    """Two scenarios; in the first one answer is found, and a network that was asked for."""
    value = results(text="mobile", scenarios=2, **options).model_dump(mode="json")
    asked = point("wanted", 2.25, 0.96875, 2) | {"roles": ["asked for"], "predicted_low": 0.53125}
    value["scenarios"][0]["asked"] = [asked]
    return Results.model_validate(value)


def picked(page: Page, number: int = 0) -> list[str]:
    cards = page.query_selector_all(f'[data-picked="{number}"] article')
    return [each.get_attribute("data-network") for each in cards]


def numbers_of(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers_of(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def derived(found: Results) -> Iterator[float]:
    """What the page works out: intervals of latencies, errors, differences, sums and counts."""
    for scenario in found.scenarios:
        networks = [*scenario.front, *scenario.asked]
        for latency in [scenario.reference_latency, *(each.latency for each in networks)]:
            share = latency.ci_percent / 100
            yield from (latency.median_ms * (1 - share), latency.median_ms * (1 + share))
        finetuned = [each for each in scenario.front if each.accuracy is not None]
        gaps = [each.accuracy - each.raw_accuracy for each in finetuned]
        yield from (len(networks), len(scenario.search.failed), len(finetuned))
        yield from (sum(gaps) / len(gaps), len(scenario.search.verified.networks))
    assert found.predictor
    assert found.training_each
    yield sum(each.search.timed_seconds for each in found.scenarios)
    yield from (each.mse.value**0.5 for each in found.predictor.quality.values())
    passes = sum(each.image_passes for each in found.cost.values())
    yield from (passes, found.training_each.image_passes / passes)
    assert found.library
    yield from (len(each.blocks) for each in found.library.stages)


def test_every_number_shown_is_of_results_json(opened: Open) -> None:
    found = full()
    page = opened(found)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.evaluate("document.querySelectorAll('svg').forEach(each => each.remove())")
    text = page.inner_text("main")
    known = [*numbers_of(found.model_dump(mode="json")), *derived(found)]
    shown = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?%?(?!\w)", text)
    assert len(shown) > 150
    unknown = {
        each for each in shown if each.rstrip("%") not in WORDS and not is_one_of(each, known)
    }
    assert not unknown
    assert not is_one_of("87.51%", known)


def is_one_of(shown: str, known: list[float]) -> bool:
    """Whether a number as shown is one of those known, to the digits shown."""
    plain = shown.replace(",", "").rstrip("%")
    digits = len(plain.partition(".")[2])
    factors = (1, 100) if shown.endswith("%") else (1,)
    return any(f"{factor * each:.{digits}f}" == plain for factor in factors for each in known)


def test_a_click_shows_the_network_and_another_beside_it(opened: Open) -> None:
    page = opened(full())
    page.click('#networks-0 button[data-show="0:good"]')
    assert picked(page) == ["good"]
    card = page.inner_text('[data-picked="0"]')
    for words in ("1.5000 ms [1.4775, 1.5225]", "87.50% [75.00%, 93.75%]", "donna export runs/one"):
        assert words in card
    bars = page.query_selector_all('[data-picked="0"] .block')
    assert [each.get_attribute("title").partition("(")[0] for each in bars] == ["mobile", "mobile"]
    page.click('[data-picked="0"] >> text=Keep to compare')
    page.click('#networks-0 button[data-show="0:wanted"]')
    assert picked(page) == ["good", "wanted"]
    differ = page.query_selector_all('[data-network="wanted"] .differs .stage')
    assert [each.inner_text() for each in differ] == ["stage 0"]
    page.click('[data-picked="0"] >> text=Let go')
    assert picked(page) == ["wanted"]
    assert picked(page, 1) == ["good"]


def test_a_tap_on_a_point_of_the_chart_picks_it(opened: Open) -> None:
    page = opened(full(), width=375)
    chart = page.locator('[data-chart="front"][data-number="0"] svg')
    page.click('#networks-0 [data-show="0:fast"]')
    ring, frame = (each.bounding_box() for each in (chart.locator(".ring"), chart))
    page.click('#networks-0 [data-show="0:wanted"]')
    assert chart.locator(".ring").bounding_box()["x"] - frame["x"] > ring["x"] - frame["x"] > 0
    middle = {axis: ring[axis] - frame[axis] + ring["width"] / 2 for axis in ("x", "y")}
    chart.click(position=middle)
    assert picked(page) == ["fast"]


def test_keyboard_goes_along_the_front_and_compares(opened: Open) -> None:
    page = opened(full())
    page.focus('[data-chart="front"][data-number="0"]')
    visited = []
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
        visited.append(picked(page)[-1])
    assert visited == ["fast", "fast", "good", "wanted", "wanted"]
    assert page.inner_text('[data-said="0"]').startswith("wanted, 2.2500 ms, predicted 62.50%")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    assert picked(page) == ["wanted", "good"]
    page.keyboard.press("Escape")
    assert picked(page) == ["good"]
    page.keyboard.press("Shift+ArrowRight")
    assert picked(page) == ["c1"]
    assert "donna finetune runs/one c1" in page.inner_text('[data-network="c1"]')


def rows_of(page: Page) -> list[str]:
    rows = page.query_selector_all("#networks-0 tbody tr:not([hidden])")
    return [each.query_selector(".show").inner_text() for each in rows]


def test_table_is_sorted_filtered_and_saved(opened: Open) -> None:
    page = opened(full())
    assert rows_of(page) == ["fast", "good", "wanted"]
    head = page.locator("#networks-0 th").nth(4)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert rows_of(page) == ["good", "wanted", "fast"]  # what has none is last
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert rows_of(page) == ["wanted", "good", "fast"]
    page.fill('[data-filter="networks-0"]', "kernel=5")
    assert rows_of(page) == ["good"]
    assert page.inner_text('[data-count="networks-0"]') == "1 of 3 networks"
    with page.expect_download() as saved:
        page.click('[download="networks-0.csv"]')
    lines = Path(saved.value.path()).read_text().splitlines()
    assert lines[0].startswith("id,roles,architecture,blocks,median_ms,ci_percent,")
    assert [line.partition(",")[0] for line in lines[1:]] == ["fast", "good", "wanted"]
    assert ",0.96875,0.84375,1.03125,0.625,0.53125,0.75," in lines[3]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screen_readers_find_nothing_serious(opened: Open, scheme: str) -> None:
    page = opened(full(), scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        f"{each['id']}: {node['html'][:120]} {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
    assert not serious, "\n".join(serious)
    assert len(found["passes"]) > 10
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == {"light": "rgb(245, 246, 248)", "dark": "rgb(16, 21, 28)"}[scheme]


def test_a_phone_does_not_scroll_sideways(opened: Open) -> None:
    found = full()
    found.made.folder = "runs of mine/one"
    found.made.command = "donna run " + "very-long-word-" * 20
    page = opened(found, width=375)
    page.click('[data-show="0:good"]')
    assert "donna export 'runs of mine/one' good " in page.inner_text('[data-picked="0"]')
    page.click('[data-picked="0"] >> text=Keep to compare')
    page.click('[data-show="0:wanted"]')
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_ten_thousand_candidates_are_drawn(opened: Open) -> None:
    page = opened(results(candidates=10_000))
    drawn = page.evaluate(
        "[...document.querySelectorAll('[data-chart=front] path, [data-chart=drift] path')]"
        ".map(each => each.getAttribute('d').split('M').length - 1)"
    )
    assert sorted(drawn)[-2:] == [10_000, 10_002]
    candidates = page.locator("[data-chart=front] svg [stroke='var(--candidate)'] path")
    assert candidates.count() == 1
    page.check("[data-near]")
    assert candidates.count() == 0
