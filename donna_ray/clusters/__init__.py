"""Files to start a Ray cluster with, and to submit a run to it; `donna cluster init` writes them.

They are those of the folder `clusters` of the repository, which `files` is; its README.md says
which is for what.
"""

from collections.abc import Iterator
from pathlib import Path

from donna_ray.errors import DonnaError
from donna_ray.storage.artifacts import write_atomic

__all__ = ["write_files"]

_FILES = (Path(__file__).parent / "files").resolve()
_EXECUTABLE = 0o755


def write_files(folder: Path) -> Iterator[Path]:
    """Copy the files into a folder; gives the path of each that is written.

    One that is there already is left as it is, for it may have been filled in.

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
        write_atomic(target, source.read_bytes())
        if source.suffix == ".sh":
            target.chmod(_EXECUTABLE)
        yield target
