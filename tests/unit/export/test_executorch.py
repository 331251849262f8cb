"""`donna export --pte`: what ExecuTorch's runtime gives, against torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from donna_ray.errors import ConfigError, DonnaError
from donna_ray.export import executorch
from donna_ray.export.step import export_network
from tests.unit.export.made import INVERTED, Finished

needs_executorch = pytest.mark.skipif(
    find_spec("executorch") is None, reason="needs the extra executorch: pip install executorch"
)


@needs_executorch
@pytest.mark.usefixtures("in_process")
def test_the_file_answers_as_torch_does(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run = Finished(tmp_path / "run", [INVERTED] * 3)
    export_network(run.root, run.id, tmp_path / "net", also=["model.pte"])
    from executorch.runtime import Runtime

    program = Runtime.get().load_program((tmp_path / "net/model.pte").read_bytes())
    image = torch.randn(1, *run.network.input_shape)
    [found] = program.load_method("forward").execute([image])
    torch.testing.assert_close(found, run.network(image).detach(), atol=1e-4, rtol=1e-4)
    assert "`forward` of `model.pte`" in (tmp_path / "net/README.md").read_text()


@needs_executorch
def test_another_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executorch, "deployed", lambda net: torch.nn.Sequential(net, net))
    with pytest.raises(DonnaError, match="must give torch's logits"):
        executorch.executorch_floats(torch.nn.Linear(4, 4), torch.ones(2, 4))


def test_a_host_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executorch, "find_spec", lambda name: None)
    with pytest.raises(DonnaError, match=r"donna-ray\[executorch\]"):
        executorch.executorch_floats(torch.nn.Linear(4, 4), torch.ones(2, 4))


def test_a_file_that_there_is_not_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.tflite"):
        export_network(tmp_path, "abc", tmp_path, also=["model.mlpackage"])
