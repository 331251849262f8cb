"""A run that measures on a farm which others serve."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from device_farm import DeviceSpec, Farm, FarmConfig
from donna_ray.config import DeviceConfig, RunConfig
from donna_ray.latency.starting import start_farm
from donna_ray.pipeline import run_steps
from donna_ray.run.run import Run
from tests.command_line import donna_here

MODEL = "board (simulated)"


@pytest.fixture
def farm(one_ray: None, tmp_path: Path) -> Iterator[Farm]:
    spec = DeviceSpec(name="sim", connector="simulated", settings={"noise_percent": 0})
    farm = Farm.serve(FarmConfig(cache=tmp_path / "cache.sqlite", devices=(spec,)), "shelf")
    yield farm
    farm.close()


def test_a_device_is_waited_for_and_shared(farm: Farm, tmp_path: Path) -> None:
    """Its model is not known before it was probed, and that takes its process a second."""
    said: list[str] = []
    latency = start_farm(DeviceConfig(farm="shelf", name=MODEL), tmp_path / "none", said.append)
    assert said
    assert all("waiting for a device 'board (simulated)'" in each for each in said)
    latency.close()
    while (states := [row["state"] for row in farm.status()]) == ["new"]:
        time.sleep(0.1)  # its baseline is taken
    assert states == ["ready"]


@pytest.mark.soak
def test_a_run_measures_on_a_served_farm_and_begins_while_networks_are_trained(
    farm: Farm, copy_of_finished: Path
) -> None:
    settings = yaml.safe_load((copy_of_finished / "config.yaml").read_text())
    settings["device"] = {"farm": "shelf", "name": MODEL}
    settings["predictor"] |= {"samples": 7, "epochs": 6}  # other networks than there are
    config = RunConfig.model_validate(settings)
    while not [row for row in farm.status() if row["model"] == MODEL]:
        time.sleep(0.1)
    with Run(config, copy_of_finished) as run:
        run_steps(run, "predictor")
        ahead = farm.status()[0]["done"]
        assert ahead >= 5  # the design: a quarter of 20 evaluations
        found = run_steps(run, "search").result["scenarios"]["default"]
    assert found["reference_latency"]["simulated"]
    [row] = farm.status()
    assert (row["state"], row["done"]) == ("ready", row["leases"])
    others = found["candidates"] - 5 + found["verified"]["measurements"]
    assert row["done"] <= ahead + others + 2  # and the reference, the control


def test_a_farm_that_is_not_served_is_told(one_ray: None, copy_of_finished: Path) -> None:
    settings = yaml.safe_load((copy_of_finished / "config.yaml").read_text())
    file = copy_of_finished / "served.yaml"
    file.write_text(json.dumps({**settings, "device": {"farm": "nowhere", "name": "phone"}}))
    completed = donna_here("run", str(file), f"--out={copy_of_finished}")
    assert completed.returncode == 1
    assert "must be a farm 'nowhere' on this Ray cluster" in completed.stderr


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ({"farm": "shelf"}, "both `farm` and `name`"),
        ({"name": "phone"}, "both `farm` and `name`"),
        ({"farm": "shelf", "name": "phone", "settings": {"threads": 2}}, "farm.yaml"),
    ],
)
def test_half_named_devices_are_refused(device: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DeviceConfig.model_validate(device)
