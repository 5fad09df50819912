"""Datasets, lists, draws and features follow what is in the files, whatever names, sizes and times say."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptbench.data import contents as module
from promptbench.data import dataset as data
from promptbench.data import kept
from promptbench.data.contents import contents
from promptbench.data.draws import kept_draw
from promptbench.data.folders import list_tree
from promptbench.methods._registry import get_method
from promptbench.trials.benchmarks import get_benchmark
from promptbench.trials.plan import plan
from tests import mini

CLASSES = ("cat", "dog")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Bitmaps of one size, all with the time that an archive gave them."""
    for shade, name in enumerate(CLASSES):
        for number in range(4):
            path = tmp_path / "zoo" / name / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 100 * shade + number).save(path)
    return still(tmp_path / "zoo")


def still(root: Path) -> Path:
    for path in [root, *root.rglob("*")]:
        os.utime(path, (10**9, 10**9))
    return root


def fingerprint(root: Path) -> str:
    module._tables.clear()
    return data.load(str(root)).fingerprint


def test_another_image_of_equal_size_and_time_is_another_dataset(zoo: Path) -> None:
    first = fingerprint(zoo)
    Image.new("L", (8, 8), 77).save(zoo / "cat" / "0.bmp")
    still(zoo)
    second = fingerprint(zoo)
    assert second != first
    (zoo / "cat").rename(zoo / "x")  # the images of two classes change places
    (zoo / "dog").rename(zoo / "cat")
    (zoo / "x").rename(zoo / "dog")
    still(zoo)
    assert fingerprint(zoo) not in (first, second)


