"""Few-shot draws of official code, read safely.

Official code pickles its draws with absolute paths and classes of its own library. The unpickler here knows
lists, dicts and that one class, and can run nothing.
"""

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptbench.data.dataset import Dataset
from promptbench.data.splits import Item
from promptbench.errors import UserError, brief, shown

_LARGEST = 64 << 20  # bytes of an official draw: a million images
_PATH = 4096  # characters of a path: no file system has longer ones


_PYTHON = pickle._Unpickler.dispatch  # what each opcode does


class _Datum:
    """Replaces Dassl's class of one image; it has attributes only."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise TypeError("a Datum without attributes")
        self.__dict__.update(state)


#: What a list of images needs. No opcode here calls a function or makes a value larger than its part of the
#: file; the memo is a dict, so that a large index allocates nothing.
_OPCODES = (
    "PROTO FRAME MARK STOP EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS "
    "SETITEM SETITEMS SHORT_BINUNICODE BINUNICODE BININT BININT1 BININT2 LONG1 NONE NEWTRUE NEWFALSE "
    "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL NEWOBJ BUILD"
)


def _require_names(keys: list[Any]) -> None:
    """Refuse keys of a dict that are no text: the hash of nested tuples takes time without bound."""
    if not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError("a key that is no text")


def _set_item(reader: Any) -> None:
    _require_names(reader.stack[-2:-1])
    _PYTHON[pickle.SETITEM[0]](reader)


def _set_items(reader: Any) -> None:
    _require_names(reader.stack[::2])
    _PYTHON[pickle.SETITEMS[0]](reader)


class _Reader(pickle._Unpickler):  # the C version accepts all opcodes
    dispatch = {
        **{code: _PYTHON[code] for code in (getattr(pickle, name)[0] for name in _OPCODES.split())},
        **{pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("dassl.data.datasets.base_dataset", "Datum"):
            return _Datum
        raise pickle.UnpicklingError(f"{module}.{name}")


def import_draw(path: Path, dataset: Dataset) -> tuple[list[Item], list[Item]]:
    """The images of an official ``split_fewshot/shot_<K>-seed_<S>.pkl``, as items of ``dataset``.

    Raises UserError if the file holds anything else, or an image that is not in the dataset's split. Time and
    memory are proportional to the size of the file and of the dataset, whatever the file contains.
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
    except Exception as error:  # a pickle can raise anything
        raise UserError(
            f"{path} is not a few-shot draw of Dassl, or contains something else, and was not unpickled "
            f"({type(error).__name__}: {brief(str(error))})."
        ) from None
    known = {split: {item.path: item for item in dataset.splits[split]} for split in ("train", "val")}
    train, val = (
        [_match(one, known[split], path, dataset.name) for one in parts[split]] for split in ("train", "val")
    )
    return train, val


def _fields(data: Any, most: int) -> list[tuple[str, int]]:
    """Paths and labels of Datums, at most ``most``. Raises TypeError or ValueError for anything else."""
    if not isinstance(data, list):
        raise TypeError(f"{type(data).__name__} instead of a list")
    if len(data) > most:
        raise ValueError(f"{len(data)} images, more than the split's {most}")
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
