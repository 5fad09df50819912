"""Miniature trees in the true layouts of the 15 standard datasets: a few tiny pictures per class.

Class names and orders are chosen by hand to trip a loader that guesses: capitals first, underscores, names
of several words, labels that do not appear in order, README files among the folders.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

Entry = tuple[str, int, str]


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade % 256, 40, 200 - shade % 200)).save(path)


def zhou(folder: Path, images: str, source: str, entries: dict[str, list[Entry]]) -> None:
    """A split file and the pictures it names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / source).write_text(
        json.dumps({split: [list(e) for e in items] for split, items in entries.items()})
    )
    for items in entries.values():
        for path, label, _ in items:
            picture(folder / images / path, 20 * label)


def per_class(
    names: Sequence[str],
    path: str,
    sizes: tuple[int, int, int] = (3, 1, 2),
    order: Iterable[int] | None = None,
) -> dict[str, list[Entry]]:
    """Entries class by class, ``path`` with {name} and {number}; ``order`` of labels in train."""
    entries: dict[str, list[Entry]] = {"train": [], "val": [], "test": []}
    for split, size, start in zip(entries, sizes, (0, sizes[0], sizes[0] + sizes[1]), strict=True):
        for label in order if order and split == "train" else range(len(names)):
            for number in range(start, start + size):
                entries[split].append((path.format(name=names[label], number=number), label, names[label]))
    return entries


CALTECH = ["face", "leopard", "motorbike", "accordion", "airplane", "yin_yang"]
PETS = ["abyssinian", "american_bulldog", "yorkshire_terrier"]
CARS = ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 smart fortwo Convertible"]
FLOWERS = ["pink primrose", "hard-leaved pocket orchid", "blackberry lily"]
FOOD = ["apple_pie", "baby_back_ribs", "waffles", "zucchini_bread"]
SUN = ["abbey", "indoor ice_skating_rink", "outdoor apartment_building", "youth_hostel"]
DTD = ["banded", "blotchy", "polka-dotted", "zigzagged"]
EUROSAT = ["Annual Crop Land", "Forest", "Highway or Road", "Sea or Lake"]
UCF = ["Apply_Eye_Makeup", "Baby_Crawling", "Yo_Yo"]
AIRCRAFT = ["707-320", "DC-10", "Cessna 525", "Yak-42"]
WNIDS = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n02489166": "proboscis monkey",
    "n03773504": "missile",
    "n04008634": "missile",
    "n15075141": "toilet paper",
}


def build(root: Path) -> Path:
    """All 15 datasets under ``root``."""
    zhou(
        root / "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        per_class(CALTECH, "{name}/image_{number:04d}.jpg"),
    )
    zhou(root / "oxford_pets", "images", "split_zhou_OxfordPets.json", per_class(PETS, "{name}_{number}.jpg"))
    zhou(
        root / "stanford_cars",
        "",
        "split_zhou_StanfordCars.json",
        per_class(CARS, "cars_train/{name}_{number:05d}.jpg", order=(2, 0, 1)),
    )
    zhou(
        root / "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        per_class(FLOWERS, "image_{name}_{number:05d}.jpg", order=(1, 2, 0)),
    )
    zhou(root / "food-101", "images", "split_zhou_Food101.json", per_class(FOOD, "{name}/{number}.jpg"))
    zhou(root / "sun397", "SUN397", "split_zhou_SUN397.json", per_class(SUN, "a/{name}/sun_{number}.jpg"))
    zhou(
        root / "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        per_class(DTD, "{name}/{name}_{number:04d}.jpg"),
    )
    zhou(
        root / "eurosat", "2750", "split_zhou_EuroSAT.json", per_class(EUROSAT, "{name}/{name}_{number}.jpg")
    )
    zhou(
        root / "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        per_class(UCF, "{name}/v_{name}_g01_c{number:02d}.jpg"),
    )
    aircraft(root / "fgvc_aircraft")
    imagenet(root / "imagenet")
    variants(root)
    return root


def aircraft(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("\n".join(AIRCRAFT) + "\n")
    number = 1_000_000
    for split, size in (("train", 2), ("val", 1), ("test", 2)):
        lines = []
        for label in (3, 0, 2, 1):  # lists are not in label order
            for _ in range(size):
                number += 1
                lines.append(f"{number} {AIRCRAFT[label]}")
                picture(folder / "images" / f"{number}.jpg", 30 * label)
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")


def classnames(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in WNIDS.items()))


def imagenet(folder: Path) -> None:
    classnames(folder)
    for label, wnid in enumerate(WNIDS):
        for number in (10, 2, 1):
            picture(folder / "images" / "train" / wnid / f"{wnid}_{number}.JPEG", 30 * label)
        picture(folder / "images" / "val" / wnid / f"ILSVRC2012_val_{label:08d}.JPEG", 30 * label)


def variants(root: Path) -> None:
    for name in ("imagenetv2", "imagenet-sketch", "imagenet-adversarial", "imagenet-rendition"):
        classnames(root / name)
    for label, wnid in enumerate(WNIDS):
        v2 = root / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / str(label)
        picture(v2 / "a.jpeg", label)
        picture(root / "imagenet-sketch" / "images" / wnid / "sketch_0.JPEG", label)
    for folder, images, kept in (
        ("imagenet-adversarial", "imagenet-a", ("n01443537", "n04008634")),
        ("imagenet-rendition", "imagenet-r", ("n02489166", "n03773504", "n15075141")),
    ):
        for wnid in kept:
            picture(root / folder / images / wnid / "x.jpg", 7)
        (root / folder / images / "README.txt").write_text("not a class")
