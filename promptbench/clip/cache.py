"""Frozen features on disk: computed once, keyed by everything they depend on, never trusted blindly.

Several processes may share a folder: each of two that want the same features at once waits for the other
instead of computing them too, files appear whole or not at all, and a reader keeps a file that another
process deletes. The folder stays below ``PROMPTBENCH_CACHE_GB`` (default 20): what was not used for the
longest time goes first.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from promptbench.errors import UserError
from promptbench.storage import canonical, hash_value, lock, remove, temporary, write_atomic

VERSION = 3  # to be raised when the code gives other features under an unchanged key
SUFFIX, LOCK = ".safetensors", ".lock"
_FEATURES, _LOCK = (re.compile(f"[0-9a-f]{{64}}{re.escape(suffix)}") for suffix in (SUFFIX, LOCK))
_UNFINISHED = re.compile(rf"\.{_FEATURES.pattern}\.\w+")
_TOLD = ("what", "weights", "precision", "dataset", "draw")  # what of a key `promptbench cache ls` shows
_Seen = tuple[float, int, Path]  # of a file: when last used, bytes, path


def default_bound() -> int:
    """Bytes of features to keep: ``PROMPTBENCH_CACHE_GB`` or 20 GB. Raises UserError for no number."""
    given = os.environ.get("PROMPTBENCH_CACHE_GB") or "20"
    try:
        return int(float(given) * 1e9)
    except (ValueError, OverflowError):
        raise UserError(
            f"PROMPTBENCH_CACHE_GB={given} is no number of gigabytes; use one such as 20."
        ) from None


class FeatureCache:
    """Tensors by key in ``folder`` (None: nothing is kept). A damaged file is computed anew."""

    def __init__(self, folder: Path | None, bound: int | None = None) -> None:
        self.folder = folder
        self.bound = default_bound() if bound is None else bound

    def get(self, key: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of ``key`` on the CPU, from disk or from ``compute``.

        ``key`` is JSON-like and must name every input of the computation.
        """
        if self.folder is None:
            return compute().cpu()
        path = self.folder / f"{hash_value([VERSION, key])}{SUFFIX}"
        if (found := _read(path)) is not None:
            return found
        turn = path.with_suffix(LOCK)
        with lock(turn):  # it saves work; the files are safe without it
            try:
                if (found := _read(path)) is not None:  # another process was at it
                    return found
                tensor = compute().cpu().contiguous()
                about = canonical({name: key[name] for name in _TOLD if name in key})
                with suppress(UserError):  # a cache that cannot be written costs time, never a result
                    write_atomic(
                        path, save({"features": tensor}, {"sha256": _digest(tensor), "about": about})
                    )
                    self._bound(path)
                return tensor
            finally:
                # Whoever waits on the deleted file looks for the features first when its turn comes.
                remove(turn)

    def _bound(self, newest: Path) -> None:
        """Delete what was not used for the longest time until the folder is below its bound."""
        entries = sorted(self._features(unfinished=True))
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.bound:
                return
            if path != newest and remove(path):
                total -= size

    def _features(self, unfinished: bool = False) -> Iterator[_Seen]:
        """The files of features; also those that nobody may ever finish."""
        for path in _inside(self.folder):
            if _FEATURES.fullmatch(path.name) or (unfinished and _UNFINISHED.fullmatch(path.name)):
                yield from _seen(path)

    def _leftovers(self) -> Iterator[_Seen]:
        """What killed processes left: locks, files they had not finished, work of nodes of a Ray cluster."""
        if self.folder is None:
            return
        for path in _inside(self.folder):
            if _UNFINISHED.fullmatch(path.name) or _LOCK.fullmatch(path.name):
                yield from _seen(path)
        others = (self.folder / name for name in ("contents", "fewshot", "listings"))
        for path in (path for folder in others for path in _inside(folder)):
            if temporary(path.name):
                yield from _seen(path)
        for folder, _, names in os.walk(self.folder / "ray"):
            for name in names:
                yield from _seen(Path(folder, name))

    def entries(self) -> list["Entry"]:
        """What is in the folder, most recently used first."""
        return [Entry(*one, _about(one[2])) for one in sorted(self._features(), reverse=True)]

    def leftovers(self) -> tuple[int, int]:
        """How many files killed processes left in the folder, and their bytes."""
        sizes = [size for _, size, _ in self._leftovers()]
        return len(sizes), sum(sizes)

    def clear(self) -> tuple[int, int]:
        """Delete all features and leftovers; how many files and bytes that were. Nothing else in the folder
        is touched, and whoever is at work computes anew what it misses."""
        found = [*self._features(), *self._leftovers()]
        sizes = [size for _, size, path in found if remove(path)]
        return len(sizes), sum(sizes)


class Entry(NamedTuple):
    """A file of features: when last used (seconds since 1970), bytes, path, parts of its key."""

    used: float
    size: int
    path: Path
    about: dict[str, Any]


def _inside(folder: Path | None) -> list[Path]:
    """What is in a folder, which others may delete at any time."""
    with suppress(OSError):
        return list(folder.iterdir()) if folder else []
    return []


def _seen(path: Path) -> Iterator[_Seen]:
    with suppress(OSError):  # deleted meanwhile
        found = path.stat()
        yield found.st_mtime, found.st_size, path


def _read(path: Path) -> Tensor | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensor, digest = file.get_tensor("features"), (file.metadata() or {}).get("sha256")
    except (OSError, safetensors.SafetensorError):
        return None
    if _digest(tensor) != digest:
        return None
    with suppress(OSError):
        os.utime(path)  # when it was last used: the oldest go first
    return tensor


def _about(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get("about", "{}")))
    except (OSError, ValueError, TypeError, RecursionError, safetensors.SafetensorError):
        return {}


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