def test_a_copy_with_other_times_is_the_same_dataset(zoo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "zoo"
    shutil.copytree(zoo, copy)
    os.utime(copy / "cat" / "0.bmp", (5, 5))
    assert fingerprint(copy) == fingerprint(zoo)


def test_files_are_read_once(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "TICK", -1.0)  # else files this new are read again
    first = contents(zoo, ["cat/0.bmp", "dog/1.bmp", "gone.bmp"])
    assert first[2].sha256 == ""
    read: list[str] = []
    look = module._look

    def watched(path: str) -> Any:
        read.append(Path(path).name)
        return look(path)

    monkeypatch.setattr(module, "_look", watched)
    module._tables.clear()  # as in another process
    assert contents(zoo, ["cat/0.bmp", "dog/1.bmp", "gone.bmp"]) == first
    assert read == []
    (file,) = (Path(os.environ["PROMPTBENCH_CACHE"]) / "contents").iterdir()
    file.write_bytes(file.read_bytes().replace(first[0].sha256.encode(), first[1].sha256.encode()))
    module._tables.clear()
    assert contents(zoo, ["cat/0.bmp", "dog/1.bmp"]) == first[:2]  # the damaged file was not believed
    assert sorted(read) == ["0.bmp", "1.bmp"]


def test_a_file_changed_a_moment_ago_is_read_again(zoo: Path) -> None:
    """The clock of the file system may not have ticked between two changes."""
    first = contents(zoo, ["cat/0.bmp"])
    assert not (Path(os.environ["PROMPTBENCH_CACHE"]) / "contents").exists()
    before = (zoo / "cat" / "0.bmp").stat()
    with pytest.MonkeyPatch.context() as patched:  # as if the clock stood still
        patched.setattr(module, "_stamp", lambda path: (1, 2, before.st_ctime_ns, 3))
        Image.new("L", (8, 8), 77).save(zoo / "cat" / "0.bmp")
        assert contents(zoo, ["cat/0.bmp"]) != first


def test_lists_are_made_anew_although_the_folders_keep_their_time(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "TICK", -1.0)
    assert len(list_tree(zoo, "zoo").images["cat"]) == 4
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", None)  # kept: nothing is listed
        assert len(list_tree(zoo, "zoo").images["cat"]) == 4
    (zoo / "cat" / "0.bmp").unlink()
    still(zoo)
    assert len(list_tree(zoo, "zoo").images["cat"]) == 3
    (zoo / "cat" / "deep").mkdir()
    shutil.copy(zoo / "cat" / "1.bmp", zoo / "cat" / "deep")
    still(zoo)
    assert list_tree(zoo, "zoo").images["cat/deep"] == ["1.bmp"]


def test_a_damaged_draw_is_drawn_anew(colours: data.Dataset, tmp_path: Path) -> None:
    first = kept_draw(colours.splits, colours.name, colours.fingerprint, 2, 1)
    (path,) = (tmp_path / "cache" / "fewshot").iterdir()
    text = path.read_text()
    path.write_text(text.replace("train0.png", "train3.png"))  # as readable as before
    assert path.read_text() != text
    assert kept_draw(colours.splits, colours.name, colours.fingerprint, 2, 1) == first


def test_a_corrected_image_of_a_standard_dataset_is_another_trial(tmp_path: Path) -> None:
    """Of published splits only the images that a trial reads are hashed."""
    entries = mini.per_class(mini.DTD, "{name}/{name}_{number:04d}.jpg", (9, 1, 2))
    mini.zhou(tmp_path / "dtd", "images", "split_zhou_DescribableTextures.json", entries)
    for shade, (path, _, _) in enumerate(entries["train"]):
        mini.picture(tmp_path / "dtd" / "images" / path, shade)

    def trial(**more: Any) -> Any:
        dataset = data.load("dtd", tmp_path, allow_nonstandard=True)
        (found,) = plan(get_benchmark("fewshot"), [get_method("coop")], [dataset], shots=(2,), **more)
        return dataset, found

    dataset, first = trial()
    drawn = {item.path for item in dataset.few_shot(2, 1, "all")}
    unused = next(item.path for item in dataset.splits["train"] if item.path not in drawn)
    assert first.files
    assert trial(seeds=(2,))[1].files != first.files
    for path, same in ((unused, True), (min(drawn), False), (dataset.splits["test"][0].path, False)):
        before = trial()[1]
        mini.picture(tmp_path / "dtd" / "images" / path, 200)
        after = trial()[1]
        assert (after.hash == before.hash) is same
        assert after.data == first.data  # so that tables still take the seeds of a method together


def test_what_is_read_of_archives_is_in_their_fingerprint() -> None:
    icons = data.load("icons")
    assert icons.files(icons.splits["test"]) == ""


def test_kept_values_say_whether_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    assert kept.read(path) is None
    kept.write(path, {"a": [1]})
    assert kept.read(path) == {"a": [1]}
    for damaged in (b"", b"\xff", path.read_bytes()[:-1], path.read_bytes().replace(b"1", b"2"), b"{}\n{}"):
        path.write_bytes(damaged)
        assert kept.read(path) is None


def test_a_dataset_is_read_again_when_its_files_or_the_folder_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, such as a notebook: neither a name nor an earlier call decides."""
    for shade, part in enumerate(("one", "two")):
        for name in ("cat", "dog"):
            for number in range(4):
                mini.picture(tmp_path / part / "photos" / name / f"{number}.png", 40 * shade + number)
    monkeypatch.chdir(tmp_path / "one")
    first = data.load("photos")
    mini.picture(tmp_path / "one" / "photos" / "cat" / "0.png", 250)
    changed = data.load("photos")
    monkeypatch.chdir(tmp_path / "two")
    assert len({first.fingerprint, changed.fingerprint, data.load("photos").fingerprint}) == 3


def test_a_broken_link_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "TICK", 0.0)  # what was listed just now is kept
    root, store = tmp_path / "photos", tmp_path / "store"
    for name in ("cat", "dog"):
        for number in range(4):
            mini.picture(root / name / f"{number}.png", number)
    (root / "cat" / "linked.png").symlink_to(store / "linked.png")
    before = sum(map(len, data.load(str(root)).splits.values()))
    mini.picture(store / "linked.png", 9)
    assert sum(map(len, data.load(str(root)).splits.values())) == before + 1
