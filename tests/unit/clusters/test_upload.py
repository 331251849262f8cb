"""What a job, an image and a node are sent: code and configurations, whatever else lies there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[3]
LARGEST = 100_000  # bytes, uncompressed: the cluster files and setup.py
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


def submitted(work: Path, folder: Path) -> tuple[Path, str]:
    """The tree that `submit.sh` hands to Ray in a working directory, and what it says beside."""
    folder.mkdir()
    sent = folder / "sent"
    commands = {"donna": "exit 0", "ray": f'cp -R "$4" {sent}'}
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    ended = subprocess.run(
        ["bash", str(ROOT / "clusters" / "submit.sh"), "search.yaml"],
        cwd=work,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        text=True,
    )
    return sent, ended.stderr


def package(work: Path, folder: Path) -> set[str]:
    """Names in the package that Ray makes for a job of `submit.sh` in a working directory."""
    sent, _ = submitted(work, folder)
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


def clone(folder: Path) -> Path:
    ignored = shutil.ignore_patterns(".venv", ".git", ".hypothesis", "runs", "*cache*")
    shutil.copytree(ROOT, folder, ignore=ignored)
    (folder / "search.yaml").write_text("x")
    return folder


def test_what_is_left_out_for_its_name_is_told(tmp_path: Path) -> None:
    work = filled(tmp_path / "work")
    for name in ("blocks/credentials.py", "secret_blocks/a.py", "data/secrets.yaml"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).touch()
    sent, said = submitted(work, tmp_path / "job")
    told = {"./secrets.yaml", "./aws_credentials.py", "./blocks/credentials.py", "./secret_blocks"}
    first, *names = said.splitlines()
    assert "rename" in first
    assert set(names) == told
    assert not (sent / "blocks" / "credentials.py").exists()

    shutil.rmtree(work)
    work.mkdir()
    (work / "search.yaml").touch()
    assert submitted(work, tmp_path / "again")[1] == ""


def test_linked_files_are_sent_and_other_links_told(tmp_path: Path) -> None:
    """A link to a folder could lead to all images."""
    work, common = tmp_path / "work", tmp_path / "common"
    (common / "folder").mkdir(parents=True)
    for name in ("own.py", "other.yaml", "folder/a.py"):
        (common / name).write_text("common")
    work.mkdir()
    links = {"blocks.py": "own.py", "again.py": "own.py", "search.yaml": "other.yaml"}
    unsent = {"linked": "folder", "gone.py": "nothing.py"}
    untold = {"gone.jpg": "nothing.jpg", "secret.txt": "own.py", "data": "folder"}
    for name, target in {**links, **unsent, **untold}.items():
        (work / name).symlink_to(Path("..", "common", target))
    sent, said = submitted(work, tmp_path / "job")
    assert files_in(sent) == set(links)
    assert not [name for name in links if (sent / name).is_symlink()]
    assert {(sent / name).read_text() for name in links} == {"common"}
    first, *names = said.splitlines()
    assert "links" in first
    assert set(names) == {f"./{name}" for name in unsent}


def test_upload_from_a_clone_has_nothing_of_the_project(tmp_path: Path) -> None:
    names = package(clone(tmp_path / "work"), tmp_path / "job")
    assert "search.yaml" in names
    ours = (*PACKAGE, "scripts", "tests", "docs", ".git")
    assert not [name for name in names if name.partition("/")[0] in ours]
    assert (tmp_path / "job" / "job.zip").stat().st_size < LARGEST


def test_scripts_are_sent_from_a_folder_that_is_no_clone(tmp_path: Path) -> None:
    work = filled(tmp_path / "work")
    (work / "scripts").mkdir()
    (work / "scripts" / "own.py").touch()
    assert "scripts/own.py" in package(work, tmp_path / "job")


def test_a_job_of_a_clone_imports_the_package_that_the_node_has(tmp_path: Path) -> None:
    """As Ray has it: the working directory first on the path. Without this host's own finder."""
    sent, _ = submitted(clone(tmp_path / "work"), tmp_path / "job")
    site = tmp_path / "site"
    for name in PACKAGE:
        shutil.copytree(ROOT / name, site / name)
    paths = (sent, site, sysconfig.get_path("purelib"))
    ended = subprocess.run(
        [sys.executable, "-S", "-c", "import donna_ray.cli.main as m; print(m.__file__)"],
        cwd=sent,
        env={**os.environ, "PYTHONPATH": ":".join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr == ""
    assert ended.stdout.strip() == str(site / "donna_ray" / "cli" / "main.py")


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
    files = ("clusters/install.sh", "clusters/requirements.txt")
    assert mounts == {f"~/donna-ray/{each}": each for each in (*PACKAGE, *files)}
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
    usb, key = pod["volumes"]
    assert usb["hostPath"]["path"] == "/dev/bus/usb"
    assert key["secret"]["defaultMode"] == 0o400
    mounts = {each["name"]: each for each in pod["containers"][0]["volumeMounts"]}
    assert mounts["adb-key"]["readOnly"] is True
    privileged = [name for name in groups if "privileged" in str(groups[name])]
    assert privileged == ["phones"]
