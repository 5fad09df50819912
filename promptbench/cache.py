"""Frozen features on disk: computed once, keyed by everything they depend on, never trusted blindly.

Several processes may share a folder: each of two that want the same features at once waits for the other
instead of computing them too, files appear whole or not at all, and a reader keeps a file that another
process deletes. The folder stays below ``PROMPTBENCH_CACHE_GB`` (default 20): what was not used for the
longest time goes first.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from promptbench.errors import UserError
from promptbench.files import canonical, hash_value, write_atomic

VERSION = 3  # to be raised when the code gives other features under an unchanged key
SUFFIX = ".safetensors"
_TOLD = ("what", "weights", "precision", "dataset", "draw")  # what of a key `promptbench cache ls` shows


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
        with _alone(path.with_suffix(".lock")):
            if (found := _read(path)) is not None:  # another process was at it
                return found
            tensor = compute().cpu().contiguous()
            about = canonical({name: key[name] for name in _TOLD if name in key})
            with suppress(UserError):  # a cache that cannot be written costs time, never a result
                write_atomic(path, save({"features": tensor}, {"sha256": _digest(tensor), "about": about}))
                self._bound(path)
        return tensor

    def _bound(self, newest: Path) -> None:
        """Delete what was not used for the longest time until the folder is below its bound."""
        entries = sorted(entry for entry in self._files() if entry[2] != newest)
        total = sum(size for _, size, _ in entries) + newest.stat().st_size
        for _, size, path in entries:
            if total <= self.bound:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When last used, bytes and path of every file of features."""
        for path in self.folder.glob(f"*{SUFFIX}") if self.folder else ():
            with suppress(FileNotFoundError):  # deleted by another process meanwhile
                seen = path.stat()
                yield seen.st_mtime, seen.st_size, path

    def entries(self) -> list["Entry"]:
        """What is in the folder, most recently used first."""
        return [Entry(*one, _about(one[2])) for one in sorted(self._files(), reverse=True)]

    def clear(self) -> tuple[int, int]:
        """Delete all features; how many files and bytes that were."""
        files = list(self._files())
        for _, _, path in files:
            path.unlink(missing_ok=True)
        return len(files), sum(size for _, size, _ in files)


class Entry(NamedTuple):
    """A file of features: when last used (seconds since 1970), bytes, path, parts of its key."""

    used: float
    size: int
    path: Path
    about: dict[str, Any]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds the lock ``path``, which a killed owner gives back. Where nothing can be locked, goes on without:
    the lock saves work, the files are safe without it."""
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        # Whoever waits on the deleted file looks for the features first when its turn comes.
        path.unlink(missing_ok=True)
        lock.release()


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
    except (OSError, ValueError, safetensors.SafetensorError):
        return {}


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
