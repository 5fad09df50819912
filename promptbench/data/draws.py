"""The field's few-shot draw, and draws as JSON files with relative paths."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from promptbench.data import kept
from promptbench.data.splits import Item, Splits, read_splits
from promptbench.storage import default_folder, write_atomic


def draw_few_shot(
    train: Sequence[Item], val: Sequence[Item], shots: int, seed: int
) -> tuple[list[Item], list[Item]]:
    """The field's few-shot draw (Dassl.pytorch: dassl/data/datasets/base_dataset.py), bit for bit.

    One private stream seeded with ``seed`` first draws ``shots`` train items per class, then
    min(shots, 4) val items per class, classes in order of first appearance in the list. A class with
    fewer items is taken whole and consumes no random numbers.
    """
    stream = random.Random(seed)

    def draw(items: Sequence[Item], k: int) -> list[Item]:
        groups: dict[int, list[Item]] = {}
        for item in items:
            groups.setdefault(item.label, []).append(item)
        return [x for g in groups.values() for x in (stream.sample(g, k) if len(g) >= k else g)]

    return draw(train, shots), draw(val, min(shots, 4))


def kept_draw(
    splits: Splits, dataset: str, fingerprint: str, shots: int, seed: int
) -> tuple[list[Item], list[Item]]:
    """The draw of a dataset's splits. It is read from the user's cache directory if the file there is whole;
    else it is drawn and kept there.

    The file's name holds the dataset's name and fingerprint, so that a changed split is another file.
    """
    name = f"{dataset.replace(':', '-')}-{fingerprint[:16]}-shots{shots}-seed{seed}.json"
    path = default_folder() / "fewshot" / name
    known = kept.read(path)
    if known is not None:
        return [Item(*one) for one in known["train"]], [Item(*one) for one in known["val"]]
    train, val = draw_few_shot(splits["train"], splits["val"], shots, seed)
    kept.write(path, {"train": train, "val": val})
    return train, val


def write_draw(path: Path, train: Sequence[Item], val: Sequence[Item]) -> None:
    """A draw in the schema of a split file, with an empty test list."""
    write_atomic(path, json.dumps({"train": train, "val": val, "test": []}, indent=0))


def read_draw(path: Path) -> tuple[list[Item], list[Item]]:
    """What `write_draw` wrote. Raises OSError or UserError."""
    splits, _ = read_splits(path.read_bytes(), str(path))
    return list(splits["train"]), list(splits["val"])


def draw_file(folder: Path, dataset: str, shots: int, seed: int) -> Path:
    """Where ``promptbench data import-draw`` puts a draw and ``promptbench run --draws`` looks for it."""
    return folder / dataset / f"shot_{shots}-seed_{seed}.json"
