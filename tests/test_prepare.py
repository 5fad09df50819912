"""Unpacking what the user downloaded, safely, and sorting ImageNet's val pictures."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from promptbench.data.prepare import prepare, unpack
from promptbench.errors import UserError
from tests import mini


def tar(path: Path, members: dict[str, bytes], link: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return path


def unready(name: str, root: Path) -> list[str]:
    """What is said of a dataset that is not ready in the end."""
    said: list[str] = []
    with pytest.raises(UserError, match="No dataset is ready"):
        said.extend(prepare([name], root))
    return said


def test_archives_go_where_they_belong(tmp_path: Path) -> None:
    tar(
        tmp_path / "dtd-r1.0.1.tar.gz",
        {"dtd/images/banded/a.jpg": b"x", "dtd/labels/l.txt": b"y", "other/z": b"z"},
    )
    lines = unready("dtd", tmp_path)
    assert (tmp_path / "dtd" / "images" / "banded" / "a.jpg").read_bytes() == b"x"
    assert not (tmp_path / "dtd" / "z").exists()
    assert lines[0] == f"dtd: unpacked dtd-r1.0.1.tar.gz into {tmp_path / 'dtd'}"
    assert "not ready" in lines[1]
    assert "split_zhou_DescribableTextures.json" in lines[1]
    assert len(unready("dtd", tmp_path)) == 1  # nothing is unpacked twice


def test_nothing_leaves_the_target(tmp_path: Path) -> None:
    for name in ("../evil.txt", "/evil.txt", "a/../../evil.txt"):
        archive = tar(tmp_path / "a.tar.gz", {"fine.txt": b"1", name: b"2"})
        with pytest.raises(UserError, match="leads outside its folder"):
            unpack(archive, tmp_path / "target")
        packed = tmp_path / "a.zip"
        with zipfile.ZipFile(packed, "w") as file:
            file.writestr("fine.txt", "1")
            file.writestr(name, "2")
        with pytest.raises(UserError, match="leads outside its folder"):
            unpack(packed, tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []  # all or nothing
    assert not (tmp_path / "evil.txt").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="link or device 'passwd'"):
        unpack(tar(tmp_path / "a.tar.gz", {"fine.txt": b"1"}, link="passwd"), tmp_path / "target")
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as file:
        info = zipfile.ZipInfo("passwd")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="contains the link 'passwd'"):
        unpack(packed, tmp_path / "target")


def test_damaged_archives_are_one_sentence(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", {"fine.txt": b"1" * 5000})
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "target")
    (tmp_path / "b.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tmp_path / "b.tar.gz", tmp_path / "target")


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", {"fine.txt": b"1"})
    unpack(archive, tmp_path / "target")
    with pytest.raises(UserError, match="exists already"):
        unpack(archive, tmp_path / "target")


@pytest.mark.parametrize("kind", ["kaggle", "text"])
def test_imagenet_val_is_sorted(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "imagenet"
    mini.imagenet(folder)
    val = folder / "images" / "val"
    moved = {}
    for picture in sorted(val.rglob("*.JPEG")):
        moved[picture.name] = picture.parent.name
        picture.rename(val / picture.name)
        picture.parent.rmdir()
    assert "are not sorted; put LOC_val_solution.csv" in "\n".join(unready("imagenet", tmp_path))
    if kind == "kaggle":
        rows = [f"{name.removesuffix('.JPEG')},{wnid} 1 2 3 4 " for name, wnid in moved.items()]
        (folder / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    else:
        (folder / "val.txt").write_text("\n".join(f"{name} {wnid}" for name, wnid in moved.items()))
    lines = unready("imagenet", tmp_path)
    assert lines[0] == "imagenet: sorted 6 images of val into 6 folders"
    assert {p.name: p.parent.name for p in val.rglob("*.JPEG")} == moved


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean .dtd."):
        list(prepare(["dtdd"], tmp_path))
    with pytest.raises(UserError, match="There is no data root"):
        list(prepare([], tmp_path / "nowhere"))
