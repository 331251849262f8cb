"""What timm loads of an exported folder: the weights of the one that is named."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch

from device_farm import Workload
from donna_ray.export.step import export_network
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import UNSHRUNK
from tests.unit.export.made import INVERTED, NAMES, Finished


def check_arguments(folder: Path) -> None:
    """What the network cannot follow is refused; what is its own is taken."""
    own = {"num_classes": 10, "in_chans": 1, "features_only": False, "drop_rate": 0.0}
    timm.create_model(f"local-dir:{folder}", pretrained=True, **own)
    others = {"num_classes": 0, "in_chans": 3, "features_only": True, "drop_path_rate": 0.1}
    for name, value in {**others, "pretrained_cfg_overlay": {"num_classes": 5}}.items():
        words = f"{name} must be {own.get(name, 'left out')}, .* but is .*network.head"
        with pytest.raises(ValueError, match=words):
            timm.create_model(f"local-dir:{folder}", **{name: value})


def known_to_timm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import the Python file of a folder."""
    spec = importlib.util.spec_from_file_location(folder.parent.name, folder / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, folder.parent.name, module)
    spec.loader.exec_module(module)


@torch.no_grad()
def check_weights_of(named: str, network: StagedNetwork, **more: str) -> torch.nn.Module:
    """That timm gives a network the weights of the folder that is named."""
    made = timm.create_model(named, pretrained=True, **more).eval()
    images = torch.randn(2, *network.input_shape)
    torch.testing.assert_close(made(images), network(images), atol=1e-4, rtol=1e-4)
    return made


@pytest.mark.usefixtures("in_process")
def test_weights_are_of_the_folder_that_timm_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two runs that found the same blocks, of what was trained further, and of a hub."""
    runs = []
    for name, epochs in (("one", 0), ("two", 1)):
        (tmp_path / name).mkdir()
        runs.append(Finished(tmp_path / name, [INVERTED] * 3, epochs=epochs))
        export_network(tmp_path / name, runs[-1].id, tmp_path / name / "out")
        known_to_timm(tmp_path / name / "out", monkeypatch)
    for run in runs:
        made = check_weights_of(f"local-dir:{run.root / 'out'}", run.network)
    further = runs[1].network
    for network in (made, further):
        torch.nn.init.constant_([*network.parameters()][-1], 0.5)
    commit = tmp_path / "cache" / "models--me--found" / "snapshots" / ("0" * 40)
    for form in (True, False):
        timm.models.save_for_hf(made, str(tmp_path / str(form)), safe_serialization=form)
        check_weights_of(f"local-dir:{tmp_path / str(form)}", further)
    shutil.copytree(tmp_path / "True", commit)
    check_weights_of(f"hf-hub:me/found@{'0' * 40}", further, cache_dir=str(tmp_path / "cache"))
    name = json.loads((tmp_path / "one" / "out" / "config.json").read_text())["architecture"]
    alone = check_weights_of(name, runs[0].network)
    timm.models.save_for_hf(alone, str(tmp_path / "alone"))
    check_weights_of(f"local-dir:{tmp_path / 'alone'}", runs[0].network)
    (tmp_path / "True" / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="No suitable checkpoints"):
        timm.create_model(f"local-dir:{tmp_path / 'True'}", pretrained=True)


@pytest.mark.usefixtures("in_process")
def test_timm_loads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of blocks under a name that its Python file makes known; timm's own without."""
    for name, specs in (("own", [INVERTED] * 3), ("timms", [UNSHRUNK] * 6)):
        root = tmp_path / name
        root.mkdir()
        model = {"reference": {"model": "mobilenetv3_small_050"}} if name == "timms" else {}
        data = {"data": {"source": str(tmp_path), "image_size": 32}} if name == "timms" else {}
        run = Finished(root, specs, **model, **data)
        export_network(root, run.id, root / "out")
        if name == "own":
            known_to_timm(root / "out", monkeypatch)
            check_arguments(root / "out")
        network = timm.create_model(f"local-dir:{root / 'out'}", pretrained=True).eval()
        images = torch.randn(2, *run.network.input_shape)
        with torch.no_grad():
            torch.testing.assert_close(network(images), run.network(images), atol=1e-4, rtol=0)
            module_of_farm = Workload.from_folder(root / "out").make_module()
            torch.testing.assert_close(module_of_farm(images), network(images), atol=1e-4, rtol=0)
        config = json.loads((root / "out" / "config.json").read_text())
        assert (config["num_classes"], config["label_names"]) == (10, NAMES)
        resolved = timm.data.resolve_data_config({}, model=network)
        assert list(resolved["input_size"]) == list(run.network.input_shape)
        assert list(resolved["mean"]) == config["pretrained_cfg"]["mean"]
        text = (root / "out" / "README.md").read_text()
        assert ("import network " in text) == (name == "own")
        assert "75.00% (95%: 50.00% to 87.50%)" in text
