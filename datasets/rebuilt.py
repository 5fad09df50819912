"""New splits for datasets whose published split file is missing, labelled as non-standard.

The rules are those of CoOp's files (KaiyangZhou/CoOp: datasets/*.py), with a shuffle that is the same on
every machine; the published shuffle cannot be reproduced. ``options.rebuild`` of the card names the rule.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from promptbench.data.cards import Card
from promptbench.data.dataset import Found, read_file
from promptbench.data.folders import list_folders, read_lines
from promptbench.data.splits import Item
from promptbench.datasets.folders import cut
from promptbench.errors import UserError
from promptbench.storage import hash_value

CALTECH = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


def load(card: Card, folder: Path) -> Found:
    """Train, val and test by the card's rule. Raises UserError if what the rule reads is missing."""
    rule = RULES.get(card.options.get("rebuild", ""))
    if rule is None:
        raise UserError(f"{card.name}: there is no rule to make a new split; get {folder / card.source}.")
    try:
        train, test = rule(folder, card)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{card.name}: cannot make a split from the lists in {folder} ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); restore them."
        ) from None
    # 50/20/30 of all images where there is no official test list, else a fifth of train for val
    shares = (0.5, 0.2) if test is None else (0.8, 0.2)
    splits: dict[str, list[Item]] = {"train": [], "val": [], "test": list(test or [])}
    for label in sorted({item.label for item in train}):
        mine = [item for item in train if item.label == label]
        parts = cut(mine, random.Random(label), shares)
        if test is not None:  # round() may leave one over
            parts = {"val": parts["val"], "train": parts["train"] + parts["test"]}
        for split, items in parts.items():
            splits[split] += items
    note = "non-standard split: made here, the published split file was missing"
    images = partial(read_file, folder / card.images)
    return Found(splits, images, hash_value([note, splits]), None, note, official=True)


Lists = tuple[list[Item], list[Item] | None]


def _folders(folder: Path, card: Card) -> Lists:
    listed = list_folders(folder / card.images, card.name)
    kept = [name for name in sorted(listed) if name not in ("BACKGROUND_Google", "Faces_easy")]
    rename = {**CALTECH, **EUROSAT}
    items = [Item(f"{n}/{file}", i, rename.get(n, n)) for i, n in enumerate(kept) for file in listed[n]]
    return items, None


def _pets(folder: Path, card: Card) -> Lists:
    def read(name: str) -> list[Item]:
        items = []
        for line in read_lines(folder / "annotations" / name, card.name):
            image, number = line.split()[:2]
            items.append(Item(f"{image}.jpg", int(number) - 1, image.rpartition("_")[0].lower()))
        return items

    return read("trainval.txt"), read("test.txt")


def _cars(folder: Path, card: Card) -> Lists:
    names = [_year_first(str(name)) for name in _matlab(folder / "devkit" / "cars_meta.mat", "class_names")]

    def read(path: Path, images: str) -> list[Item]:
        return [
            Item(f"{images}/{one['fname']}", int(one["class"]) - 1, names[int(one["class"]) - 1])
            for one in _matlab(path, "annotations")
        ]

    train = read(folder / "devkit" / "cars_train_annos.mat", "cars_train")
    return train, read(folder / "cars_test_annos_withlabels.mat", "cars_test")


def _year_first(name: str) -> str:
    """'Acura RL Sedan 2012' -> '2012 Acura RL Sedan'."""
    words = name.split()
    return " ".join([words[-1], *words[:-1]])


def _flowers(folder: Path, card: Card) -> Lists:
    labels = _matlab(folder / "imagelabels.mat", "labels")
    names = json.loads((folder / "cat_to_name.json").read_text("utf-8"))
    items = [
        Item(f"image_{number:05d}.jpg", int(label) - 1, names[str(int(label))])
        for number, label in enumerate(labels, 1)
    ]
    return items, None


def _sun(folder: Path, card: Card) -> Lists:
    labels = {path: number for number, path in enumerate(read_lines(folder / "ClassName.txt", card.name))}

    def read(name: str) -> list[Item]:
        items = []
        for line in read_lines(folder / name, card.name):
            where = line.rpartition("/")[0]
            words = where.strip("/").split("/")[1:]  # without the leading letter
            items.append(Item(line.strip("/"), labels[where], " ".join(reversed(words))))
        return items

    return read("Training_01.txt"), read("Testing_01.txt")


def _ucf(folder: Path, card: Card) -> Lists:
    lists = folder / "ucfTrainTestlist"
    labels = {
        line.split()[1]: int(line.split()[0]) - 1 for line in read_lines(lists / "classInd.txt", card.name)
    }

    def read(name: str) -> list[Item]:
        items = []
        for line in read_lines(lists / name, card.name):
            action, _, video = line.split()[0].partition("/")
            shown = "_".join(re.findall("[A-Z][^A-Z]*", action))
            items.append(Item(f"{shown}/{video.removesuffix('.avi')}.jpg", labels[action], shown))
        return items

    return read("trainlist01.txt"), read("testlist01.txt")


def _matlab(path: Path, key: str) -> Sequence[Any]:
    from scipy.io import loadmat

    found: Sequence[Any] = loadmat(path, squeeze_me=True)[key]
    return found


RULES: dict[str, Callable[[Path, Card], Lists]] = {
    "folders": _folders,
    "pets": _pets,
    "cars": _cars,
    "flowers": _flowers,
    "sun": _sun,
    "ucf": _ucf,
}
