"""The embedded default is what its card says: clean hold-out, licences named, sizes kept."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from promptbench.data.dataset import load
from tools.pocket import drawings
from tools.pocket.data import NEAR, Withheld

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "datasets" / "pocket"
RECIPE = ROOT / "tools" / "pocket"
DRAWN = [path.stem for path in sorted(POCKET.glob("*.zip"))]


@pytest.fixture(scope="module")
def seen() -> np.ndarray:
    """Perceptual hashes of all pictures of pre-training."""
    return np.load(RECIPE / "pretraining_hashes.npy")


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return (RECIPE / "captions.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", DRAWN)
def test_no_picture_is_a_near_copy_of_pretraining_or_of_another_split(name: str, seen: np.ndarray) -> None:
    dataset = load(name)
    hashes, owners = [], []
    with zipfile.ZipFile(POCKET / f"{name}.zip") as archive:
        for split, items in dataset.splits.items():
            for item in items:
                with Image.open(io.BytesIO(archive.read(item.path))) as picture:
                    assert picture.size == (drawings.SIDE, drawings.SIDE)
                    pixels = np.asarray(picture.convert("RGB"))
                assert drawings.usable(pixels), f"{item.path} shows nothing"
                hashes.append(drawings.perceptual_hash(pixels))
                owners.append((item.label, split))
    own = np.array(hashes, np.uint64)
    distances, _ = drawings.nearest(own, seen)
    assert distances.min() > NEAR
    labels = np.array([label for label, _ in owners])
    splits = np.array([split for _, split in owners])
    for label in np.unique(labels):
        part, where = own[labels == label], splits[labels == label]
        near = np.bitwise_count(part[:, None] ^ part[None]) <= NEAR
        assert not (near & (where[:, None] != where[None])).any()


def test_the_check_for_near_copies_can_fail(seen: np.ndarray) -> None:
    assert drawings.nearest(seen[:3], seen)[0].max() == 0
    assert drawings.nearest(seen[:3] ^ np.uint64(0b111), seen)[0].max() <= 3


def test_no_vendor_is_on_both_sides() -> None:
    parts = re.split(r"^## ", (POCKET / "ATTRIBUTION.md").read_text("utf-8"), flags=re.M)[1:]
    vendors = {
        part.splitlines()[0]: {
            line.split(": ", 1)[1].split(", ")[1]
            for line in part.splitlines()
            if "pictures" in line and line.startswith("- ")
        }
        for part in parts
    }
    trained = vendors.pop("Backbone: pictures it was trained on")
    assert len(trained) > 15
    for title, others in vendors.items():
        assert not trained & others, title


def test_sets_of_the_archives_are_attributed() -> None:
    text = (POCKET / "ATTRIBUTION.md").read_text("utf-8")
    for name in DRAWN:
        section = text.split(f"## Pictures of `{name}`")[1].split("\n## ")[0]
        named = set(re.findall(r"^- (\S+) ", section, flags=re.M))
        with zipfile.ZipFile(POCKET / f"{name}.zip") as archive:
            used = {path.split("--")[1] for path in archive.namelist() if path.endswith(".webp")}
        assert named == used


@pytest.mark.parametrize("name", ["kinds", "symbols", "finegrained", "digits"])
def test_class_names_were_no_captions(name: str, captions: list[str]) -> None:
    assert not set(load(name).classnames) & set(captions)


def test_words_of_finegrained_novel_classes_are_in_no_caption(captions: list[str]) -> None:
    names = load("finegrained").classnames
    novel = Withheld([], names[(len(names) + 1) // 2 :])
    assert not [caption for caption in captions if caption in novel]
    base = Withheld([], names[: (len(names) + 1) // 2])
    assert [caption for caption in captions if caption in base]  # the check can fail


def test_no_downstream_set_was_trained_on() -> None:
    sets = yaml.safe_load((RECIPE / "sets.yaml").read_text("utf-8"))
    trained = {name for group in sets["pretraining"].values() for name in group}
    assert not trained & {name for group in sets["suite"].values() for name in group}


def test_a_vendors_drawings_of_a_class_serve_one_split() -> None:
    sets = yaml.safe_load((RECIPE / "sets.yaml").read_text("utf-8"))["suite"]
    for name in ("icons", "symbols"):
        for split, items in load(name).splits.items():
            assert {item.path.split("--")[1] for item in items} <= set(sets[split])


def test_an_emoji_of_kinds_is_in_one_split() -> None:
    splits = load("kinds").splits
    names = {
        split: {Path(item.path).stem.split("--")[2] for item in items} for split, items in splits.items()
    }
    assert not names["train"] & names["test"]
    assert not names["train"] & names["val"]


def test_enough_shots_and_small_files() -> None:
    for name in (*DRAWN, "digits"):
        labels = [item.label for item in load(name).splits["train"]]
        assert np.bincount(labels).min() >= 16, name
    assert (POCKET / "backbone" / "pocket.safetensors").stat().st_size <= 12_000_000
    assert sum(path.stat().st_size for path in POCKET.rglob("*") if path.is_file()) <= 24_000_000
