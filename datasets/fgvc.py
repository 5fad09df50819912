"""FGVC-Aircraft from its official variant lists (KaiyangZhou/CoOp: datasets/fgvc_aircraft.py)."""

from functools import partial
from pathlib import Path

from promptbench.data.cards import Card
from promptbench.data.dataset import Found, read_file
from promptbench.data.folders import read_lines
from promptbench.data.splits import Item
from promptbench.errors import UserError
from promptbench.storage import hash_value


def load(card: Card, folder: Path) -> Found:
    """Labels are line numbers of ``variants.txt``; a list's line is an image's number and its variant."""
    names = read_lines(folder / "variants.txt", card.name)
    label = {name: number for number, name in enumerate(names)}
    splits = {}
    for split in ("train", "val", "test"):
        path = folder / f"images_variant_{split}.txt"
        items = []
        for line in read_lines(path, card.name):
            number, _, name = line.partition(" ")
            if name not in label:
                raise UserError(
                    f"{path} names the variant {name!r}, which is not in variants.txt; restore it."
                )
            items.append(Item(f"{number}.jpg", label[name], name))
        splits[split] = items
    return Found(splits, partial(read_file, folder / card.images), hash_value(splits), official=True)
