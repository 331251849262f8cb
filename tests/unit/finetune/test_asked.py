"""Networks that are asked for: measured once, and there in later runs of the folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from donna_ray.config import RunConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.finetune import asked
from donna_ray.finetune.assemble import block_keys
from donna_ray.finetune.step import finetune_step, jobs_of, network_store, opponent
from donna_ray.finetune.work import identity_of
from donna_ray.latency.farm import Unmeasured
from donna_ray.run.run import Run
from donna_ray.space import SearchSpace
from donna_ray.storage.artifacts import finished_inputs
from tests.unit.finetune.made import LATENCY, finetuned, steps_before

FRONT, KNOWN, NEW = (0, 0, 0), (1, 2, 3), (3, 2, 1)


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> Run:
    settings = config.finetune.model_copy(update={"precision": "fp32"})
    return Run(config.model_copy(update={"finetune": settings}), tmp_path)


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch, run: Run) -> Mock:
    """What a device says of a network that no search measured."""
    farm = Mock(**{"settle.return_value": [LATENCY | {"median_ms": 3.0}]})
    monkeypatch.setattr(run, "connect", Mock())
    monkeypatch.setattr(asked, "load_reference", Mock(return_value=(None, {})))
    monkeypatch.setattr(asked, "lowering_in", Mock())
    monkeypatch.setattr(asked, "in_shifts", Mock(return_value=[["default"]]))
    monkeypatch.setattr(asked, "start_farms", Mock(return_value=({"default": farm}, {})))
    return farm


def ids_of(result: dict[str, Any]) -> dict[str, float]:
    return {each["id"]: each["latency"]["median_ms"] for each in result["asked"]["default"]}


def test_asked_for_is_measured_once_and_not_lost(
    run: Run, farm: Mock, space: SearchSpace, tmp_path: Path
) -> None:
    known, new = space.id_of(KNOWN), space.id_of(NEW)
    with run:
        made = steps_before(tmp_path, space, FRONT, KNOWN)
        finetuned(run, made, space, FRONT, KNOWN, NEW)
        plain = finetune_step(run, *made)
        assert plain.result["asked"] == {}
        wanted = finetune_step(run, *made, [known[:12], "3-2-1"])
        assert ids_of(wanted.result) == {known: 2.0, new: 3.0}
        assert wanted.result["networks"].keys() == {space.id_of(FRONT), known, new}
        assert farm.submit.call_count == farm.close.call_count == 1
        assert finetune_step(run, *made) == wanted  # by a configuration that names none
        named = run.config.finetune.model_copy(update={"architectures": ["0-0-1"]})
        run.config = run.config.model_copy(update={"finetune": named})
        finetuned(run, made, space, (0, 0, 1))
        more = finetune_step(run, *made)
        assert ids_of(more.result).keys() == {known, new, space.id_of((0, 0, 1))}


def test_opponent_trains_on_the_same_images(run: Run, space: SearchSpace, tmp_path: Path) -> None:
    """Those of networks are in the keys of their blocks."""
    reference, _, _ = steps_before(tmp_path, space, FRONT)
    before = opponent(run, reference).key
    data = run.config.data.model_copy(update={"augmentation": None})
    other = Run(run.config.model_copy(update={"data": data}), tmp_path)
    assert opponent(run, reference).key == before != opponent(other, reference).key


def test_network_that_diverged_is_known_and_left_out(
    run: Run, farm: Mock, space: SearchSpace, tmp_path: Path
) -> None:
    """That of the front alone would leave nothing to compare with the reference."""
    with run:
        made = steps_before(tmp_path, space, FRONT, KNOWN)
        finetuned(run, made, space, FRONT, KNOWN)
        keys, recipe = block_keys(made[1]), run.config.finetune
        front, lost = jobs_of(run, made[0], keys, space, [FRONT, KNOWN], recipe)
        store = network_store(run)
        store.put_failed(lost.key, "its loss became nan", identity_of(lost))
        result = finetune_step(run, *made, [lost.architecture_id[:12]]).result
        assert result["networks"].keys() == {front.architecture_id}
        assert ids_of(result) == {lost.architecture_id: 2.0}
        store.put_failed(front.key, "its loss became nan", identity_of(front))
        with pytest.raises(
            DonnaError, match=r"2 of 2 could not be .* Lower finetune\.learning_rate"
        ):
            finetune_step(run, *made)


def test_asked_for_and_no_longer_in_the_space(
    run: Run, farm: Mock, space: SearchSpace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the choices have other numbers, too."""
    last = replace(space.stages[2], choices=space.stages[2].choices[:3:-1])
    fewer = SearchSpace((*space.stages[:2], last))
    kept = (1, 2, 0)
    with run:
        made = steps_before(tmp_path, space, FRONT, KNOWN)
        finetuned(run, made, space, FRONT, KNOWN, (1, 2, 31))
        finetune_step(run, *made, ["1-2-3", "1-2-31"])
        made = steps_before(tmp_path, fewer, FRONT, kept)
        finetuned(run, made, fewer, FRONT, kept)
        result = finetune_step(run, *made).result
    assert list(ids_of(result)) == [space.id_of((1, 2, 31))] == [fewer.id_of(kept)]
    said = " ".join(capsys.readouterr().err.split())
    assert f"not in the space any more: {'; '.join(map(str, space.specs(KNOWN)))}" in said


