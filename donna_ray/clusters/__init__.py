"""Files to start a Ray cluster with, and to submit a run to it; `donna cluster init` writes them.

README.md says which file is for what. Here is only what copies them.
"""

from collections.abc import Iterator
from pathlib import Path

__all__ = ["write_files"]

_HERE = Path(__file__).parent
_EXECUTABLE = 0o755


def write_files(folder: Path) -> Iterator[Path]:
    """Copy the files into a folder; gives the path of each that is written.

    One that is there already is left as it is, for it may have been filled in.
    """
    for source in sorted(_HERE.rglob("*")):
        target = folder / source.relative_to(_HERE)
        if source.is_dir() or source.suffix in (".py", ".pyc") or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        if source.suffix == ".sh":
            target.chmod(_EXECUTABLE)
        yield target
