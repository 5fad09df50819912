"""The vision tower's forward; the last block only for the tokens that are read."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.clip.blocks import RunBlock, run_block
from promptbench.clip.prompts import Prompts, mixed


class VisionTower:
    """open_clip's vision tower, run by our own forward."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.run_block: RunBlock = run_block

    def states(self, images: Tensor, prompts: Prompts, n_read: int = 0) -> Tensor:
        """The class token and the last ``n_read`` prompt tokens after ``ln_post``: [B, 1 + n_read, d_v]."""

        def pick(t: Tensor) -> Tensor:
            return torch.cat([t[:, :1], t[:, t.shape[1] - n_read :]], dim=1) if n_read else t[:, :1]

        x, n = self.embedded(images), 0
        last = len(self.visual.transformer.resblocks) - 1
        for i in range(last + 1):
            x, n = self.prompted(x, n, prompts, i)
            x = self.block(x, prompts, i, pick if i == last else None)
        return self.visual.ln_post(pick(x))

    def embedded(self, images: Tensor) -> Tensor:
        """The input of block 0 without prompts: class token and patches, [B, 1 + patches, d_v]."""
        visual = self.visual
        x = visual.conv1(images).float().flatten(2).transpose(1, 2)  # the stream is fp32 under autocast, too
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1)
        return visual.ln_pre(x + visual.positional_embedding)

    def prompted(self, x: Tensor, n: int, prompts: Prompts, layer: int) -> tuple[Tensor, int]:
        """The input of block ``layer`` with its tokens in place of the last ``n``, and how many those are."""
        new = prompts.vision_tokens(layer)
        if new is None:
            return x, n
        new = new.to(x.dtype)
        if layer == 0 and prompts.ln_pre:
            new = self.visual.ln_pre(new)
        new = new.expand(len(x), -1, -1)
        if n:
            new = mixed(new, x[:, -n:], prompts.mix)
        return torch.cat([x[:, : x.shape[1] - n], new], dim=1), new.shape[1]

    def block(
        self, x: Tensor, prompts: Prompts, layer: int, pick: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Block ``layer`` on [B, N, d_v]; with ``pick`` only the tokens that it chooses."""
        block = self.visual.transformer.resblocks[layer]
        return self.run_block(
            block, x, F.scaled_dot_product_attention, *prompts.vision_hooks(layer), pick=pick
        )
