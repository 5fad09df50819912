"""The field's few-shot draw, kept as JSON with relative paths; and foreign draws read safely.

Official code pickles its draws with absolute paths and classes of its own library; such a pickle is read
here by an unpickler that knows lists, dicts and that one class, and can run nothing.
"""

import io
import json
import pickle
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench.data import kept
from promptbench.data.splits import Item, read_splits
from promptbench.errors import UserError, brief, shown
from promptbench.storage import default_folder, write_atomic

_LARGEST = 64 << 20  # bytes of a foreign draw: a million pictures
_PATH = 4096  # characters of a path: no file system has longer ones

if TYPE_CHECKING:
    from promptbench.data.dataset import Dataset


def draw_few_shot(
    train: Sequence[Item], val: Sequence[Item], shots: int, seed: int
) -> tuple[list[Item], list[Item]]:
    """The field's few-shot draw (Dassl.pytorch: dassl/data/datasets/base_dataset.py), bit for bit.

    One private stream seeded with ``seed`` first draws ``shots`` train items per class, then
    min(shots, 4) val items per class, classes in order of first appearance in the list. A class with
    fewer items is taken whole and draws nothing.
    """
    stream = random.Random(seed)

    def draw(items: Sequence[Item], k: int) -> list[Item]:
        groups: dict[int, list[Item]] = {}
        for item in items:
            groups.setdefault(item.label, []).append(item)
        return [x for g in groups.values() for x in (stream.sample(g, k) if len(g) >= k else g)]

    return draw(train, shots), draw(val, min(shots, 4))


def kept_draw(dataset: "Dataset", shots: int, seed: int) -> tuple[list[Item], list[Item]]:
    """The draw of a dataset, from the user's cache directory if it is there and whole, else drawn and kept
    there.

    The file's name holds the dataset's fingerprint, so that a changed split is another file.
    """
    name = f"{dataset.name.replace(':', '-')}-{dataset.fingerprint[:16]}-shots{shots}-seed{seed}.json"
    path = default_folder() / "fewshot" / name
    known = kept.read(path)
    if known is not None:
        return [Item(*one) for one in known["train"]], [Item(*one) for one in known["val"]]
    train, val = draw_few_shot(dataset.splits["train"], dataset.splits["val"], shots, seed)
    kept.write(path, {"train": train, "val": val})
    return train, val


def write_draw(path: Path, train: Sequence[Item], val: Sequence[Item]) -> None:
    """A draw in the schema of a split file, with an empty test list."""
    write_atomic(path, json.dumps({"train": train, "val": val, "test": []}, indent=0))


def read_draw(path: Path) -> tuple[list[Item], list[Item]]:
    """What `write_draw` wrote. Raises OSError or UserError."""
    splits, _ = read_splits(path.read_bytes(), str(path))
    return list(splits["train"]), list(splits["val"])


class _Datum:
    """Stands for Dassl's class of one picture: only its attributes are kept."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


#: What a list of pictures needs. Nothing here calls a function or makes a value larger than its part of the
#: file; places in the memo are a dict's, so that a large number reserves nothing.
_OPCODES = (
    "PROTO FRAME MARK STOP EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS "
    "SETITEM SETITEMS SHORT_BINUNICODE BINUNICODE BININT BININT1 BININT2 LONG1 NONE NEWTRUE NEWFALSE "
    "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL NEWOBJ BUILD"
)


class _Reader(pickle._Unpickler):  # the one in C takes all opcodes
    dispatch = {
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _OPCODES.split())
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("dassl.data.datasets.base_dataset", "Datum"):
            return _Datum
        raise pickle.UnpicklingError(f"{module}.{name}")


def import_draw(path: Path, dataset: "Dataset") -> tuple[list[Item], list[Item]]:
    """The pictures of a foreign ``split_fewshot/shot_<K>-seed_<S>.pkl``, as items of ``dataset``.

    Raises UserError if the file holds anything else, or a picture that is not in the dataset's split. Takes
    time and memory in proportion to the file and the dataset, whatever the file holds.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise pickle.UnpicklingError(f"larger than {_LARGEST >> 20} MB")
        found = _Reader(io.BytesIO(content)).load()
        parts = {
            split: _fields(found.get(split, []), len(dataset.splits[split])) for split in ("train", "val")
        }
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except Exception as error:  # a pickle can fail in any way
        raise UserError(
            f"{path} is no few-shot draw of Dassl, or holds more than one, and is not unpickled "
            f"({type(error).__name__}: {brief(str(error))})."
        ) from None
    known = {split: {item.path: item for item in dataset.splits[split]} for split in ("train", "val")}
    return tuple(  # type: ignore[return-value]
        [_match(one, known[split], path, dataset.name) for one in parts[split]] for split in ("train", "val")
    )


def _fields(data: Any, most: int) -> list[tuple[str, int]]:
    """Paths and labels of Datums, at most ``most``. Raises TypeError or ValueError for anything else."""
    if not isinstance(data, list):
        raise TypeError(f"{type(data).__name__} instead of a list")
    if len(data) > most:
        raise ValueError(f"{len(data)} pictures, more than the split's {most}")
    found = []
    for one in data:
        if not isinstance(one, _Datum):
            raise TypeError(f"{type(one).__name__} instead of a Datum")
        where, label = vars(one)["_impath"], vars(one)["_label"]
        if not (type(where) is str and type(label) is int and len(where) <= _PATH):
            raise TypeError("a Datum whose path or label is none")
        found.append((where, label))
    return found


def _match(one: tuple[str, int], known: Mapping[str, Item], path: Path, dataset: str) -> Item:
    """The item whose relative path ends the absolute one, with the same label."""
    parts = re.split(r"[\\/]", one[0])
    for start in range(len(parts)):
        item = known.get("/".join(parts[start:]))
        if item is not None and item.label == one[1]:
            return item
    raise UserError(
        f"{path} names {shown(one[0], 200)} with label {shown(one[1])}, which is not in the split of "
        f"{dataset}."
    )


def draw_file(folder: Path, dataset: str, shots: int, seed: int) -> Path:
    """Where ``promptbench data import-draw`` puts a draw and ``promptbench run --draws`` looks for it."""
    return folder / dataset / f"shot_{shots}-seed_{seed}.json"
