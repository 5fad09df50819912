"""The reference path: open_clip's own blocks over the full context.

Nothing is saved here: sentences are padded, no prefix is shared, every block runs for all tokens. Features
and prompt gradients equal those of `FrozenCLIP`; tests, parity and `promptbench profile` compare both.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.clip.blocks import run_block
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import BlockHooks, Prompts, mixed
from promptbench.clip.text_tower import TextTower
from promptbench.clip.tokens import TextLayout
from promptbench.clip.vision_tower import VisionTower
from promptbench.data.classnames import Classes


class ReferenceCLIP(FrozenCLIP):
    """The same frozen weights as ``clip``, run by open_clip's own blocks.

    Frozen text features are those of ``clip``: official code, too, computes them once.
    """

    reference = True

    def __init__(self, clip: FrozenCLIP) -> None:
        super().__init__(
            clip.model,
            clip.shape,
            clip.preprocess,
            clip.fingerprint,
            clip.architecture,
            clip.device,
            clip.cache,
        )
        self.clip = clip
        self.text_tower = ReferenceTextTower(clip.model, clip.memory)
        self.vision_tower = ReferenceVisionTower(clip.model.visual)

    def layout(self, rows: Sequence[tuple[int, ...]], shared: bool = True) -> TextLayout:
        return self.clip.layout(rows, shared)

    def frozen_text(
        self,
        classes: Classes,
        templates: Sequence[str],
        normalise_each: bool = True,
        normalise_mean: bool = True,
    ) -> Tensor:
        return self.clip.frozen_text(classes, templates, normalise_each, normalise_mean)

    def image_features(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        if prompts is None:
            return self.model.encode_image(images)
        return super().image_features(images, prompts)


class ReferenceTextTower(TextTower):
    """The text tower over whole padded contexts."""

    def states(self, layout: TextLayout, prompts: Prompts) -> Tensor:
        model, n = self.model, layout.n_ctx
        x, mask, ends = self.padded(layout, prompts), model.attn_mask, layout.padded(self.length)[1]
        for i, block in enumerate(model.transformer.resblocks):
            new = prompts.text_tokens(i)
            if new is not None and (i or not n):
                new = new.expand(len(x), new.shape[-2], -1)
                places = new.shape[1] if n else 0
                if n:
                    new = mixed(new, x[:, 1 : 1 + places], prompts.mix)
                else:  # inserted, so the mask grows and every end token moves
                    ends = ends + new.shape[1]
                    longer = x.shape[1] + new.shape[1]
                    mask = torch.full((longer, longer), -math.inf, device=x.device).triu(1)
                x = torch.cat([x[:, :1], new, x[:, 1 + places :]], dim=1)
                n = n or new.shape[1]
            x = _call_block(model.transformer, block, x, mask, prompts.text_hooks(i))
        return x[torch.arange(len(x), device=x.device), ends]

    @property
    def length(self) -> int:
        """Tokens of the whole context."""
        return len(self.model.positional_embedding)

    def padded(self, layout: TextLayout, prompts: Prompts) -> Tensor:
        """The input of block 0, [C, context length, d_t]."""
        tokens, _ = layout.padded(self.length)
        x = self.model.token_embedding(tokens.clamp(min=0))
        if n := layout.n_ctx:
            context = prompts.text_tokens(0)
            assert context is not None
            context = context.expand(len(x), n, -1)
            at = tokens < 0
            slot = (-1 - tokens).clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
            x = torch.where(at[..., None], context.gather(1, slot), x)
        return x + self.model.positional_embedding


class ReferenceVisionTower(VisionTower):
    """The vision tower with open_clip's own blocks."""

    def block(
        self, x: Tensor, prompts: Prompts, layer: int, pick: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        transformer = self.visual.transformer
        return _call_block(transformer, transformer.resblocks[layer], x, None, prompts.vision_hooks(layer))


def _call_block(transformer: Any, block: Any, x: Tensor, mask: Tensor | None, hooks: BlockHooks) -> Tensor:
    """open_clip's own block, whatever order of dimensions its transformer uses; with a hook, which
    open_clip has no place for, ours over the same tokens."""
    if any(hooks):
        return run_block(block, x, partial(F.scaled_dot_product_attention, attn_mask=mask), *hooks)
    if transformer.batch_first:
        return block(x, attn_mask=mask)
    return block(x.transpose(0, 1), attn_mask=mask).transpose(0, 1)
