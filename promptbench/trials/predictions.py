"""The predicted class of every test image, kept beside a record: methods can be compared image by image.

A safetensors file with two vectors per evaluation i of the record, ``<i>.labels`` and ``<i>.predicted``:
indices into the classes of that evaluation, in the order of the tested images (`Counts.order` is its hash).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import load, save

from promptbench.errors import UserError
from promptbench.storage import canonical
from promptbench.training.files import PREDICTIONS
from promptbench.trials.record import Record


class Predictions(NamedTuple):
    """By test image: the class it is of and the class it was taken for, both [N]."""

    labels: "np.ndarray[Any, Any]"
    predicted: "np.ndarray[Any, Any]"


def pack(answers: Sequence[tuple[Sequence[int], Sequence[int]]], trial: str) -> bytes:
    """The file's bytes: (labels, predicted) of each evaluation of the trial with that hash, in order."""
    vectors = {
        f"{i}.{name}": np.asarray(values, np.uint16 if max(values) < 1 << 16 else np.uint32)
        for i, pair in enumerate(answers)
        for name, values in zip(Predictions._fields, pair, strict=True)
    }
    return save(vectors, {"promptbench": canonical({"trial": trial})})


def read_predictions(record: Record, folder: Path) -> list[Predictions]:
    """The predictions beside a record in ``folder``, one per evaluation.

    Raises UserError if there are none (records of schema 1), or if they are not what the record counts.
    """
    if PREDICTIONS not in record.files:
        raise UserError(
            f"The record in {folder} has no predictions (an older version made it); run it again."
        )
    if damage := record.damage(folder):
        raise UserError(f"{folder}: {damage}; run the trial again.")
    try:
        vectors = load((folder / PREDICTIONS).read_bytes())
        found = [
            Predictions(vectors[f"{i}.labels"], vectors[f"{i}.predicted"])
            for i in range(len(record.evaluations))
        ]
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(
            f"The predictions in {folder} cannot be read ({error}); run the trial again."
        ) from None
    for one, counts in zip(found, record.evaluations, strict=True):
        if (int((one.labels == one.predicted).sum()), len(one.labels)) != (counts.correct, counts.total):
            raise UserError(f"The predictions in {folder} are not those of its record; run the trial again.")
    return found
