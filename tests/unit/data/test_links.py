"""Links among the images of a folder or a tar: followed, refused or named, none left out unsaid."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from donna_ray.config import DataConfig
from tests.unit.data.image_files import (
    images_of,
    labels_of,
    load,
    png,
    refuse,
    split,
    write_plain,
)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def write_linked(root: Path, *links: tarfile.TarInfo, around: str = "") -> DataConfig:
    """Tars of 60 images a class, with links behind those of the training images."""
    for part in ("train", "validation", "test"):
        with tarfile.open(root / f"{part}.tar", "w") as tar:
            for number, name in enumerate(split(count=60)):
                member = tarfile.TarInfo(around + name)
                member.size = len(png(number))
                tar.addfile(member, io.BytesIO(png(number)))
            for each in links if part == "train" else ():
                tar.addfile(each)
    return DataConfig(source=str(root), augmentation=None)


@pytest.mark.parametrize("around", ["", "./train/"])
def test_links_in_a_tar_are_the_images_that_they_lead_to(around: str, tmp_path: Path) -> None:
    """Tar keeps the second of two names of a file, or a file that is given twice, as a link."""
    links = [
        link(f"{around}a/hard.png", f"{around}a/7.png", tarfile.LNKTYPE),
        link(f"{around}a/other.png", f"{around}a/hard.png", tarfile.LNKTYPE),
        link(f"{around}b/3.png", f"{around}b/3.png", tarfile.LNKTYPE),
        link(f"{around}a/soft.png", "7.png"),
        link(f"{around}a/around.png", "../a/soft.png"),
        link(f"{around}a/both.png", f"{around}a/around.png", tarfile.LNKTYPE),
    ]
    data = load(write_linked(tmp_path, *links, around=around))
    assert labels_of(data.train) == [0] * 65 + [1] * 60
    images = images_of(data.train)
    same = [bool(each.equal(images[7])) for each in images]
    assert sum(same) == 6
    assert not data.train.broken


@pytest.mark.parametrize("target", ["/elsewhere/0.png", "none.png", "../../0.png", "x.png", "."])
def test_link_of_a_tar_to_no_file_in_it_is_unreadable(target: str, tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        data = load(write_linked(tmp_path, link("a/x.png", target, kind), link("a/.x", "no")))
        assert len(images_of(data.train)) == 120
        assert list(data.train.broken) == ["a/x.png"]
        assert "link that leads to no file" in data.train.broken["a/x.png"]


@pytest.mark.parametrize("target", ["a", "nothing"])
def test_link_of_a_tar_that_may_be_a_class_is_refused(target: str, tmp_path: Path) -> None:
    refuse(write_linked(tmp_path, link("c", target)), "has c", f"leads to {target}", "dereference")


@pytest.mark.parametrize("target", [".", "..", "../..", "loop", "absolute"])
def test_a_link_to_a_folder_around_it_is_not_followed(target: str, tmp_path: Path) -> None:
    config = write_plain(tmp_path)
    (tmp_path / "train/a/in").mkdir()
    (tmp_path / "train/a/in/x.png").write_bytes(png(0))
    where = tmp_path / "train" if target == "absolute" else target
    (tmp_path / "train/a/loop").symlink_to(where)
    data = load(config)
    assert labels_of(data.train) == [0] * 61 + [1] * 60
    assert list(data.train.broken) == (["a/loop"] if target == "loop" else [])


def test_links_to_other_folders_are_followed(tmp_path: Path) -> None:
    config = write_plain(tmp_path / "data")
    (tmp_path / "more/deep").mkdir(parents=True)
    (tmp_path / "more/deep/x.png").write_bytes(png(0))
    (tmp_path / "data/train/b/more").symlink_to(tmp_path / "more")
    (tmp_path / "data/train/c").symlink_to("../../more")
    refuse(config, "b/more/deep/ and c/deep/ are one folder", "Remove the link")
    (tmp_path / "data/train/c").unlink()
    assert labels_of(load(config).train) == [0] * 60 + [1] * 61


@pytest.mark.parametrize(("name", "target"), [("c", "a"), ("b/x", "../a")])
def test_a_folder_is_of_one_class(name: str, target: str, tmp_path: Path) -> None:
    config = write_plain(tmp_path)
    (tmp_path / "train" / name).symlink_to(target)
    refuse(config, f"a/ and {name}/ are one folder by a link", str(tmp_path / "train"))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_class_whose_link_leads_to_nothing_is_named(part: str, tmp_path: Path) -> None:
    config = write_plain(tmp_path)
    for name in ("gone", "self", ".hidden"):
        (tmp_path / part / name).symlink_to("self" if name == "self" else "/mnt/none")
    refuse(config, "'gone', 'self' lead to nothing", str(tmp_path / part), "Mount", "remove them")
    (tmp_path / part / "self").unlink()
    refuse(config, "'gone' leads to nothing", "remove it.")


@pytest.mark.parametrize("name", ["labels.csv", "LICENSE", "v1.csv.gz", ".hidden"])
def test_a_dead_link_that_is_no_class_is_passed_over(name: str, tmp_path: Path) -> None:
    config = write_plain(tmp_path / "folder")
    (tmp_path / "folder/train" / name).symlink_to("/nowhere")
    (tmp_path / "tar").mkdir()
    for each in (config, write_linked(tmp_path / "tar", link(name, "/nowhere"))):
        assert labels_of(load(each).train) == [0] * 60 + [1] * 60


@pytest.mark.parametrize(("name", "word"), [("c", "lead"), ("v1.0", "lead"), ("x.png", "none")])
def test_a_dead_link_that_may_be_one_is_not(name: str, word: str, tmp_path: Path) -> None:
    """Nor an image in no class."""
    config = write_plain(tmp_path / "folder")
    (tmp_path / "folder/train" / name).symlink_to("/nowhere")
    (tmp_path / "tar").mkdir()
    for each in (config, write_linked(tmp_path / "tar", link(name, "/nowhere"))):
        refuse(each, name, word)
