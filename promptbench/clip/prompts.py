"""What a method may put into the towers: tokens per layer, and hooks inside the blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

#: What an adapter adds inside block ``i`` (from 0), given the block's normalised input h = ln_1(x)
#: [..., N, d]: to queries, keys and values [..., N, 3d], and to the block's output [..., N, d].
Hook = Callable[[int, Tensor], tuple[Tensor | None, Tensor | None]]
#: What it adds to the attention's output projection, given that projection's input: [..., N, d] of both.
OutHook = Callable[[int, Tensor], Tensor]
#: Both hooks of one block, None where there is none.
BlockHooks = tuple[
    Callable[[Tensor], tuple[Tensor | None, Tensor | None]] | None, Callable[[Tensor], Tensor] | None
]


@dataclass
class Prompts:
    """What a method puts into the towers: tokens, one tensor per layer counted from the input, and hooks.

    ``text[i]`` is [n_t, d_t] and takes positions 1..n_t before block i; [C, n_t, d_t] if it differs
    between classes, and then n_t may differ from the layout's number. If the layout has no places for
    learnable tokens, the first of them is inserted behind the start token instead (MMRL).
    ``vision[i]`` is [n_v, d_v] and stands behind the patches; the first of them may come at any layer.
    None leaves a layer's tokens as they are.

    The token of layer i replaces what came out of layer i-1 (deep prompting), or, with ``mix`` < 1, its
    share in ``mix * new + (1 - mix) * old``. Layer 0 text tokens get the positional embedding, layer 0
    vision tokens pass ``ln_pre`` (unless that is False); deeper ones get neither
    (multimodal-prompt-learning: clip/model.py).
    """

    text: Sequence[Tensor | None] = ()
    vision: Sequence[Tensor | None] = ()
    mix: float = 1.0
    ln_pre: bool = True
    text_hook: Hook | None = None
    vision_hook: Hook | None = None
    text_out_hook: OutHook | None = None
    vision_out_hook: OutHook | None = None

    def text_tokens(self, layer: int) -> Tensor | None:
        """The tokens that enter the text tower before block ``layer``."""
        return self.text[layer] if layer < len(self.text) else None

    def vision_tokens(self, layer: int) -> Tensor | None:
        """The tokens that enter the vision tower before block ``layer``."""
        return self.vision[layer] if layer < len(self.vision) else None

    def text_hooks(self, layer: int) -> BlockHooks:
        """The hooks of a block of the text tower."""
        return _hooks(self.text_hook, self.text_out_hook, layer)

    def vision_hooks(self, layer: int) -> BlockHooks:
        """The hooks of a block of the vision tower."""
        return _hooks(self.vision_hook, self.vision_out_hook, layer)


def _hooks(hook: Hook | None, out: OutHook | None, layer: int) -> BlockHooks:
    return partial(hook, layer) if hook else None, partial(out, layer) if out else None


def mixed(new: Tensor, old: Tensor, mix: float) -> Tensor:
    """Deep prompts with the output of the block before: ``mix * new + (1 - mix) * old``."""
    return new if mix == 1 else mix * new + (1 - mix) * old
