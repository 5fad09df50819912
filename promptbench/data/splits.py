"""Splits into training, validation and test images, and the field's JSON for them."""

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptbench.errors import UserError
from promptbench.storage import hash_value


class Item(NamedTuple):
    """One image: path relative to the dataset's root, label from 0, class name as stored."""

    path: str
    label: int
    classname: str


Splits = Mapping[str, Sequence[Item]]
_Entry = tuple[
    Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")],
    Annotated[int, Field(ge=0)],
    Annotated[str, Field(pattern=r"\S")],
]


class _SplitFile(BaseModel):
    """The field's split JSON (KaiyangZhou/CoOp: datasets/oxford_pets.py, read_split)."""

    model_config = ConfigDict(strict=True)

    train: list[_Entry]
    val: list[_Entry]
    test: list[_Entry]


def read_splits(content: bytes, where: str) -> tuple[Splits, str]:
    """Splits in the field's JSON schema {"train": [[path, label, classname], ...], "val", "test"}, and
    their hash. Order is kept: the few-shot draw depends on it. Paths are normalised, so that one image has
    one path: "./a//b.png" and "a\\b.png" are "a/b.png".

    Raises UserError if it is anything else, or if a path would lead outside the image root.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{where} is UTF-16 text; save it as UTF-8.")
    try:
        found = _SplitFile.model_validate_json(content.removeprefix(b"\xef\xbb\xbf"))  # a byte order mark
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{where} is not a split file: it needs train, val and test, each a list of "
            f"[path, label, class name] ({at}: {first['msg']})."
        ) from None
    splits = {
        split: [Item(normal(path), label, name) for path, label, name in getattr(found, split)]
        for split in ("train", "val", "test")
    }
    check_paths(splits, where)
    return splits, hash_value(splits)


def normal(path: str) -> str:
    """The normal form of a path in a split file, with "/" between its parts."""
    return posixpath.normpath(path.replace("\\", "/"))


def check_paths(splits: Splits, where: str) -> None:
    """Raise UserError if a path in the splits would lead outside the image root."""
    for item in (item for items in splits.values() for item in items):
        path = PurePosixPath(item.path)
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:/", item.path):
            raise UserError(
                f"{where} names {item.path!r}, which lies outside the image root; correct the path."
            )


def restrict(items: Iterable[Item], labels: Sequence[int], limit: int | None = None) -> list[Item]:
    """Items whose label is in ``labels``, renumbered by their place in it; at most ``limit`` per class."""
    new = {label: i for i, label in enumerate(labels)}
    left = dict.fromkeys(labels, limit if limit is not None else -1)
    kept = []
    for item in items:
        if item.label in new and left[item.label] != 0:
            left[item.label] -= 1
            kept.append(item._replace(label=new[item.label]))
    return kept


def overlap(splits: Splits) -> dict[tuple[str, str], list[str]]:
    """Paths that are in two splits, sorted, by pair of splits. Where validation and test images are the same
    on purpose (ImageNet), that pair is left out."""
    paths = {split: [item.path for item in items] for split, items in splits.items()}
    pairs = [("train", "val"), ("train", "test")]
    pairs += [("val", "test")] if paths["val"] != paths["test"] else []
    both = {pair: sorted(set(paths[pair[0]]) & set(paths[pair[1]])) for pair in pairs}
    return {pair: names for pair, names in both.items() if names}
