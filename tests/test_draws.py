"""Few-shot draws on disk, and foreign pickles that may try anything."""

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from promptbench.data import dataset as data
from promptbench.data.dataset import with_draws
from promptbench.data.draws import draw_few_shot, draw_file, kept_draw, write_draw
from promptbench.data.official_draws import import_draw
from promptbench.errors import UserError


class _OtherDatum:
    """As Dassl's Datum keeps its fields."""

    def __init__(self, path: str, label: int) -> None:
        self._impath, self._label, self._domain, self._classname = path, label, 0, "x"


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pickles a draw as the official code does, with a class of a library that is not installed here."""
    module = types.ModuleType("dassl.data.datasets.base_dataset")
    kind = type("Datum", (_OtherDatum,), {"__module__": module.__name__, "__qualname__": "Datum"})
    module.Datum = kind  # type: ignore[attr-defined]

    def write(path: Path, content: dict[str, list[tuple[str, int]]], protocol: int = 4) -> Path:
        with monkeypatch.context() as patched:
            for name in ("dassl", "dassl.data", "dassl.data.datasets", module.__name__):
                patched.setitem(
                    sys.modules, name, types.ModuleType(name) if name != module.__name__ else module
                )
            listed = {split: [kind(*one) for one in items] for split, items in content.items()}
            path.write_bytes(pickle.dumps(listed, protocol=protocol))
        return path

    return write


def test_a_draw_is_kept_and_read_again(colours: data.Dataset, tmp_path: Path) -> None:
    first = kept_draw(colours.splits, colours.name, colours.fingerprint, 2, 1)
    assert first == draw_few_shot(colours.splits["train"], colours.splits["val"], 2, 1)
    (path,) = (tmp_path / "cache" / "fewshot").iterdir()
    assert "images/0/" in path.read_text()
    assert str(tmp_path) not in path.read_text()  # relative paths
    assert kept_draw(colours.splits, colours.name, colours.fingerprint, 2, 1) == first
    path.write_text(path.read_text()[:50])  # cut off: drawn anew
    assert kept_draw(colours.splits, colours.name, colours.fingerprint, 2, 1) == first


@pytest.mark.parametrize("protocol", [2, 4])
def test_import_of_a_foreign_draw(foreign: Any, colours: data.Dataset, tmp_path: Path, protocol: int) -> None:
    train, val = draw_few_shot(colours.splits["train"], colours.splits["val"], 2, 3)
    content = {
        split: [(f"/home/someone/data/colours/{item.path}", item.label) for item in items]
        for split, items in (("train", train), ("val", val))
    }
    path = foreign(tmp_path / "shot_2-seed_3.pkl", content, protocol)
    assert import_draw(path, colours) == (train, val)


def test_a_draw_of_something_else_is_refused(foreign: Any, colours: data.Dataset, tmp_path: Path) -> None:
    path = foreign(tmp_path / "shot_1-seed_1.pkl", {"train": [("/data/images/0/train0.png", 4)], "val": []})
    with pytest.raises(UserError, match="label 4, which is not in the split of colours"):
        import_draw(path, colours)


def test_a_draw_whose_values_are_no_draw(foreign: Any, colours: data.Dataset, tmp_path: Path) -> None:
    """Refused at once, however much they stand for."""
    doubled: Any = ["a"]
    for _ in range(60):
        doubled = [doubled, doubled]
    path = tmp_path / "shot_1-seed_1.pkl"
    deep = "a/" * 2_000_000
    for where, label in ((doubled, 0), (deep, 0), ("a", doubled), ("a", True)):
        foreign(path, {"train": [(where, label)], "val": []}, 2)
        with pytest.raises(UserError, match="a Datum whose path or label is none") as caught:
            import_draw(path, colours)
        assert len(str(caught.value)) < 500
    foreign(path, {"train": [("a", 0)] * 21, "val": []})
    with pytest.raises(UserError, match="21 images, more than the split's 20"):
        import_draw(path, colours)


class _Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize(
    "content",
    [
        *(b"not a pickle", pickle.dumps(_Evil()), pickle.dumps({"train": [1]}), b""),
        b"\x80\x02}r\xff\xff\xff\x0f0.",  # a place in the memo that would reserve 8 GB
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # a byte array of 1 TB
        b"\x80\x02ccopyreg\n_reconstructor\n(cbuiltins\nobject\nh\x00NtR.",
    ],
)
def test_a_pickle_can_run_nothing(
    content: bytes, colours: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "shot_1-seed_1.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="was not unpickled"):
        import_draw(path, colours)
    assert not (tmp_path / "pwned").exists()


def test_foreign_draws_are_used_and_make_another_dataset(colours: data.Dataset, tmp_path: Path) -> None:
    own, val = draw_few_shot(colours.splits["train"], colours.splits["val"], 2, 7)
    write_draw(draw_file(tmp_path, "colours", 2, 1), own, val)  # seed 7's draw under seed 1
    changed = with_draws(colours, tmp_path)
    assert changed.few_shot(2, 1, "all") == own
    assert colours.few_shot(2, 1, "all") != own
    assert changed.fingerprint != colours.fingerprint
    with pytest.raises(UserError, match="no draw for 2 shots and seed 2"):
        changed.few_shot(2, 2, "all")
    write_draw(draw_file(tmp_path, "colours", 2, 1), [own[0]._replace(path="images/0/elsewhere.png")], [])
    with pytest.raises(UserError, match=r"elsewhere\.png', which is not a training image"):
        changed.few_shot(2, 1, "all")


def test_keys_that_take_for_ever_to_hash_are_refused(colours: data.Dataset, tmp_path: Path) -> None:
    """Tuples of one tuple twice: each level doubles the time of a hash."""
    levels = b"".join(b"h" + bytes([level]) + b"\x86\x94" for level in range(60))
    for end in (b"K\x01s.", b"K\x01u."):
        start = b"\x80\x04}" + (b"(" if end[-2:] == b"u." else b"") + b")\x94"
        path = tmp_path / "shot_1-seed_1.pkl"
        path.write_bytes(start + levels + end)
        with pytest.raises(UserError, match="a key that is no text"):
            import_draw(path, colours)
