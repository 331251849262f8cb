"""farm.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from device_farm import load_farm_config
from device_farm.connectors.adb.connector import AdbConnector

YAML = """
cache: measurements.sqlite
devices:
  - {name: sim, connector: simulated}
  - {name: pixel, connector: adb, settings: {address: "10.0.0.7:5555", runner: ort}}
hosts:
  - {connector: adb, nodes: "phones-*", places: [usb], settings: {runner: ort}}
runners:
  ort: {kind: onnxruntime_perf_test, binary: PROGRAM, provider: xnnpack}
limits: {delay_s: 5, max_drift_percent: 3}
"""


def test_runners_are_named_once(tmp_path: Path) -> None:
    path = tmp_path / "farm.yaml"
    path.write_text(YAML.replace("PROGRAM", __file__))
    config = load_farm_config(path)
    assert config.devices[1].settings["runner"] == config.hosts[0].settings["runner"]
    assert config.devices[1].settings["runner"]["provider"] == "xnnpack"
    assert (config.limits.delay_s, config.limits.max_drift_percent) == (5, 3)
    assert config.limits.max_retries == 1


def test_what_the_nodes_have_is_not_asked_of_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the program that measures, nor what a connector needs to look for devices."""

    def discover(places: Sequence[str]) -> dict[str, dict[str, Any]]:
        raise OSError("no USB")

    monkeypatch.setattr(AdbConnector, "discover", discover)
    path = tmp_path / "farm.yaml"
    path.write_text(YAML.replace("PROGRAM", "/on/the/nodes/only"))
    assert load_farm_config(path).hosts[0].settings["runner"]["binary"] == "/on/the/nodes/only"


def test_home_is_that_of_who_has_the_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "farm.yaml"
    path.write_text(YAML.replace("PROGRAM", "~/perf_test"))
    given = load_farm_config(path).hosts[0].settings
    assert given["runner"]["binary"] == "~/perf_test"
    monkeypatch.setenv("HOME", "/home/phones")
    settings = AdbConnector("pixel", {"address": "usb:1", "key": "~/adbkey", **given}).settings
    assert settings.runner is not None
    assert str(settings.runner.binary) == "/home/phones/perf_test"
    assert str(settings.key) == "/home/phones/adbkey"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((__file__, "build/perf"), "binary: .*must be an absolute path .* is 'build/perf'"),
        ((__file__, "/perf, libraries: [a.so]"), "libraries.*must be an absolute path .* 'a.so'"),
        (('555", ', '555", key: adbkey, '), "key: .*must be an absolute path .* is 'adbkey'"),
        (("limits:", "limit:"), "limit: Extra inputs"),
        (("delay_s", "delay"), "limits.delay: "),
        (("delay_s: 5", "delay_s: soon"), "limits.delay_s: .*'soon'"),
        (("runner: ort}}\nhosts", "runner: orb}}\nhosts"), "one of runners .ort., but got 'orb'"),
        (("connector: simulated", "connector: abacus"), "one of adb"),
        (("name: pixel", "name: sim"), "devices.1: .* must differ, but sim is there twice"),
        (("kind: onnxruntime_perf_test", "kind: abacus"), "'pixel': runner"),
        (("- {connector: adb, nodes", "- {connector: abacus, nodes"), "one of adb"),
        (("places: [usb], settings: {", "settings: {threads: few, "), "'adb' devices: threads: "),
        (("cache:", "cache: ["), "must be YAML"),
        (("places: [usb]", "places: [shelf]"), "must be usb, server.*'shelf'"),
        (("delay_s: 5", "delay_s: -1"), "limits.delay_s: .*greater than 0"),
        (("max_drift_percent: 3", "max_drift_percent: -5"), "limits.max_drift_percent: "),
    ],
)
def test_faults_are_told(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "farm.yaml"
    text = YAML.replace("PROGRAM", __file__)
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(ValueError, match=words):
        load_farm_config(path)


def test_a_farm_without_devices_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "farm.yaml"
    path.write_text("")
    with pytest.raises(ValueError, match="must name `devices`"):
        load_farm_config(path)


@pytest.mark.parametrize(
    ("one", "other", "is_refused"),
    [
        ("{connector: onnxruntime}", "{connector: onnxruntime, settings: {threads: 4}}", True),
        ("{connector: cuda, nodes: 'a*'}", "{connector: cuda, nodes: a100}", True),
        ("{connector: cuda, nodes: 'a*'}", "{connector: cuda, nodes: 'b*'}", False),
        (
            "{connector: cuda, settings: {accelerator_type: V100}}",
            "{connector: cuda, settings: {accelerator_type: A100}}",
            False,
        ),
        ("{connector: cuda}", "{connector: onnxruntime}", False),
    ],
)
def test_rules_that_name_one_device_are_refused(
    tmp_path: Path, one: str, other: str, is_refused: bool
) -> None:
    path = tmp_path / "farm.yaml"
    path.write_text(f"hosts: [{one}, {other}]")
    if not is_refused:
        assert len(load_farm_config(path).hosts) == 2
        return
    with pytest.raises(ValueError, match="must not name one device"):
        load_farm_config(path)
