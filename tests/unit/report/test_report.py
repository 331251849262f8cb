"""The page, drawn from a small results.json."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from donna_ray.report.fronts import _table
from donna_ray.report.headline import headline, headlines
from donna_ray.report.html import render
from donna_ray.report.results import FrontPoint, Headline, Latency, Results
from donna_ray.report.step import _headline, _scenario

LATENCY = {"median_ms": 2.0, "p90_ms": 2.2, "p99_ms": 4.0, "n": 50, "ci_percent": 1.5}
LATENCY |= {"blocks_p20_ms": 1.9, "blocks_p90_ms": 2.1}
TAU = {"value": 0.75, "low": 0.5, "high": 0.875}
QUALITY = {
    "kendall_tau": TAU,
    "spearman": TAU,
    "mse": {"value": 0.0001, "low": 0.0, "high": 0.001},
    "r2": {"value": 0.25, "low": -0.5, "high": 0.5},
}
SAMPLE = {"id": "s", "predicted": 0.5, "predicted_low": 0.4, "predicted_high": 0.6, "accuracy": 0.5}
WARNING = "Latency of phone comes from a simulated device."
HOSTILE = "<script>alert('x')</script>"


def accuracies(accuracy: float | None) -> dict[str, float | None]:
    """The validation's is a little better, as where it chose."""
    if accuracy is None:
        return dict.fromkeys(("accuracy", "test_accuracy", "test_low", "test_high"))
    return {
        "accuracy": accuracy + 0.03125,
        "test_accuracy": accuracy,
        "test_low": accuracy - 0.125,
        "test_high": accuracy + 0.0625,
    }


def point(name: str, median_ms: float, accuracy: float | None) -> dict[str, Any]:
    finetuned = accuracy is not None
    return {
        "id": name,
        "architecture": [0],
        "roles": ["front"],
        "blocks": [f"{name} block"],
        "raw_accuracy": 0.5625,
        "raw_low": 0.4375,
        "raw_high": 0.6875,
        "predicted_accuracy": 0.625,
        "predicted_low": 0.5,
        "predicted_high": 0.75,
        **accuracies(accuracy),
        "latency": LATENCY | {"median_ms": median_ms},
        "params": 1234,
        "macs": 56789,
        "weights": f"networks/{name}.safetensors" if finetuned else None,
        "onnx": f"networks/{name}.onnx" if finetuned else None,
    }


def test_stages_of_a_transformer_have_tokens_and_channels() -> None:
    values = results().model_dump(mode="json")
    values["library"]["stages"][0] |= {"input": [197, 192], "output": [197, 192]}
    (stage,) = Results.model_validate_json(json.dumps(values)).library.stages
    assert (stage.input, stage.output) == ((197, 192), (197, 192))


def scenario(name: str, text: str, simulated: bool) -> dict[str, Any]:
    front = [point("fast", 1.0, None), point("good", 1.5, 0.875) | {"blocks": [text]}]
    return {
        "name": name,
        "device": {"model": text, "connector": text, "settings": {}, "simulated": simulated},
        "reference_latency": LATENCY | {"median_ms": 3.0},
        "search": {
            "strategy": "frontier",
            "objectives": [],
            "candidates": 3,
            "measured_architectures": 2,
            "points": [(1.0, 0.5)],
            "yardstick": {
                "hypervolume_share": 0.987,
                "exact_front": 7,
                "complete": True,
                "error_percent": 2.5,
                "kendall_tau": 0.9,
            },
            "verified": {
                "rounds": 3,
                "measurements": 9,
                "front_before": 7,
                "left": 5,
                "joined": 4,
                "limits_broken": 6,
                "networks": [
                    {
                        "id": "fast",
                        "first_ms": 0.9,
                        "rounds_ms": [0.9, 1.0, 1.1],
                        "latency": LATENCY,
                        "on_front_before": False,
                        "on_front": True,
                    }
                ],
            },
        },
        "headline": headline(front, 0.9375, 3.0),
        "front": front,
        "asked": [],
    }


