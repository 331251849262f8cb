"""The page, drawn from a small results.json."""

from __future__ import annotations

import hashlib
import re
from math import hypot
from pathlib import Path
from typing import Any

import pytest

from donna_ray.config import DevicePrecision
from donna_ray.latency.figures import Latency
from donna_ray.report import html
from donna_ray.report.drawing import Drawing
from donna_ray.report.headline import headline, headlines
from donna_ray.report.html import render
from donna_ray.report.results import Results
from donna_ray.report.scenario import Headline, Spec
from donna_ray.report.step import _headline, _scenario
from tests.unit.report.made import LATENCY, accuracies, point, results, spec

WARNING = "Latency of phone comes from a simulated device."
HOSTILE = "<script>alert('x')</script>"


@pytest.mark.parametrize("simulated", [False, True])
def test_page_warns_of_a_simulated_device_only(simulated: bool) -> None:
    page = render(results(simulated=simulated))
    assert (WARNING in page) == simulated
    assert ("simulated: no device was measured" in page) == simulated


@pytest.mark.parametrize("connector", ["adb", "recorded"])
def test_page_says_what_was_recorded_and_on_what(connector: str) -> None:
    found = results()
    device = found.scenarios[0].device.model_copy(
        update={"connector": connector, "model": "Pixel 3 (recorded)"}
    )
    found.scenarios[0] = found.scenarios[0].model_copy(update={"device": device})
    warning = "comes from a record, and was not measured by this run: Pixel 3 (recorded)"
    assert (warning in render(found)) == (connector == "recorded")
    assert ("times in turn" in render(found)) == (connector != "recorded")
    assert ("none was measured again" in render(found)) == (connector == "recorded")


