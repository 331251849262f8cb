"""results.json: its schema, its reader, and what is worked out for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import donna_ray
from donna_ray.report.results import Results, schema
from donna_ray.report.scenario import Spec
from donna_ray.report.step import _regret
from donna_ray.storage.artifacts import write_json
from tests.unit.report.made import results

DOCS = Path(__file__).parents[3] / "docs"


def test_schema_in_the_documents_is_that_of_the_code() -> None:
    written = (DOCS / "results.schema.json").read_text()
    assert written == schema(), "run `python scripts/results_schema.py`"


def test_results_read_as_written_from_file_and_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", results().model_dump(mode="json"))
    found = donna_ray.read_results(tmp_path)
    assert found == results() == donna_ray.read_results(str(tmp_path / "results.json"))
    assert str(found.scenarios[0].front[1].blocks[0]) == (
        "plain(activation=silu, depth=1, expansion=2, kernel=5, se=no)"
    )
    assert found.scenarios[0].front[1].blocks[0].options["se"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"must be there and be JSON, but .*results\.json"),
        ("[", "must be there and be JSON"),
        ({"version": 4}, "must be of version 5, but .* is of 4. `donna report build RUN` writes"),
        ({"version": 6}, "is of 6"),
        ({"more": 1}, "must keep its schema, but .*\n.*more"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    if isinstance(change, str):
        (tmp_path / "results.json").write_text(change)
    elif change is not None:
        value = results().model_dump(mode="json") | change
        (tmp_path / "results.json").write_text(json.dumps(value))
    with pytest.raises(donna_ray.DonnaError, match=message):
        donna_ray.read_results(tmp_path)


def test_stages_of_a_transformer_have_tokens_and_channels() -> None:
    values = results().model_dump(mode="json")
    values["library"]["stages"][0] |= {"input": [197, 192], "output": [197, 192]}
    library = Results.model_validate_json(json.dumps(values)).library
    assert library is not None
    assert (library.stages[0].input, library.stages[0].output) == ((197, 192), (197, 192))


def test_options_keep_their_kinds() -> None:
    options = {"se": True, "kernel": 1, "width": 0.5, "activation": "relu"}
    found = Spec.model_validate_json(json.dumps({"family": "f", "options": options}))
    assert [type(each) for each in found.options.values()] == [bool, int, float, str]


def test_regret_is_what_the_first_of_an_order_falls_short_of_the_best() -> None:
    columns = {
        "accuracy": (0.5, 0.75, 0.875),
        "predicted": (0.5, 0.75, 0.625),
        "nsr": ([0.5, 0.5], [0.25, 0.5], [0.125, 0.25]),
        "zero_shot_accuracy": (0.9, 0.1, 0.2),
        "params": (1, 3, 2),
        "macs": (1, 2, 3),
    }
    samples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert _regret(samples) == {
        "predictor": 0.125,
        "nsr_sum": 0.0,
        "zero_shot_accuracy": 0.375,
        "params": 0.125,
        "macs": 0.0,
    }