def results(*, simulated: bool = False, text: str = "plain", scenarios: int = 1) -> Results:
    shape = (4, 8, 8)
    block = {"block": text, "key": "k", "nsr": 0.25, "params": 10, "macs": 100}
    return Results.model_validate(
        {
            "version": 4,
            "name": text,
            "seed": 0,
            "data": text,
            "versions": {"python": "3"},
            "doubts": [text],
            "reference": {
                "model": text,
                "weights": "train",
                **accuracies(0.9375),
                "finetuned": accuracies(0.90625),
                "params": 10,
                "macs": 100,
                "input": shape,
                "classes": 10,
                "train_images": 8,
                "validation_images": 4,
                "test_images": 32,
                "test_from": "data.test_split test",
            },
            "library": {
                "size": 1,
                "stages": [{"input": shape, "output": shape, "blocks": [block]}],
                "failed": [{"stage": 0, "block": "<odd>", "reason": "loss became nan"}],
                "paused": [{"stage": 0, "block": "<slow>", "nsr": 0.625}],
            },
            "predictor": {
                "samples": 6,
                "library_size": 2,
                "calibration": None,
                "kendall_tau": TAU,
                "baselines": {"macs": TAU},
                "quality": {"predictor": QUALITY, text: QUALITY},
                "architectures": [SAMPLE],
            },
            "scenarios": [
                scenario(name, text, simulated) for name in ("phone", "server")[:scenarios]
            ],
            "cost": {"reference": {"seconds": 1.0, "image_passes": 12, "reused": False}},
        }
    )


@pytest.mark.parametrize("simulated", [False, True])
def test_page_warns_of_a_simulated_device_only(simulated: bool) -> None:
    assert (WARNING in render(results(simulated=simulated))) == simulated


@pytest.mark.parametrize("connector", ["adb", "recorded"])
def test_page_says_what_was_recorded_and_on_what(connector: str) -> None:
    found = results()
    device = found.scenarios[0].device.model_copy(
        update={"connector": connector, "model": "Pixel 3 (recorded)"}
    )
    found.scenarios[0] = found.scenarios[0].model_copy(update={"device": device})
    warning = "comes from a record, and was not measured by this run: Pixel 3 (recorded)"
    assert (warning in render(found)) == (connector == "recorded")
    assert ("measured again" in render(found)) == (connector != "recorded")


