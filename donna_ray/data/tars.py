"""Files in a tar: where each lies, so that it can be read at an offset, and that none is lost."""

import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from donna_ray.data.names import counts, may_be_a_class, suffix
from donna_ray.errors import ConfigError

__all__ = ["Place", "Places", "members"]

Place = tuple[int, int] | None
Places = Mapping[str, Place]
"""Offset and size of each file of a tar; None for a link that leads to no file in it."""

_READ = 2**20  # bytes at a time
_MOST_LINKS = 40  # one after the other, as in Linux; more are a loop


def members(path: Path) -> Iterator[tuple[str, Place]]:
    """Name and place of each file; those of a tar in the tar as if it were a folder.

    Raises:
        ConfigError: it is damaged, or a link in it leads to nothing.
        OSError, tarfile.TarError: it cannot be read.
    """
    with tarfile.open(path, "r:") as tar:  # a packed one could not be read at an offset
        yield from _members_of(tar, str(path), 0, "")


def _members_of(
    tar: tarfile.TarFile, path: str, start: int, prefix: str
) -> Iterator[tuple[str, Place]]:
    found: dict[str, tarfile.TarInfo] = {}
    last = None
    for last in tar:  # a hard link leads to what came before it
        earlier = found.get(os.path.normpath(last.linkname)) if last.islnk() else None
        found[os.path.normpath(last.name)] = earlier or last
    _check_end(tar, path, last)
    for inside, member in found.items():
        name, target = prefix + inside, _target(found, inside)
        if target is None or not target.isfile():
            if member.issym() or member.islnk():
                _check_link(tar, name, member.linkname)
                yield name, None
        elif suffix(name) == ".tar":
            with tarfile.open(fileobj=tar.extractfile(target), mode="r:") as inner:
                place = start + target.offset_data
                yield from _members_of(inner, f"{path}/{inside}", place, f"{name[:-4]}/")
        else:
            yield name, (start + target.offset_data, target.size)


def _check_end(tar: tarfile.TarFile, path: str, last: tarfile.TarInfo | None) -> None:
    """Refuse a tar with more than was read: tarfile stops at a damaged member without a word."""
    file, seen = tar.fileobj, f"after {last.name}" if last else "at its begin"
    assert file is not None
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        raise ConfigError(
            f"A tar must have its end mark of 1,024 zero bytes, but {path} ends {seen} without: "
            "who wrote or copied it may have stopped too early. Make it again; if it is sure "
            "that no image is missing, `head -c 1024 /dev/zero >> FILE.tar` adds the mark."
        )
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise ConfigError(
            f"A tar must be intact to its end, but {path} is damaged or cut off {seen}, at byte "
            f"{tar.offset}. Copy or make it again."
        )
    while rest := file.read(_READ):
        if rest.strip(b"\0"):
            raise ConfigError(
                f"A tar must end where its end mark is, but in {path} more follows it ({seen}), as "
                "where tars were joined by cat. Join them by `tar --concatenate`, or unpack this "
                "one (`tar --extract --ignore-zeros`) and pack it again."
            )


def _target(members: Mapping[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo | None:
    """What is at a name, or where its symbolic links lead; None where that is not in the tar."""
    for _ in range(_MOST_LINKS):
        member = members.get(name)
        if member is None or not member.issym():
            return member
        name = os.path.normpath(os.path.join(os.path.dirname(name), member.linkname))
    return None


def _check_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    """Refuse a link that leads to no file and may be a class; of an image, it is unreadable."""
    *folders, last = name.split("/")
    if all(map(counts, folders)) and may_be_a_class(last):
        raise ConfigError(
            f"Every link in a tar must lead to a file in it, but {tar.name!r} has {name}, "
            f"which leads to {target}. Pack what it leads to (tar --dereference), or remove it."
        )
