"""Frozen features on disk: computed once, keyed by everything they depend on, never trusted blindly."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from promptbench.errors import UserError
from promptbench.files import hash_value, write_atomic

VERSION = 1  # to be raised when the code gives other features under an unchanged key


def default_folder() -> Path:
    """``PROMPTBENCH_CACHE``, or promptbench's folder in the user's cache directory."""
    return Path(os.environ.get("PROMPTBENCH_CACHE") or platformdirs.user_cache_path("promptbench"))


class FeatureCache:
    """Tensors by key in ``folder`` (None: nothing is kept). A damaged file is computed anew."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of ``key`` on the CPU, from disk or from ``compute``.

        ``key`` is JSON-like and must name every input of the computation.
        """
        if self.folder is None:
            return compute().cpu()
        path = self.folder / f"{hash_value([VERSION, key])}.safetensors"
        if (found := _read(path)) is not None:
            return found
        tensor = compute().cpu().contiguous()
        with suppress(UserError):  # a cache that cannot be written costs time, never a result
            write_atomic(path, save({"features": tensor}, {"sha256": _digest(tensor)}))
        return tensor


def _read(path: Path) -> Tensor | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensor, digest = file.get_tensor("features"), (file.metadata() or {}).get("sha256")
    except (OSError, safetensors.SafetensorError):
        return None
    return tensor if _digest(tensor) == digest else None


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
