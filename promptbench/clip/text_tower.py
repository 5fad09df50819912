"""The text tower's forward over packed text: no padding, the shared prefix once, the last block only where
the feature is read."""

from functools import partial
from operator import itemgetter
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from promptbench.clip.blocks import RunBlock, attend_ends, attend_packed, project, run_block
from promptbench.clip.memory import ActivationMemory
from promptbench.clip.prompts import Prompts
from promptbench.clip.tokens import TextLayout


class TextTower:
    """open_clip's text tower, run by our own forward. ``memory`` decides what is kept for the backward
    pass."""

    def __init__(self, model: Any, memory: ActivationMemory) -> None:
        self.model, self.memory = model, memory
        self.run_block: RunBlock = run_block

    def features(self, layout: TextLayout, prompts: Prompts) -> Tensor:
        """Text features before normalisation, [C, e]."""
        return project(self.model.ln_final(self.states(layout, prompts)), self.model.text_projection)

    def states(self, layout: TextLayout, prompts: Prompts) -> Tensor:
        """Hidden states at the end tokens, [C, d_t]."""
        x = self.embedded(layout, prompts)
        *inner, last = self.model.transformer.resblocks
        for i, block in enumerate(inner):
            x, layout = self.prompted(x, layout, prompts, i)
            hook, out = prompts.text_hooks(i)
            attention = partial(attend_packed, layout=layout)
            step = partial(self.run_block, block, attention=attention, hook=hook, out=out)
            # Run again in the backward pass instead of kept, where a thousand classes would not fit.
            x = step(x) if self.memory.fits(x) else checkpoint(step, x, use_reentrant=False)
        x, layout = self.prompted(x, layout, prompts, len(inner))
        hook, out = prompts.text_hooks(len(inner))
        attention = partial(attend_ends, layout=layout)
        return self.run_block(last, x, attention, hook, out, pick=itemgetter(layout.ends))

    def embedded(self, layout: TextLayout, prompts: Prompts) -> Tensor:
        """The input of block 0, [n_tokens, d_t]: token embeddings, learnable tokens, positions."""
        positions = self.model.positional_embedding[layout.positions]
        x = self.model.token_embedding.weight[layout.ids]
        if layout.n_ctx:
            context = prompts.text_tokens(0)
            assert context is not None  # `FrozenCLIP.text_features` has looked
            x = layout.put(x, context)
        return x + positions

    def prompted(
        self, x: Tensor, layout: TextLayout, prompts: Prompts, layer: int
    ) -> tuple[Tensor, TextLayout]:
        """The input of block ``layer`` with its deep tokens, and the layout they make of it."""
        new = prompts.text_tokens(layer)
        if new is None or (layer == 0 and layout.n_ctx):  # those of the input are in place
            return x, layout
        return layout.prompted(x, new, prompts.mix)
