"""The user's own images: a folder with one sub-folder per class, or ``train``, ``val``, ``test`` with such.

Images in deeper folders are of the class whose folder they lie under. A folder called ``train`` that holds
images directly is a class; one that holds sub-folders only is a split (``training``, ``valid``,
``validation`` and ``testing`` are understood too). Class names are the folders' names, or from
``classnames.txt`` (``<folder> <class name>`` per line). Without splits of its own, 50 % of a class's images
train, 20 % validate and 30 % test, drawn deterministically by file name, as CoOp cut the datasets that came
without a split.
"""

import random
from functools import partial
from pathlib import Path

from promptbench.data.cards import Card
from promptbench.data.contents import contents, frames_note
from promptbench.data.dataset import Found, read_file
from promptbench.data.folders import Tree, list_tree, note, outside_note
from promptbench.data.splits import Item
from promptbench.datasets.imagenet import read_classnames
from promptbench.errors import UserError
from promptbench.storage import hash_value

ORDER = ("train", "val", "test")
SPLITS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val"},
}


def load(card: Card, folder: Path) -> Found:
    """Splits and images under ``folder / card.source``. Raises UserError if it is not such a folder."""
    root = folder / card.source
    tree = list_tree(root, card.name)
    own = _own_splits(root, tree)
    listed = {split: _classes(tree, f"{own[split]}/") for split in own} or {"": _classes(tree, "")}
    folders = sorted({name for files in listed.values() for name in files})
    if not folders:
        raise UserError(f"{card.name}: there is no sub-folder in {root}; expected one per class.")
    for name in folders:
        empty = [split for split in listed if not listed[split].get(name) and split != "val"]
        if empty:
            raise UserError(
                f"{card.name}: the folder {str(root / own.get(empty[0], '') / name)!r} holds no images; "
                "add some, or remove the class."
            )
    path = root / "classnames.txt"
    names = read_classnames(path, card.name, folders) if path.is_file() else {}
    unnamed = [name for name in folders if names and name not in names]
    if unnamed:
        raise UserError(f"{path} has no line for the folder {unnamed[0]!r}; add one.")
    splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(folders):
        called = names.get(name, name)
        for split, within in own.items():
            files = listed[split].get(name, [])
            splits[split] += [Item(f"{within}/{name}/{file}", label, called) for file in files]
        if not own:
            items = [Item(f"{name}/{file}", label, called) for file in listed[""][name]]
            parts = cut(items, random.Random(name))
            if not parts["test"] and len(items) > 1:  # three images: CoOp's rounding leaves none
                parts["test"].append((parts["val"] or parts["train"]).pop())
            for split, part in parts.items():
                splits[split] += part
    paths = [item.path for items in splits.values() for item in items]
    found = contents(root, paths)
    notes = [*_left_out(tree, own), *outside_note(tree.outside), *frames_note(paths, found)]
    fingerprint = hash_value([splits, [one.sha256 for one in found]])
    return Found(splits, partial(read_file, root), fingerprint, notes=tuple(notes))


def _own_splits(root: Path, tree: Tree) -> dict[str, str]:
    """The folders that are splits, by split; none if the folders of ``root`` are classes.

    Raises UserError if this is ambiguous, or if train or test is missing.
    """
    top = [folder for folder in tree.images if folder and "/" not in folder]
    deep = {folder.partition("/")[0] for folder in tree.images if "/" in folder}
    named = [name for name in top if name.lower() in SPLITS]
    found = [name for name in named if name in deep and not tree.images[name]]
    if not found:
        if named and named == top and any(tree.images[name] for name in top):
            raise UserError(
                f"{root} has images directly in {' and '.join(top)}; put them into one sub-folder per class."
            )
        for name in top:
            inside = {SPLITS.get(part.lower()) for part in _below(tree, name)}
            if {"train", "test"} <= inside:
                raise UserError(
                    f"{root / name} has folders train and test in a class; put them the other way round, as "
                    f"train/{name} and test/{name}."
                )
        return {}
    if capital := sorted(name for name in found if name != name.lower()):
        raise UserError(f"{root} has {capital[0]!r}; call it {capital[0].lower()!r} if it is a split.")
    own = {SPLITS[name]: name for name in sorted(found, key=lambda name: ORDER.index(SPLITS[name]))}
    if len(own) < len(found):
        raise UserError(
            f"{root} has {' and '.join(found)}, two of which name the same split; keep one of them."
        )
    if not {"train", "test"} <= own.keys():
        raise UserError(
            f"{root} has {' and '.join(found)} but needs train and test (val may be missing); a class of "
            "that name holds its images directly."
        )
    if mixed := [name for name in named if tree.images[name]]:
        raise UserError(f"{root / mixed[0]} holds images directly; put them into one sub-folder per class.")
    return own


def _below(tree: Tree, name: str) -> list[str]:
    return [folder.split("/")[1] for folder in tree.images if folder.startswith(f"{name}/")]


def _classes(tree: Tree, within: str) -> dict[str, list[str]]:
    """Classes of the folder ``within`` ("" or with "/" at its end) and the sorted paths of their images,
    from the class's folder."""
    found: dict[str, list[str]] = {}
    for folder, names in tree.images.items():
        if folder and folder.startswith(within):
            name, _, deeper = folder.removeprefix(within).partition("/")
            found.setdefault(name, []).extend(f"{deeper}/{one}" if deeper else one for one in names)
    return {name: sorted(files) for name, files in found.items()}


def _left_out(tree: Tree, own: dict[str, str]) -> list[str]:
    """Notes on files in the dataset's folder that are not part of the dataset."""
    used = set(own.values())
    beside = [folder for folder in tree.images if folder and folder.partition("/")[0] not in used and used]
    images = [*tree.images[""], *(f"{folder}/{one}" for folder in beside for one in tree.images[folder])]
    others = [path for path in tree.others if "/" in path and path.partition("/")[0] not in {*beside}]
    return [
        *note("left out, since they are in no class folder", images),
        *note("left out, since their format is not read", others),
    ]


def cut(
    items: list[Item], stream: random.Random, shares: tuple[float, float] = (0.5, 0.2)
) -> dict[str, list[Item]]:
    """One class's images at random into train, val and test, with Python's round as in CoOp.

    KaiyangZhou/CoOp: datasets/dtd.py, read_and_split_data.
    """
    shuffled = stream.sample(items, len(items))
    train, val = (round(len(items) * share) for share in shares)
    return {"train": shuffled[:train], "val": shuffled[train : train + val], "test": shuffled[train + val :]}
