"""How much a trained method changes what the towers read out, layer by layer.

For every layer the change of the read-out token (the class token of an image, the end token of a class
name's prompt), relative to its length in frozen CLIP on the same images and on the dataset's template:
mean of ||x' - x|| / ||x||. The token is taken as the next block sees it, after that block's ln_1; after the
last block it is the feature itself.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Hook, Prompts
from promptbench.clip.tokens import TextLayout, template_rows
from promptbench.data.classnames import Classes
from promptbench.methods._base import Method

SAMPLE = 64  # classes and images are enough for a mean


@torch.no_grad()
def influence(method: Method, classes: Classes, images: Tensor | None) -> dict[str, list[float]]:
    """Relative change after each block, by tower, of what ``method.prompts()`` puts into that tower.

    ``images`` [B, 3, H, W] serve the vision tower, None where it is left alone. A tower left alone has no
    entry, nor has one in which diverged prompts leave nothing that is a number.
    """
    clip, prompts = method.clip, method.prompts()
    few = replace(classes, names=classes.names[:SAMPLE])
    found = {}
    if prompts.text or prompts.text_hook:
        plain = clip.layout(template_rows(few.names, few.template))
        found["text"] = _change(_text(clip, method.layout(few), prompts), _text(clip, plain, Prompts()))
    if images is not None and (prompts.vision or prompts.vision_hook):
        found["vision"] = _change(_vision(clip, images, prompts), _vision(clip, images, Prompts()))
    return {tower: change for tower, change in found.items() if all(map(math.isfinite, change))}


def _change(ours: list[Tensor], frozen: list[Tensor]) -> list[float]:
    """Mean relative change per layer; the first state is the input, which no prompt has reached yet."""
    pairs = zip(ours[1:], frozen[1:], strict=True)
    return [round(((a - b).norm(dim=-1) / b.norm(dim=-1)).mean().item(), 6) for a, b in pairs]


def _text(clip: FrozenCLIP, layout: TextLayout, prompts: Prompts) -> list[Tensor]:
    states: list[Tensor] = []

    def ends(h: Tensor) -> Tensor:  # inserted tokens move them
        return h[layout.ends + len(h) - layout.n_tokens]

    prompts = replace(prompts, text_hook=_recording(prompts.text_hook, states, ends))
    feature = clip.text_features(layout, prompts)
    return [*states, feature]


def _vision(clip: FrozenCLIP, images: Tensor, prompts: Prompts) -> list[Tensor]:
    states: list[Tensor] = []
    prompts = replace(prompts, vision_hook=_recording(prompts.vision_hook, states, lambda h: h[:, 0]))
    feature = clip.image_features(images, prompts)
    return [*states, feature]


def _recording(hook: Hook | None, states: list[Tensor], pick: Callable[[Tensor], Tensor]) -> Hook:
    def record(layer: int, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        states.append(pick(h).float())
        return hook(layer, h) if hook else (None, None)

    return record
