"""Datasets of the CoOp data folder that have one of its published split files (``split_zhou_*.json``)."""

from functools import partial
from pathlib import Path

from promptbench.data.cards import Card
from promptbench.data.dataset import Found, read_file
from promptbench.data.splits import read_splits
from promptbench.errors import UserError


def load(card: Card, folder: Path) -> Found:
    """The published splits, in file order; images under ``folder / card.images``.

    Whether the images exist is checked by `promptbench data check` only.
    Raises UserError without the split file: another split would not match published numbers.
    """
    path = folder / card.source
    if not path.is_file():
        raise UserError(
            f"{card.name}: the published split file is missing; expected {path}. Get it from CoOp's "
            "DATASETS.md, or add --allow-nonstandard-split to make a new split that is labelled so."
        )
    splits, fingerprint = read_splits(path.read_bytes(), str(path))
    return Found(splits, partial(read_file, folder / card.images), fingerprint, official=True)
