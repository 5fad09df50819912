"""How much memory a training needs, before it starts, and how much there is."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptbench.clip.backbones import Shape

# Numbers of the tower's width that a transformer block keeps per token for its backward pass where the
# weights are frozen: two norm inputs of the fp32 stream; q, k, v, what attention gives, and the MLP before
# and after its GELU.
_STREAM, _INSIDE = 2, 3 + 1 + 2 * 4
_RUNTIME = 400 * 2**20  # torch itself and its libraries
_EVALUATED = 256  # images per batch without gradient, see features.BATCH


def kept_bytes(tokens: int, width: int, layers: int, size: int = 4) -> int:
    """Bytes a tower keeps for its backward pass: ``tokens`` of ``width`` through ``layers``, matrix products
    in numbers of ``size`` bytes."""
    return tokens * width * layers * (4 * _STREAM + size * _INSIDE)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


class ActivationMemory:
    """What the text tower of ``layers`` blocks may keep for its backward pass.

    ``bytes``: the bound; None: half of what is free at first use, divided among ``share`` processes.
    """

    def __init__(self, device: torch.device, layers: int) -> None:
        self.device, self.layers = device, layers
        self.bytes: int | None = None
        self.share = 1

    def fits(self, x: Tensor) -> bool:
        """Whether what is kept of hidden states ``x`` [tokens, d_t] fits; nothing is where no gradient is."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return True
        if self.bytes is None:
            self.bytes = free_memory(self.device) // (2 * self.share)
        size = active_precision(self.device).itemsize
        return kept_bytes(len(x), x.shape[1], self.layers, size) <= self.bytes


def active_precision(device: torch.device) -> torch.dtype:
    """The number format of matrix products here and now: autocast's, or fp32."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def _tokens(name: str) -> int:
    """About how many tokens a class name has: the tokenizer takes longer to load than all else here."""
    return sum(1 + len(word) // 8 for word in name.replace("_", " ").split())


def estimate(
    settings: Mapping[str, Any],
    trains: frozenset[str],
    shape: Shape,
    classnames: Sequence[str],
    precision: str = "fp32",
) -> int:
    """About the peak bytes of a trial that trains on ``classnames``: weights, and the larger of a training
    step and an evaluation batch.

    From the shapes alone, nothing is run. Text towers that do not fit recompute (see `FrozenCLIP`), so the
    true peak may be lower.
    """
    size = 4 if precision == "fp32" else 2
    text = 12 * shape.text_width**2 * shape.text_layers + shape.vocabulary * shape.text_width
    vision = 12 * shape.vision_width**2 * shape.vision_layers
    patches = (shape.image_size // shape.patch_size) ** 2 + 1
    step = 0
    if "text" in trains:
        words = sum(2 + _tokens(name) for name in classnames)
        tokens = 1 + settings.get("n_ctx", 4) + words
        step += kept_bytes(tokens, shape.text_width, shape.text_layers, size)
    if "vision" in trains:
        tokens = settings["batch_size"] * (patches + settings.get("n_ctx", 4))
        step += kept_bytes(tokens, shape.vision_width, shape.vision_layers, size)
    # without gradient one block's working space is all that is needed
    evaluation = kept_bytes(_EVALUATED * patches, shape.vision_width, 1, size)
    return _RUNTIME + 4 * (text + vision) + max(step, evaluation)