def test_failure_leaves_nothing_asked_for(
    run: Run, farm: Mock, space: SearchSpace, tmp_path: Path
) -> None:
    farm.settle.return_value = [Unmeasured("DeviceLost: unplugged", of_model=False)]
    with run:
        made = steps_before(tmp_path, space, FRONT, KNOWN)
        finetuned(run, made, space, FRONT, NEW)
        with pytest.raises(DonnaError, match=rf"{space.id_of(NEW)} cannot be: DeviceLost: unplug"):
            finetune_step(run, *made, ["3-2-1"])
        with pytest.raises(ConfigError, match="0-0-99"):
            finetune_step(run, *made, ["0-0-99"])
        assert finetune_step(run, *made).result["asked"] == {}
    assert [each for each in finished_inputs(tmp_path, "finetune") if "asked" in each] == []
    assert farm.close.call_count == 1


@pytest.mark.parametrize("is_out", [False, True])
def test_asked_for_earlier_and_not_to_be_measured_now(
    run: Run,
    farm: Mock,
    space: SearchSpace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_out: bool,
) -> None:
    """It ends no run that does not name it, and is measured as soon as one does."""
    new, known = space.id_of(NEW), space.id_of(KNOWN)
    with run:
        made = steps_before(tmp_path, space, FRONT, KNOWN)
        finetuned(run, made, space, FRONT, KNOWN, NEW)
        finetune_step(run, *made, ["3-2-1"])
        search = made[2]
        search.result["digests"] = {"default": "of another device"}
        farm.settle.return_value = [Unmeasured("no operator", of_model=True)]
        if is_out:
            start = Mock(return_value=({}, {"default": DonnaError("no operator")}))
            monkeypatch.setattr(asked, "start_farms", start)
        without = finetune_step(run, *made, ["1-2-3"])
        assert ids_of(without.result).keys() == {known}
        said = " ".join(capsys.readouterr().err.split())
        assert f"{new}, which an earlier run was asked for, is left out" in said
        with pytest.raises(DonnaError, match=rf"for 'default' {new} cannot be: no operator"):
            finetune_step(run, *made, ["3-2-1"])
        assert finetune_step(run, *made) == without
        farm.settle.return_value = [LATENCY | {"median_ms": 5.0}]
        monkeypatch.setattr(asked, "start_farms", Mock(return_value=({"default": farm}, {})))
        assert finetune_step(run, *made) == without
        whole = finetune_step(run, *made, ["3-2-1"])
        assert ids_of(whole.result) == {known: 2.0, new: 5.0}
        assert finetune_step(run, *made) == whole
