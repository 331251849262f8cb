"""What `donna cluster init` writes, and `clusters/install.sh` with stand-ins for Python and pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config, validate_config

from donna_ray.clusters import write_files

ROOT = Path(__file__).parents[3]
PACKAGES = ("donna_ray", "device_farm")
PYTHON = """#!/bin/sh
mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
printf '#!/bin/sh\\necho "$@" >> ~/calls\\ntest ! -f ~/broken\\n' > "$3/bin/pip"
printf '#!/bin/sh\\nexec %s "$@"\\n' "$REAL" > "$3/bin/python"
chmod +x "$3/bin/pip" "$3/bin/python"
"""


def mounts_of(path: Path) -> dict[str, str]:
    """Of a cluster file, after Ray has accepted it and hashed what it names, as `ray up` does."""
    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    mounts = {name: each for name, each in config["file_mounts"].items() if "token" not in name}
    hash_runtime_conf(mounts, None, config)
    return mounts


@pytest.mark.parametrize("name", ["aws-v100", "gcp", "on-premise"])
def test_written_files_hold_in_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "own"
    list(write_files(to))
    monkeypatch.chdir(tmp_path)
    mounts = mounts_of(to / f"{name}.yaml")
    assert mounts["~/donna-ray/clusters/install.sh"] == str(ROOT / "clusters" / "install.sh")
    assert mounts["~/donna-ray/donna_ray"] == str(ROOT / "donna_ray")
    with pytest.raises(FileNotFoundError):
        mounts_of(ROOT / "clusters" / f"{name}.yaml")  # whose folder is the clone
    monkeypatch.chdir(ROOT)
    mounts_of(ROOT / "clusters" / f"{name}.yaml")


def test_an_installed_package_is_what_its_nodes_get(tmp_path: Path) -> None:
    """Which has neither pyproject.toml nor a folder clusters beside it."""
    site = tmp_path / "site # 1"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, site / name)
    subprocess.run(
        [sys.executable, "-S", "-m", "donna_ray", "cluster", "init", "--to", "mine"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{site}:{sysconfig.get_path('purelib')}"},
        check=True,
        capture_output=True,
    )
    mounts = mounts_of(tmp_path / "mine" / "aws-v100.yaml")
    files = site / "donna_ray" / "clusters" / "files"
    assert {Path(each).parent for each in mounts.values()} == {site, files}


class Node:
    """A home with what `ray up` brings, where Python makes an environment that only notes calls."""

    def __init__(self, folder: Path) -> None:
        self.home = folder
        self.ours = folder / "donna-ray"
        for name in PACKAGES:
            shutil.copytree(ROOT / name, self.ours / name, ignore_dangling_symlinks=True)
        (self.ours / "clusters").mkdir()
        for name in ("install.sh", "requirements.txt"):
            shutil.copy(ROOT / "clusters" / name, self.ours / "clusters")
        (folder / "bin").mkdir()
        (folder / "bin" / "python3.11").write_text(PYTHON)
        (folder / "bin" / "python3.11").chmod(0o755)

    def install(self, *words: str) -> list[str]:
        """What pip is called with.

        Raises:
            CalledProcessError: the script failed.
        """
        (self.home / "calls").write_text("")
        subprocess.run(
            ["bash", str(self.ours / "clusters" / "install.sh"), *words],
            env={
                **os.environ,
                "HOME": str(self.home),
                "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
                "REAL": sys.executable,
            },
            check=True,
        )
        return (self.home / "calls").read_text().splitlines()


OF_CUDA_12 = ["uninstall --yes onnxruntime", "install --no-deps onnxruntime-gpu==1.26.0"]


def test_a_node_with_a_gpu_has_the_runtime_for_it(tmp_path: Path) -> None:
    """PyPI's torch is of CUDA 13; a host of phones needs none."""
    node = Node(tmp_path)
    assert node.install("pypi")[0] == "uninstall --yes onnxruntime-gpu"
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    (tmp_path / "donna" / ".installed").unlink()
    calls = node.install("pypi")
    assert [calls[0], calls[3]] == [OF_CUDA_12[0], OF_CUDA_12[1].replace("1.26.0", "1.31.1")]


def test_a_node_installs_what_has_changed_and_no_more(tmp_path: Path) -> None:
    node = Node(tmp_path)
    other, versions, torch, runtime, more, without = node.install(
        "cu126", "google-api-python-client"
    )
    assert versions == f"install --no-deps -r {tmp_path}/donna/versions.txt"
    assert torch.startswith("install torch==")
    assert torch.endswith(" --index-url https://download.pytorch.org/whl/cu126")
    assert [other, runtime] == OF_CUDA_12
    assert "onnxruntime==" not in (tmp_path / "donna" / "versions.txt").read_text()
    assert (more, without) == ("install google-api-python-client", "uninstall --yes donna-ray")
    assert node.install("cu126", "google-api-python-client") == []

    (node.ours / "donna_ray" / "errors.py").write_text("raise SystemExit('changed')")
    assert node.install("cu126", "google-api-python-client") == []
    path = tmp_path / "donna" / "lib" / "python3.11" / "site-packages" / "donna-ray.pth"
    assert path.read_text().strip() == str(node.ours)  # where the change is

    assert len(node.install("pypi")) == 4
    with (node.ours / "clusters" / "requirements.txt").open("a") as file:
        file.write("more==1\n")
    (tmp_path / "broken").touch()
    with pytest.raises(subprocess.CalledProcessError):
        node.install("pypi")
    (tmp_path / "broken").unlink()
    assert len(node.install("pypi")) == 4


def test_versions_of_another_processor_have_no_hashes(tmp_path: Path) -> None:
    node = Node(tmp_path)
    given = (node.ours / "clusters" / "requirements.txt").read_text()
    node.install("pypi")
    assert (tmp_path / "donna" / "versions.txt").read_text() == given
    (tmp_path / "bin" / "uname").write_text("#!/bin/sh\necho aarch64\n")
    (tmp_path / "bin" / "uname").chmod(0o755)
    node.install("pypi", "more")
    lines = (tmp_path / "donna" / "versions.txt").read_text().splitlines()
    assert lines[1:] == [line.partition(" ")[0] for line in given.splitlines()[1:]]


def test_commands_of_a_node_are_those_of_the_package(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.install("pypi")
    for name, entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "scripts"
    ].items():
        command = tmp_path / "donna" / "bin" / name
        assert f"from {entry.partition(':')[0]} import main" in command.read_text()
        told = subprocess.run([str(command), "--version"], capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
