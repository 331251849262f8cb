"""What a job, an image and a node are sent: code and configurations, whatever else lies there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[3]
LARGEST = 2_500_000  # bytes, uncompressed: the code and the libraries of the report are 2 MB
PACKAGE = ("donna_ray", "device_farm")
LEFT_OUT = (
    *("data/train/a.jpg", "datasets/b.tar", "runs/demo/results.json", ".venv/lib/x.py"),
    *("teacher.pth", "weights/net.safetensors", "model.onnx", "runs/demo/search/m.sqlite"),
    *(".git/objects/x", "blocks/__pycache__/x.pyc", ".mypy_cache/x", "images.tar.gz"),
    *(".env", "blocks/.env", ".aws/credentials", ".ssh/id_rsa", "id_rsa", "blocks/id_ed25519"),
    *("key.pem", "service-account.json", "adbkey", "photos/me.png", "table.parquet"),
    *("secrets.yaml", "aws_credentials.py", "env/lib/python3.11/site-packages/x.py"),
    *("own/ignored.py", "runs/demo/config.yaml", "notes.txt", "dump.csv"),
)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def package(work: Path, folder: Path) -> set[str]:
    """Names in the package that Ray makes for a job of `submit.sh` in a working directory."""
    folder.mkdir()
    sent = folder / "sent"
    commands = {"donna": "exit 0", "ray": f'cp -R "$4" {sent}'}
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    subprocess.run(
        ["bash", str(ROOT / "clusters" / "submit.sh"), "search.yaml"],
        cwd=work,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        check=True,
    )
    excludes = get_runtime_env_default_excludes()
    create_package(str(sent), folder / "job.zip", include_gitignore=True, excludes=excludes)
    return {name for name in zipfile.ZipFile(folder / "job.zip").namelist() if name[-1] != "/"}


def filled(folder: Path) -> Path:
    for name in (*LEFT_OUT, "search.yaml", "blocks/own.py", "nested/data/loader.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / ".gitignore").write_text("/own/\n")
    return folder


def test_a_job_is_sent_code_and_configurations_alone(tmp_path: Path) -> None:
    names = package(filled(tmp_path / "work"), tmp_path / "job")
    assert names == {".gitignore", "search.yaml", "blocks/own.py", "nested/data/loader.py"}


def test_what_would_not_be_sent_is_no_configuration_of_a_job(tmp_path: Path) -> None:
    work = filled(tmp_path / "work")
    (work / "search.yaml").rename(work / "search.txt")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        package(work, tmp_path / "job")
    assert caught.value.returncode == 2


def test_upload_of_this_project_is_small(tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(ROOT, work, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "*cache*"))
    (work / "search.yaml").write_text("x")
    names = package(work, tmp_path / "job")
    assert {f"{each}/__init__.py" for each in PACKAGE} < names
    assert "donna_ray/config/shipped/demo.yaml" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", ".git/"))]
    assert (tmp_path / "job" / "job.zip").stat().st_size < LARGEST


def regex_of(pattern: str) -> str:
    """One of a .dockerignore, as Docker's `patternmatcher` reads it."""
    words = {"**/": "(.*/)?", "*": "[^/]*"}
    return "".join(words.get(each) or re.escape(each) for each in re.split(r"(\*\*/|\*)", pattern))


def is_sent(name: str, patterns: list[str]) -> bool:
    """The last pattern that matches the path, or a folder that it is in, decides."""
    parts = name.split("/")
    ways = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    sent = True
    for pattern in patterns:
        if any(re.fullmatch(regex_of(pattern.lstrip("!")), way) for way in ways):
            sent = pattern.startswith("!")
    return sent


def test_a_build_is_sent_the_package_alone(tmp_path: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and line[0] != "#"]
    ours = {"pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE"}
    for folder in PACKAGE:
        ours |= {
            f"{folder}/{name}" for name in files_in(ROOT / folder) if "__pycache__" not in name
        }
    ours |= {f"clusters/{name}" for name in files_in(ROOT / "clusters")}
    within = [f"{folder}/{name}" for folder in PACKAGE for name in (".env", "id_rsa", "a/key.pem")]
    theirs = [*LEFT_OUT, *within, "donna_ray/.own.py", "search.yaml", "tests/conftest.py"]
    assert {name for name in (*ours, *theirs) if is_sent(name, patterns)} == ours


@pytest.mark.parametrize("name", ["aws-v100", "gcp", "on-premise"])
def test_nodes_are_sent_the_package_alone(name: str) -> None:
    config = yaml.safe_load((ROOT / "clusters" / f"{name}.yaml").read_text())
    mounts = dict(config["file_mounts"])
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    files = ("pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE")
    names = (*PACKAGE, *files)
    assert mounts == {f"~/donna-ray/{each}": each for each in names}
    assert ".*" in config["rsync_exclude"]


def test_images_are_of_exact_versions() -> None:
    image = (ROOT / "clusters" / "Dockerfile").read_text()
    (base,) = re.findall(r"^FROM (\S+)$", image, re.M)
    assert re.fullmatch(r"\S+:\d+\.\d+\.\d+-py311-gpu(@sha256:[0-9a-f]{64})?", base)
    for path in (ROOT / "clusters" / "kuberay").glob("*.yaml"):
        images = re.findall(r"image: (\S+)", path.read_text())
        assert images
        assert all(each.partition("@")[2] == "sha256:DIGEST" for each in images)


def test_pod_of_phones_has_no_more_than_usb_needs() -> None:
    manifest = yaml.safe_load((ROOT / "clusters" / "kuberay" / "raycluster.yaml").read_text())
    groups = {each["groupName"]: each for each in manifest["spec"]["workerGroupSpecs"]}
    pod = groups["phones"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    assert pod["securityContext"]["runAsNonRoot"] is True
    (volume,) = pod["volumes"]
    assert volume["hostPath"]["path"] == "/dev/bus/usb"
    privileged = [name for name in groups if "privileged" in str(groups[name])]
    assert privileged == ["phones"]
