"""`donna export`: the files give the network's logits, the Python file without this package."""

from __future__ import annotations

import ast
import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from donna_ray.cli.main import app
from donna_ray.cli.tables import print_evaluation
from donna_ray.config import load_config
from donna_ray.data import load_data, load_test
from donna_ray.errors import DonnaError
from donna_ray.export.choice import choose
from donna_ray.export.exported import read_export
from donna_ray.export.step import export_network
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import UNSHRUNK, BlockSpec, block_family
from donna_ray.storage.artifacts import StepFolder, file_sha256
from donna_ray.training.loop import right_answers
from tests.command_line import donna_here
from tests.unit.export.made import INVERTED, LATENCY, NAMES, SETTINGS, TEST, Finished, loaded

BASIC = BlockSpec.of(
    "residual_basic",
    {"kernel": 3, "ratio": 0.5, "depth": 1, "activation": "relu", "squeeze_excite": True},
)
SMALLER = BlockSpec.of("reference_stage", {"cropped": 2, "dropped": 1, "width": 0.5})
POOLING, ATTENTION = (
    BlockSpec.of("transformer", {"depth": 1, "heads": 1, "mlp_ratio": 1, "mixer": mixer})
    for mixer in ("pooling", "attention")
)
OWN = """
    import torch
    from torch import nn
    from torch.nn.utils.parametrizations import weight_norm
    from donna_ray.space import register_block as block
    from donna_ray.space.blocks.common import activation_layer, check_one_of

    _SQUEEZE_RATIO = 3  # as another module has it, too
    SCALES = {}
    SCALES["two"] = 2.0
    BIAS = True

    class Scaled(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.scale = SCALES[name] * _SQUEEZE_RATIO

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * x

        def fuse(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return one + other  # another one than timm's

    @block(
        "NAME", ("kernel",), allowed=lambda kernel: kernel % 2 == 1
    )
    def own(in_channels, out_channels, stride, *, kernel):
        check_one_of("kernel", kernel, (1, 3))
        convolution = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, bias=BIAS
        )
        return nn.Sequential(weight_norm(convolution), activation_layer("silu")(), Scaled("two"))
"""


def own_family(path: Path, name: str) -> str:
    """A file that registers the family under a name; in a process that name has one file."""
    path.write_text(textwrap.dedent(OWN).replace("NAME", name))
    return str(path)


@torch.no_grad()
def check(folder: Path, network: StagedNetwork, sizes: tuple[int, ...]) -> None:
    images = torch.randn(3, *network.input_shape, generator=torch.Generator().manual_seed(5))
    logits = network(images)
    torch.testing.assert_close(loaded(folder)(images), logits, atol=1e-4, rtol=0)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == NAMES
    for size in sizes:
        batches = [batch.numpy() for batch in images.split(size)]
        outputs = [session.run(None, {"input": batch})[0] for batch in batches]
        np.testing.assert_allclose(np.concatenate(outputs), logits.numpy(), atol=1e-4)
    tree = ast.parse((folder / "network.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    roots = {str(name).partition(".")[0] for name in imported}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "timm", "safetensors"}


def test_own_reference_and_own_family(tmp_path: Path) -> None:
    """By the command line, with the beginning of an id; the Python file in its own process."""
    own = BlockSpec.of("exported_own", {"kernel": 3})
    module = own_family(tmp_path / "own.py", "exported_own")
    space = {"preset": "micro", "modules": [module]}
    run = Finished(tmp_path, [INVERTED, own, BASIC], space=space)
    to = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(tmp_path), "abc", "--to", str(to), "--trust"])
    assert done.exit_code == 0, done.exception
    check(to, run.network, (1,))
    card = json.loads((to / "card.json").read_text())
    assert (card["architecture"], card["accuracy"]) == (run.id, 0.5)
    assert card["latency"] == [LATENCY]
    assert {name: card[name] for name in TEST} == TEST
    assert card["reference"]["test_from"] == "data.test_fraction 0.5"
    names = ("model.safetensors", "model.onnx", "network.py", "config.json", "README.md")
    assert card["files"] == {name: file_sha256(to / name) for name in names}


