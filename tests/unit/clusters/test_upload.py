"""What a job and an image are sent: code and configurations, not data or results."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[3]
LARGEST = 2_000_000  # bytes, uncompressed: the code alone is 1 MB
LEFT_OUT = (
    *("data/train/a.jpg", "datasets/b.tar", "runs/demo/results.json", ".venv/lib/x.py"),
    *("teacher.pth", "weights/net.safetensors", "model.onnx", "runs/demo/search/m.sqlite"),
    *(".git/objects/x", "donna_ray/__pycache__/x.pyc", ".mypy_cache/x", "images.tar.gz"),
)


def package(folder: Path, target: Path) -> set[str]:
    """The names in the package of a working directory, as Ray makes it for a job."""
    excludes = get_runtime_env_default_excludes()
    create_package(str(folder), target, include_gitignore=True, excludes=excludes)
    return set(zipfile.ZipFile(target).namelist())


def test_data_weights_and_runs_stay_here(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    for name in (*LEFT_OUT, "search.yaml", "blocks/own.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    names = {name for name in package(folder, tmp_path / "work.zip") if not name.endswith("/")}
    assert names == {".gitignore", ".rayignore", "search.yaml", "blocks/own.py"}


def test_upload_of_this_project_is_small(tmp_path: Path) -> None:
    names = package(ROOT, tmp_path / "project.zip")
    assert {
        "donna_ray/cli/main.py",
        "device_farm/cli.py",
        "donna_ray/config/shipped/demo.yaml",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", ".git/"))]
    assert (tmp_path / "project.zip").stat().st_size < LARGEST


def test_image_leaves_out_what_git_and_jobs_do() -> None:
    left_out = set((ROOT / ".dockerignore").read_text().splitlines())
    lines = [line for name in (".gitignore", ".rayignore") for line in (ROOT / name).open()]
    names = [line.strip().rstrip("/") for line in lines if line.strip() and line[0] != "#"]
    assert {name[1:] if name[0] == "/" else f"**/{name}" for name in names} <= left_out
    assert ".git" in left_out
