"""Files to start a Ray cluster with, and to submit a run to it; `donna cluster init` writes them.

They are those of the folder `clusters` of the repository, which `files` is; its README.md says
which is for what.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from donna_ray.errors import DonnaError
from donna_ray.storage.artifacts import write_atomic

__all__ = ["write_files"]

_FILES = (Path(__file__).parent / "files").resolve()
_ROOT = Path(__file__).resolve().parents[2]  # of both packages, which nodes are sent
_MOUNT = re.compile(r"^(  ~/donna-ray/\S+: )(\S+)$", re.MULTILINE)
_EXECUTABLE = 0o755


def write_files(folder: Path) -> Iterator[Path]:
    """Copy the files into a folder; gives the path of each that is written.

    One that is there already is left as it is, for it may have been filled in. What nodes are sent
    of this installation is named by absolute paths, so that `ray up` finds it from any folder.

    Raises:
        DonnaError: the package was installed without them.
    """
    found = sorted(_FILES.rglob("*"))
    if not found:
        raise DonnaError(
            f"The cluster files must be in the package, but {_FILES} has none. Install it anew, or "
            "take them from the folder clusters of the repository."
        )
    for source in found:
        target = folder / source.relative_to(_FILES)
        if source.is_dir() or target.exists():
            continue
        write_atomic(target, _with_places(source.read_text(encoding="utf-8")).encode())
        if source.suffix == ".sh":
            target.chmod(_EXECUTABLE)
        yield target


def _with_places(text: str) -> str:
    """Mounts of the repository's folder as those of this installation, which an update renews."""

    def placed(mount: re.Match[str]) -> str:
        top, _, rest = mount[2].partition("/")
        place = _FILES / rest if top == "clusters" else _ROOT / mount[2]
        return mount[1] + json.dumps(str(place), ensure_ascii=False)  # which YAML reads, too

    return _MOUNT.sub(placed, text)