@pytest.mark.usefixtures("in_process")
def test_files_are_there_though_the_python_file_cannot_be(tmp_path: Path) -> None:
    """Of a family that imports a module; the Python file of an earlier export is another's."""
    text = textwrap.dedent(OWN).replace("NAME", "uncopied_own")
    text = text.replace("check_one_of(", "common.check_one_of(")
    (tmp_path / "own.py").write_text(f"from donna_ray.space.blocks import common\n{text}")
    to, space = tmp_path / "out", {"preset": "micro", "modules": [str(tmp_path / "own.py")]}
    for name, block in (("before", INVERTED), ("run", BlockSpec.of("uncopied_own", {"kernel": 3}))):
        (tmp_path / name).mkdir()
        run = Finished(tmp_path / name, [block] * 3, space=space)
        if name == "before":
            export_network(run.root, "abc", to)
    with pytest.raises(DonnaError, match=rf"{to} has all files .* but network.py. .*imports the"):
        export_network(run.root, "abc", to)
    names = ("model.safetensors", "model.onnx", "config.json", "README.md")
    assert sorted(each.name for each in to.iterdir()) == sorted((*names, "card.json"))
    card = json.loads((to / "card.json").read_text())
    assert card["files"] == {name: file_sha256(to / name) for name in names}
    assert "network.py" not in (to / "README.md").read_text()
    assert read_export(to).card.architecture == run.id


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("given", "stated"), [("last", "last"), (None, "test")])
def test_card_names_the_split_of_the_test(tmp_path: Path, given: str | None, stated: str) -> None:
    """Which no key of a reference has; without it `donna evaluate` would take other images."""
    data = {"source": str(tmp_path), "test_split": given}
    for name in ("train", "validation", "test", "last"):
        (tmp_path / name / "cat").mkdir(parents=True)
    Finished(tmp_path, [INVERTED] * 3, data=data)
    export_network(tmp_path, "abc", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["data"]["test_split"] == stated


@pytest.mark.parametrize(
    ("model", "size", "specs"),
    [
        ("mobilenetv3_small_050", 32, [INVERTED, BASIC] * 3),
        ("vit_tiny_patch16_224", 64, [POOLING, ATTENTION] * 2),
        ("mobilenetv3_small_050", 32, [UNSHRUNK, *[SMALLER] * 4, UNSHRUNK]),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_timm_reference(model: str, size: int, specs: list[BlockSpec], tmp_path: Path) -> None:
    """A stem of modules and one of traced code; ONNX for any number of images."""
    data = {"source": str(tmp_path), "image_size": size}
    run = Finished(tmp_path, specs, reference={"model": model}, data=data)
    to = tmp_path / "out"
    export_network(tmp_path, run.id, to, dynamic_batch=True)
    check(to, run.network, (1, 3))


@pytest.mark.parametrize("name", ["network.py", "card.json", "README.md", "model.safetensors"])
@pytest.mark.parametrize("card", [None, "[]", '{"files": {}}', '{"files": {"network.py": "0"}}'])
def test_files_of_others_are_not_written_over(tmp_path: Path, name: str, card: str | None) -> None:
    if card is not None:
        (tmp_path / "card.json").write_text(card)
    (tmp_path / name).write_text("mine")
    with pytest.raises(DonnaError, match=r"must not write over .*Give another --to"):
        export_network(tmp_path / "run", "abc", tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_unknown_id_names_those_that_there_are(tmp_path: Path) -> None:
    run = Finished(tmp_path, [INVERTED] * 3)
    for word in ("zzz", ""):
        with pytest.raises(DonnaError, match=run.id):
            export_network(tmp_path, word, tmp_path / "out")
    for word in ("012f", "3-0-17"):  # maybe of the space, but not finetuned
        with pytest.raises(DonnaError, match=f"finetune it: `donna finetune {tmp_path} {word}`"):
            export_network(tmp_path, word, tmp_path / "out")
    with pytest.raises(DonnaError, match="missing, torn or altered"):
        export_network(tmp_path, "0123", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_process")
def test_weights_of_results_and_latency_of_their_search(tmp_path: Path) -> None:
    """A newer finetuning of other settings, which results.json does not name."""
    run = Finished(tmp_path, [INVERTED] * 3)
    run.finetuned(LATENCY | {"device": "phone"}, {run.id: {"key": "newer"}})
    with pytest.raises(DonnaError, match="key, newer"):
        export_network(tmp_path, run.id, tmp_path / "out")
    point = {"id": run.id, "weights": "networks/key.safetensors", "latency": {"median_ms": 1}}
    (tmp_path / "results.json").write_text(json.dumps({"scenarios": [{"front": [point]}]}))
    export_network(tmp_path, run.id, tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["digests"]["network"], card["latency"]) == ("key", [LATENCY])
    assert card["class_names"] == NAMES


PHONE = LATENCY | {"device": "phone", "connector": "adb", "median_ms": 9}
THREADS = LATENCY | {"settings": SETTINGS | {"threads": 4}, "median_ms": 0.4}
SERVED: dict[str, dict[str, Any]] = {"cpu": LATENCY, "phone": PHONE, "threads": THREADS}


@pytest.mark.parametrize("told", [True, False])
def test_latencies_are_of_every_device_with_each_settings(tmp_path: Path, told: bool) -> None:
    """Of the fronts in fp32 that it is on; of a device that was measured twice, the newer one."""
    old = {"old": LATENCY | {"median_ms": 3}}
    for number, scenarios in enumerate((old, {**SERVED, "int8": LATENCY | {"settings": {}}})):
        digests = {}
        for name, latency in scenarios.items():
            inputs = {"device": {"precision": "int8" if name == "int8" else "fp32"}, "n": number}
            front = {"front": [{"id": "3f9c", "latency": latency}]}
            digests[name] = StepFolder(tmp_path, f"search/{name}", inputs).commit(front, [], 0.0)
        made = {"networks": {"3f9c": {"key": "k"}}, "asked": {}}
        inputs = {"searches": {name: each.digest for name, each in digests.items()}}
        StepFolder(tmp_path, "finetune", inputs).commit(made, [], 0.0)
    point = {"id": "3f9c", "architecture": [0], "weights": "networks/k.safetensors"}
    shown = [
        {"device": {"precision": "fp32"}, "front": [{**point, "latency": latency}]}
        for latency in SERVED.values()
    ]
    if told:
        (tmp_path / "results.json").write_text(json.dumps({"scenarios": shown}))
    name, key, latencies = choose(tmp_path, "3f9c")
    assert (name, key) == ("3f9c", "k")
    expected = {each["median_ms"]: each for each in SERVED.values()}
    assert {each["median_ms"]: each for each in latencies} == expected
    assert len(latencies) == len(expected)


@pytest.mark.usefixtures("in_process")
def test_network_that_was_asked_for(tmp_path: Path) -> None:
    """By the numbers of its blocks; with the latency that the finetuning's step has."""
    run = Finished(tmp_path, [INVERTED] * 3)
    asked = [{"id": run.id, "latency": LATENCY | {"median_ms": 7}}]
    result = {"networks": {run.id: {"key": "key"}}, "asked": {"default": asked}}
    StepFolder(tmp_path, "finetune", {"searches": {}}).commit(result, [], 0.0)
    point = {"id": run.id, "architecture": [3, 0, 17], "weights": "networks/key.safetensors"}
    scenario = {"front": [], "asked": [point | {"latency": {"median_ms": 7}}]}
    (tmp_path / "results.json").write_text(json.dumps({"scenarios": [scenario]}))
    export_network(tmp_path, "3-0-17", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["architecture"], card["latency"]) == (run.id, [LATENCY | {"median_ms": 7}])


def test_changed_family_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that the network is built from gives other logits, then other weights."""
    module = own_family(tmp_path / "own.py", "changed_own")
    space = {"preset": "micro", "modules": [module]}
    Finished(tmp_path, [BlockSpec.of("changed_own", {"kernel": 3})] * 3, space=space)
    code = sys.modules[block_family("changed_own").build.__module__]
    with monkeypatch.context() as changed:
        changed.setitem(code.SCALES, "two", 2.5)
        with pytest.raises(DonnaError, match=r"has changed .*its logits differ"):
            export_network(tmp_path, "abc", tmp_path / "out")
    monkeypatch.setattr(code, "BIAS", False)
    with pytest.raises(DonnaError, match=r"has changed .*its weights do not fit"):
        export_network(tmp_path, "abc", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_process")
def test_checkpoint_that_is_gone(tmp_path: Path) -> None:
    """In a folder whose name looks like a chained URL, too."""
    root = tmp_path / "a::b"
    root.mkdir()
    run = Finished(root, [INVERTED] * 3)
    config = yaml.safe_load((root / "config.yaml").read_text())
    config["reference"]["weights"] = str(tmp_path / "gone.safetensors")
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    files = export_network(root, run.id, tmp_path / "out")
    assert all(file.is_file() for file in files)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("specs", [[INVERTED] * 4, [UNSHRUNK] * 4])
def test_model_is_what_its_weights_were_trained_with(
    tmp_path: Path, specs: list[BlockSpec]
) -> None:
    """After the file that says so is gone, too; the Python file gives the same logits."""
    own = {"act_layer": "gelu", "global_pool": "max"}
    trained = timm.create_model("test_resnet", num_classes=10, **own)
    timm.models.save_for_hf(trained, str(tmp_path / "hub"), safe_serialization=True)
    weights = str(tmp_path / "hub" / "model.safetensors")
    data = {"source": str(tmp_path), "image_size": 32}
    run = Finished(
        tmp_path, specs, reference={"model": "test_resnet", "weights": weights}, data=data
    )
    shutil.rmtree(tmp_path / "hub")
    export_network(tmp_path, run.id, tmp_path / "out")
    source = (tmp_path / "out" / "network.py").read_text()
    assert "'test_resnet', act_layer='gelu', global_pool='max'" in source.replace('"', "'")


@pytest.mark.usefixtures("in_process")
def test_card_is_executed_as_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digits as image files, prepared by config.json alone, get the accuracy of the pipeline.

    Of a trained network with one channel; another mean would cost it most of that.
    """
    from sklearn.datasets import load_digits

    run = Finished(tmp_path, [INVERTED] * 3, epochs=3)
    export_network(tmp_path, run.id, tmp_path / "out")
    config = load_config(tmp_path / "config.yaml")
    data, test = (load(config.data, run.preprocessing) for load in (load_data, load_test))
    right = [right_answers(run.network, each)[0] for each in (data.train, data.validation, test)]
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = tmp_path / "digits" / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        grey = np.rint(pixels * 255 / 16).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"{number}.png")
    net, found = str(tmp_path / "out"), []
    other = (net, "--data", str(tmp_path / "digits"), "--device", "simulated", "--sustained", "9")
    for words in ((net,), other):
        done = donna_here("evaluate", *words, "--json")
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    alone, executed = (each["accuracy"] for each in found)
    assert (alone["right"], alone["images"]) == (right[2], len(test))
    assert executed["images"] == len(digits.target)
    assert right[0] > 0.8 * len(data.train)
    assert abs(executed["right"] - sum(right)) < 0.005 * len(digits.target)
    assert found[0]["latency"]["median_ms"] > 0
    assert found[0]["latency"]["settings"].items() >= SETTINGS.items()
    assert found[0]["stated"] == {"test_accuracy": 0.75, "latency": [LATENCY]}
    assert (found[0]["sustained"], found[1]["sustained"]["throttles"]) == (None, False)
    assert 9 <= found[1]["sustained"]["seconds"] < 10
    for each in found:
        print_evaluation(each)
    printed = capsys.readouterr().out
    assert "the card states 75.00%" in printed
    assert "sustained: does not throttle: the last" in printed
    refused = donna_here("evaluate", net, "--data", str(tmp_path / "networks"))
    assert (refused.returncode, "networks" in refused.stderr) == (2, True)
    refused = donna_here("evaluate", str(tmp_path))
    assert (refused.returncode, "donna export" in refused.stderr) == (2, True)


@pytest.mark.parametrize("data", ["", " "])
def test_images_without_a_name_are_not_the_working_directory(data: str, tmp_path: Path) -> None:
    refused = donna_here("evaluate", str(tmp_path), "--data", data)
    assert (refused.returncode, "--data must name images" in refused.stderr) == (2, True)