def test_names_are_escaped() -> None:
    page = render(results(text=HOSTILE))
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(") >= 5


def test_page_answers_which_network_to_take() -> None:
    page = render(results())
    answers = (
        "<b>none of those finetuned</b>",
        "<b>87.50% [75.00%, 93.75%], 2.00x as fast</b>",
    )  # 3.0 ms over 1.5
    fastest = page.index("the fastest network that is not less accurate")
    accurate = page.index("the most accurate network that is not slower")
    assert page.index(answers[0]) < fastest < page.index(answers[1]) < accurate
    assert "0.75 [0.50, 0.88]" in page
    assert "<b>93.75% [81.25%, 100.00%]</b><span>the reference on 32 test images" in page
    assert "<b>90.62% [78.12%, 96.88%]</b><span>the reference, finetuned by" in page
    assert list(headlines(results())) == [
        "test accuracy of 32 images (data.test_split test), with its 95% interval: the reference "
        "93.75% [81.25%, 100.00%], finetuned like the networks 90.62% [78.12%, 96.88%]",
        "the fastest network that is not less accurate than the reference: none of those finetuned",
        "the most accurate network that is not slower than the reference: good, 87.50% [75.00%, "
        "93.75%], 2.00x as fast",
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
    found = Headline.model_validate(headline(points, accuracy, latency_ms))
    answers = found.fastest_as_accurate, found.most_accurate_as_fast
    assert [each and each.id for each in answers] == [fastest, most_accurate]
    for answer in answers:
        assert answer is None or answer.speed_up == latency_ms / answer.median_ms


def test_network_on_the_front_that_is_asked_for_is_there_once() -> None:
    def table(points: list[dict[str, Any]], roles: dict[str, set[str]]) -> list[dict[str, Any]]:
        return [
            point(each["id"], 1.0, 0.9)
            | {"roles": [role for role, ids in roles.items() if each["id"] in ids]}
            for each in points
        ]

    found = {"reference_latency": LATENCY | {"device": "cpu"}, "front": [{"id": "a"}, {"id": "b"}]}
    made = _scenario(
        "one", found, table, [{"id": "b"}, {"id": "c"}], {"test_accuracy": 0.9}, "fp32"
    )
    roles = {each["id"]: each["roles"] for each in (*made["front"], *made["asked"])}
    assert roles == {"a": ["front"], "b": ["front", "asked for"], "c": ["asked for"]}
    assert [each["id"] for each in made["asked"]] == ["c"]
    assert made["headline"]["fastest_as_accurate"]["id"] == "a"


def test_networks_that_were_asked_for_are_shown_beside_the_front() -> None:
    value = results().model_dump(mode="json")
    assert "asked for" not in render(Results.model_validate(value))
    wanted = point("wanted", 2.0, 0.9) | {"roles": ["asked for"]}
    value["scenarios"][0]["asked"] = [wanted]
    value["scenarios"][0]["front"][1]["roles"] = ["front", "asked for"]
    page = render(Results.model_validate(value))
    assert page.index("<h2>Networks that were asked for</h2>") < page.index("<code>wanted</code>")
    assert "<code>good</code><br>front, asked for" in page
    assert list(headlines(Results.model_validate(value)))[3:] == [
        "asked for: good, 87.50% [75.00%, 93.75%], 1.5 ms, networks/good.onnx",
        "asked for: wanted, 90.00% [77.50%, 96.25%], 2 ms, networks/wanted.onnx",
    ]


def test_page_begins_with_what_is_doubtful() -> None:
    page = render(results(text="too few samples"))
    assert page.index('<section class="warning">too few samples') < page.index(
        '<div class="tiles">'
    )


def test_each_scenario_has_a_front_of_its_own() -> None:
    page = render(results(scenarios=2))
    for name in ("phone", "server"):
        assert f"{name}: accuracy against latency" in page
        assert f"latency of the reference ({name})" in page
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
    assert "56.25%<br>[43.75%, 68.75%]" in page
    assert page.index(">predicted<") < page.index(">raw prediction<") < page.index(">validation<")


def test_page_tells_how_far_to_trust_predictions() -> None:
    page = render(results())
    assert "62.50% [50.00%, 75.00%]" in page
    assert "62.50%<br>[50.00%, 75.00%]" in page
    assert "0.25 [-0.50, 0.50]" in page
    assert ">1.00%<" in page  # the root of a mean squared error of 0.0001


def test_page_tells_how_near_the_search_came() -> None:
    page = render(results())
    assert "2 candidates measured by frontier, 1 failed." in page
    assert "5 of 7 left it, 4 joined it, and 6 took over 1% more" in page
    assert "98.7% of the hypervolume of the exact front" in page
    assert "off the measured latencies by 2.5%" in page


def test_only_finetuned_networks_have_files() -> None:
    page = render(results())
    assert 'href="networks/good.onnx"' in page
    assert "networks/fast" not in page


def test_page_loads_nothing_from_elsewhere() -> None:
    assert not re.findall(r"<(?:script|link|img)[^>]*\b(?:src|href)=[^>]*>", render(results()))


def test_results_read_as_written_and_refuse_unknown_fields() -> None:
    value = results().model_dump(mode="json")
    assert Results.model_validate(value) == results()
    with pytest.raises(ValueError, match="extra"):
        Results.model_validate(value | {"more": 1})


def test_a_latency_of_an_earlier_run_has_no_tail() -> None:
    earlier = {"median_ms": 2.0, "p20_ms": 1.9, "p90_ms": 2.1, "n": 50, "ci_percent": 1.5}
    known = Latency.model_validate(earlier)
    assert known == Latency.model_validate(LATENCY | {"p90_ms": None, "p99_ms": None})
    front = [FrontPoint(**point("a", 2.0, None) | {"latency": known})]
    assert "not told / not told" in _table(front)


def test_failed_blocks_are_shown_with_their_reason() -> None:
    page = render(results())
    assert "&lt;odd&gt;" in page
    assert "loss became nan" in page


def test_headline_in_int8_is_of_accuracies_in_int8() -> None:
    """The faster network is as good as the reference in float, and has collapsed in int8."""
    kept, collapsed = (
        {"test_accuracy": each, "test_low": each, "test_high": each} for each in (0.94, 0.6)
    )
    own = {"test_accuracy": 0.95, "test_low": 0.94, "test_high": 0.96}
    points = [
        {"id": "fast", "latency": {"median_ms": 1.0}, **own, "int8": collapsed},
        {"id": "slow", "latency": {"median_ms": 2.0}, **own, "int8": kept},
        {"id": "not finetuned", "latency": {"median_ms": 0.1}, **dict.fromkeys(own), "int8": None},
    ]
    reference = {**own, "int8": {**own, "test_accuracy": 0.93}}
    for precision, best in (("fp32", "fast"), ("int8", "slow")):
        found = _headline(precision, points, reference, 3.0)
        assert found["fastest_as_accurate"]["id"] == best