def test_names_are_escaped() -> None:
    page = render(results(text=HOSTILE))
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(") >= 5
    assert page.count("<script>") == 3


def test_page_answers_which_network_to_take() -> None:
    page = render(results())
    reference, fastest, accurate = page[page.index('class="cards"') :].split('<div class="card">')[
        1:4
    ]
    assert "93.75% [81.25%, 100.00%]" in reference
    assert "of 32 test images" in reference
    assert "recipe: 90.62% [78.12%, 96.88%]" in reference
    assert "the fastest network that is not less accurate" in fastest
    assert "none of those finetuned" in fastest
    assert "Of 1 finetuned networks none is one." in fastest
    assert "donna finetune runs/one fast<" in fastest
    assert "the most accurate network that is not slower" in accurate
    assert "87.50% [75.00%, 93.75%], 2.00x as fast [1.96, 2.04]" in accurate  # 3.0 ms over 1.5
    assert "chosen by the validation images: 90.62%, the reference 96.88%" in accurate
    assert "1.5000 ms [1.4775, 1.5225]" in accurate
    assert "donna export runs/one good --to good<" in accurate
    assert list(headlines(results())) == [
        "test accuracy of 32 images (data.test_split test), with its 95% interval: the reference "
        "93.75% [81.25%, 100.00%], finetuned like the networks 90.62% [78.12%, 96.88%]",
        "the fastest network that is not less accurate than the reference, by the validation "
        "images: none of those finetuned",
        "the most accurate network that is not slower than the reference, by the validation "
        "images: good, 87.50% [75.00%, 93.75%], 2.00x as fast [1.96, 2.04]",
    ]


@pytest.mark.parametrize(
    ("accuracy", "latency_ms", "fastest", "most_accurate"),
    [
        (0.5, 9.0, "fast", "best"),
        (0.8, 3.0, "good", "best"),  # just as accurate, just as slow
        (0.81, 2.9, "best", "good"),
        (0.8, 0.9, "good", None),
        (0.95, 0.9, None, None),
    ],
)
def test_headline(
    accuracy: float, latency_ms: float, fastest: str | None, most_accurate: str | None
) -> None:
    points = [
        point("unknown", 0.5, None),
        point("fast", 1.0, 0.6),
        point("good", 2.0, 0.8),
        point("slow", 2.5, 0.8),
        point("best", 3.0, 0.9),
        point("beaten", 4.0, 0.9),
    ]
    validation = accuracies(accuracy)["accuracy"]
    assert validation is not None
    found = Headline.model_validate(
        headline(points, validation, {"median_ms": latency_ms, "ci_percent": 3.0})
    )
    answers = found.fastest_as_accurate, found.most_accurate_as_fast
    assert [each and each.id for each in answers] == [fastest, most_accurate]
    for answer in answers:
        if answer is not None:
            assert answer.speed_up == latency_ms / answer.median_ms
            own = LATENCY["ci_percent"]
            assert answer.speed_up_high == pytest.approx(
                answer.speed_up * (1 + hypot(3, own) / 100)
            )
            assert answer.speed_up_low * answer.speed_up_high == pytest.approx(answer.speed_up**2)


def test_headline_is_chosen_by_the_validation_images_and_told_by_the_tests() -> None:
    lucky, better = point("lucky", 1.0, 0.8), point("better", 2.0, 0.9)
    lucky |= {"test_accuracy": 0.95, "test_high": 0.97}  # by chance
    answers = Headline.model_validate(headline([lucky, better], 0.85, {"median_ms": 3.0}))
    for answer in (answers.most_accurate_as_fast, answers.fastest_as_accurate):
        assert answer is not None
        assert (answer.id, answer.test_accuracy) == ("better", better["test_accuracy"])


class _Networks:
    """In place of those of a run."""

    precision = "fp32"

    def headline(self, points: list[dict[str, Any]], latency: Latency) -> dict[str, Any]:
        return headline(points, 0.9, latency)

    def asked(self, _: str) -> list[dict[str, Any]]:
        return [{"id": "b"}, {"id": "c"}]

    def measured(self, _name: str, _latency: dict[str, Any]) -> dict[str, Any]:
        return {"measured": ["all"]}

    def table(
        self, points: list[dict[str, Any]], roles: dict[str, set[str]]
    ) -> list[dict[str, Any]]:
        return [
            point(each["id"], 1.0, 0.9)
            | {"roles": [role for role, ids in roles.items() if each["id"] in ids]}
            for each in points
        ]


def test_network_on_the_front_that_is_asked_for_is_there_once() -> None:
    found = {"reference_latency": LATENCY | {"device": "cpu"}, "front": [{"id": "a"}, {"id": "b"}]}
    made = _scenario("one", found, _Networks())
    roles = {each["id"]: each["roles"] for each in (*made["front"], *made["asked"])}
    assert roles == {"a": ["front"], "b": ["front", "asked for"], "c": ["asked for"]}
    assert [each["id"] for each in made["asked"]] == ["c"]
    assert made["headline"]["fastest_as_accurate"]["id"] == "a"
    assert made["search"]["measured"] == ["all"]


def test_networks_that_were_asked_for_are_shown_behind_the_front() -> None:
    value = results().model_dump(mode="json")
    value["scenarios"][0]["asked"] = [point("wanted", 2.0, 0.9) | {"roles": ["asked for"]}]
    value["scenarios"][0]["front"][1]["roles"] = ["front", "asked for"]
    page = render(Results.model_validate(value))
    assert page.index('data-show="0:good">good') < page.index('data-show="0:wanted">wanted')
    assert "<small>front, asked for</small>" in page
    assert list(headlines(Results.model_validate(value)))[3:] == [
        "asked for: good, 87.50% [75.00%, 93.75%], 1.5 ms, networks/good.onnx",
        "asked for: wanted, 90.00% [77.50%, 96.25%], 2 ms, networks/wanted.onnx",
    ]


@pytest.mark.parametrize(
    ("failed", "words"),
    [(None, "its training failed"), ("it cannot be quantised: no", "it cannot be quantised: no")],
)
def test_network_that_was_asked_for_in_vain_has_the_reason(failed: str | None, words: str) -> None:
    value = results().model_dump(mode="json")
    wanted = point("wanted", 2.0, 0.9) | {"roles": ["asked for"], "int8_failed": failed}
    value["scenarios"][0]["asked"] = [wanted]
    value["scenarios"][0]["device"]["precision"] = "int8"
    assert list(headlines(Results.model_validate(value)))[-1] == f"asked for: wanted, {words}; 2 ms"


def test_page_begins_with_what_is_doubtful() -> None:
    page = render(results(text="too few samples"))
    assert page.index('<p class="warning">too few samples') < page.index('id="answer"')


def test_page_of_a_run_that_goes_on_says_so_and_shows_what_there_is() -> None:
    value = results().model_dump(mode="json")
    value["made"]["finished"] = False
    page = render(Results.model_validate(value))
    assert "This run is not finished. Done: reference, search." in page
    assert "No network is finetuned yet." in page
    assert "donna finetune" not in page[: page.index('id="front-0"')]
    for missing in ("scenarios", "predictor", "library"):
        value[missing] = [] if missing == "scenarios" else None
        page = render(Results.model_validate(value))
        assert f'id="{missing}"' not in page
        assert 'id="cost"' in page
    value["reference"] |= dict.fromkeys(
        ("test_accuracy", "test_low", "test_high", "test_images", "test_from", "finetuned")
    )
    value["training_each"] = None
    assert "96.88% of 4 validation images" in render(Results.model_validate(value))
    assert "This run is not finished" not in render(results())


def test_each_scenario_has_a_front_of_its_own() -> None:
    page = render(results(scenarios=2))
    for number, name in enumerate(("phone", "server")):
        assert f'<section id="front-{number}"' in page
        assert f"{name}: the front</h2>" in page
        assert f"{name}: the device</h3>" in page
    assert "phone: " not in render(results())


def test_page_tells_predicted_against_real_accuracy() -> None:
    assert "1 are finetuned: on average +34.38% off their raw prediction." in render(results())


def test_page_tells_on_what_predictions_were_calibrated() -> None:
    value = results().model_dump(mode="json")
    assert "They are not calibrated to the final finetuning" in render(results())
    value["predictor"]["calibration"] = {"networks": ["a", "b", "c"]} | dict.fromkeys(
        ("centre", "shift", "slope"), 0.5
    )
    page = render(Results.model_validate(value))
    assert "They are calibrated to the final finetuning on 3 networks that had it" in page


def test_page_tells_how_near_the_search_came() -> None:
    page = render(results())
    assert "4 candidates measured by frontier, 1 failed." in page
    assert "5 of 7 left it, 4 joined it, and 6 took over 1% more" in page
    assert "98.7% of the hypervolume of the exact front" in page
    assert "off the measured latencies by 2.5%" in page
    assert "too &lt;large&gt;" in page


def test_page_tells_what_training_each_would_have_cost() -> None:
    text = re.sub(r"<[^>]*>", " ", render(results()))
    assert "training each of 4 instead" in text
    assert "would take 4,800, 400.0 times that" in text


def test_only_finetuned_networks_have_files() -> None:
    page = render(results())
    assert 'href="networks/good.onnx"' in page
    assert 'href="networks/fast' not in page


def test_page_loads_nothing_from_elsewhere() -> None:
    page = render(results())
    assert not re.findall(r"<(?:script|link|img)[^>]*\b(?:src|href)=[^>]*>", page)
    assert "content=\"default-src 'none'; script-src 'unsafe-inline';" in page


def test_libraries_are_those_that_the_notes_beside_them_name() -> None:
    page = Path(html.__file__).parent / "page"
    named = re.findall(
        r"^\| `(\S+)` \|.*`([0-9a-f]{64})` \|$", (page / "README.md").read_text(), re.M
    )
    assert [name for name, _ in named] == ["d3.min.js", "plot.umd.min.js"]
    for name, digest in named:
        assert hashlib.sha256((page / name).read_bytes()).hexdigest() == digest


def test_failed_and_paused_blocks_are_shown() -> None:
    page = render(results())
    for words in ("&lt;odd&gt;", "loss became nan", "&lt;slow&gt;", ">0.625<"):
        assert words in page


def test_drawing_shows_options_beside_those_of_the_library() -> None:
    blocks = [Spec.model_validate(spec(choice)) for choice in range(4)]
    drawing = Drawing([blocks]).block(blocks[1])
    for bar in (
        'class="bar" style="--share:1.000"><b>5</b><small>kernel</small>',
        'class="bar" style="--share:0.500"><b>2</b><small>expansion</small>',
        'class="bar" style="--share:0.500"><b>1</b><small>depth</small>',
        'class="bar w1" style="--share:1.000"><b>silu</b><small>activation</small>',
        'class="bar flag" style="--share:0.000"><b>no</b><small>se</small>',
    ):
        assert bar in drawing
    assert f'title="{blocks[1]}"' in drawing


@pytest.mark.parametrize("lower", ["int8", "fp16"])
def test_headline_in_a_precision_is_of_accuracies_in_it(lower: DevicePrecision) -> None:
    """The faster network is as good as the reference in float, and has collapsed in the other."""
    kept, collapsed = (
        {"accuracy": each, "test_accuracy": each, "test_low": each, "test_high": each}
        for each in (0.94, 0.6)
    )
    own = {"accuracy": 0.95, "test_accuracy": 0.95, "test_low": 0.94, "test_high": 0.96}
    points = [
        {"id": "fast", "latency": {"median_ms": 1.0}, **own, lower: collapsed},
        {"id": "slow", "latency": {"median_ms": 2.0}, **own, lower: kept},
        {"id": "not finetuned", "latency": {"median_ms": 0.1}, **dict.fromkeys(own), lower: None},
    ]
    reference = {**own, lower: {**own, "accuracy": 0.93}}
    ways: list[tuple[DevicePrecision, str]] = [("fp32", "fast"), (lower, "slow")]
    for precision, best in ways:
        found = _headline(precision, points, reference, {"median_ms": 3.0})
        assert found["fastest_as_accurate"]["id"] == best
