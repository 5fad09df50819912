"""ImageNet and its variants: folders of images, class names from ``classnames.txt``.

``options.layout`` of the card: ``train-val`` (ImageNet itself: ``train/<wnid>`` and ``val/<wnid>``),
``numbers`` (ImageNetV2: folder k is class k) or ``wnids`` (Sketch, A, R: the folders that are there are the
classes, so A and R are 200-way). KaiyangZhou/CoOp: datasets/imagenet*.py.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from promptbench.data.cards import Card
from promptbench.data.dataset import Found, read_file
from promptbench.data.folders import list_folders
from promptbench.data.splits import Item
from promptbench.errors import UserError
from promptbench.storage import hash_value

LAYOUTS = ("train-val", "numbers", "wnids")


def load(card: Card, folder: Path) -> Found:
    """ImageNet's val images are val and test split; variants have a test split only.

    File names are sorted: the official code takes them as the file system lists them, so its few-shot
    sample of ImageNet differs between machines. Raises UserError for a missing list or folder.
    """
    root, layout = folder / card.images, card.options.get("layout")
    if layout not in LAYOUTS:
        raise UserError(
            f"The card of {card.name} needs options.layout, one of {', '.join(LAYOUTS)}, for this loader."
        )
    names = read_classnames(folder / "classnames.txt", card.name)
    if layout == "train-val":
        listed = {split: list_folders(root / split, card.name) for split in ("train", "val")}
        if (odd := sorted(set(listed["train"]) ^ set(listed["val"]))) != []:
            raise UserError(
                f"{card.name}: the folder {odd[0]!r} is in only one of {root}/train and {root}/val, which "
                "would shift every later label; restore it."
            )
    else:
        listed = {"test": list_folders(root, card.name)}
    folders = sorted(next(iter(listed.values())))
    if layout == "numbers":
        if set(folders) != {str(number) for number in range(len(folders))}:
            raise UserError(f"{card.name}: the folders of {root} must be 0, 1, 2 ...; restore them.")
        folders.sort(key=int)
        if len(folders) > len(names):
            raise UserError(f"{card.name} has {len(folders)} folders but {len(names)} class names.")
        classnames = tuple(list(names.values())[: len(folders)])
    else:
        missing = [wnid for wnid in folders if wnid not in names]
        if missing:
            raise UserError(
                f"{card.name}: classnames.txt has no name for the folder {missing[0]!r}; restore it."
            )
        classnames = tuple(names[wnid] for wnid in folders)
    splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for split, files in listed.items():
        within = f"{split}/" if layout == "train-val" else ""
        for label, name in enumerate(folders):
            splits[split] += [
                Item(f"{within}{name}/{file}", label, classnames[label]) for file in files[name]
            ]
    if layout == "train-val":
        splits["test"] = splits["val"]
    # Names of files stand for the list: hashing a million images' paths one by one takes longer than this.
    fingerprint = hash_value(
        [
            classnames,
            layout,
            {split: [folders, [files[n] for n in folders]] for split, files in listed.items()},
        ]
    )
    return Found(splits, partial(read_file, root), fingerprint, classnames, official=True)


def read_classnames(path: Path, dataset: str, folders: Sequence[str] = ()) -> dict[str, str]:
    """``<wnid> <class name>`` per line, in file order. With ``folders``, a line's folder is the longest of
    them that it begins with, so that names of folders may contain spaces. Raises UserError if it is not that.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{dataset}: {path} is not UTF-8 text; save it as UTF-8.") from None
    except OSError:
        raise UserError(
            f"{dataset}: expected the list of class names at {path}; get it from CoOp's DATASETS.md."
        ) from None
    names: dict[str, str] = {}
    longest_first = sorted(folders, key=len, reverse=True)
    for number, line in enumerate(lines, 1):
        text = " ".join(line.split())
        folder = next((one for one in longest_first if text.startswith(f"{one} ")), text.partition(" ")[0])
        name = text[len(folder) :].strip()
        if text and not name:
            raise UserError(f"{path}, line {number}: expected '<folder> <class name>', not {line!r}.")
        if folders and text and folder not in folders:
            raise UserError(f"{path}, line {number}: there is no folder {folder!r}; correct the line.")
        if folder in names:
            raise UserError(f"{path}, line {number}: {folder!r} has a name already; remove one of the lines.")
        if text:
            names[folder] = name
    return names
