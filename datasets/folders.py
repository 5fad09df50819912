"""Any own pictures: a folder with one sub-folder per class, or ``train``, ``val``, ``test`` with such.

Class names are the folders' names, or from ``classnames.txt`` (``<folder> <class name>`` per line).
Without splits of its own, 50 % of a class's pictures train, 20 % validate and 30 % test, drawn once and for
all by file name, as CoOp cut the datasets that came without a split.
"""

import random
from functools import partial
from pathlib import Path

from promptbench.cards import Card
from promptbench.data import Found, Item, read_file
from promptbench.datasets.imagenet import read_classnames
from promptbench.errors import UserError
from promptbench.files import hash_value
from promptbench.listing import list_folders


def load(card: Card, folder: Path) -> Found:
    """Splits and pictures under ``folder / card.source``. Raises UserError if it is not such a folder."""
    root = folder / card.source
    own = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    if not own and root.is_dir():
        known = {"train", "val", "test"}
        if capital := sorted(one.name for one in root.iterdir() if one.name.lower() in known):
            raise UserError(f"{root} has {capital[0]!r}; call it {capital[0].lower()!r} if it is a split.")
    if own and not {"train", "test"} <= set(own):
        raise UserError(f"{root} has {' and '.join(own)} but needs train and test (val may be missing).")
    listed = {f"{split}/": list_folders(root / split, card.name) for split in own} or {
        "": list_folders(root, card.name)
    }
    folders = sorted({name for files in listed.values() for name in files})
    for name in folders:
        empty = [split for split in listed if not listed[split].get(name) and split != "val/"]
        if empty:
            raise UserError(
                f"{card.name}: the folder {str(root / empty[0] / name)!r} holds no pictures; add some, or "
                "remove the class."
            )
    path = root / "classnames.txt"
    names = read_classnames(path, card.name, folders) if path.is_file() else {}
    unnamed = [name for name in folders if names and name not in names]
    if unnamed:
        raise UserError(f"{path} has no line for the folder {unnamed[0]!r}; add one.")
    splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(folders):
        for split in own:
            files = listed[f"{split}/"].get(name, [])
            splits[split] += [Item(f"{split}/{name}/{file}", label, names.get(name, name)) for file in files]
        if not own:
            items = [Item(f"{name}/{file}", label, names.get(name, name)) for file in listed[""][name]]
            parts = cut(items, random.Random(name))
            if not parts["test"] and len(items) > 1:  # three pictures: CoOp's rounding leaves none
                parts["test"].append((parts["val"] or parts["train"]).pop())
            for split, part in parts.items():
                splits[split] += part
    sizes = [(root / item.path).stat().st_size for items in splits.values() for item in items]
    return Found(splits, partial(read_file, root), hash_value([splits, sizes]))


def cut(
    items: list[Item], stream: random.Random, shares: tuple[float, float] = (0.5, 0.2)
) -> dict[str, list[Item]]:
    """One class's pictures at random into train, val and test, with Python's round as in CoOp.

    KaiyangZhou/CoOp: datasets/dtd.py, read_and_split_data.
    """
    shuffled = stream.sample(items, len(items))
    train, val = (round(len(items) * share) for share in shares)
    return {"train": shuffled[:train], "val": shuffled[train : train + val], "test": shuffled[train + val :]}
