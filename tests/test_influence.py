"""What a method changes in the towers is measured where it acts, and nowhere before."""

from types import SimpleNamespace
from typing import Any

import torch

from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.clip.tokens import template_rows
from promptbench.data.classnames import Classes
from promptbench.methods._registry import get_method
from promptbench.training.influence import influence


def measured(clip: FrozenCLIP, classes: Classes, prompts: Prompts) -> dict[str, list[float]]:
    rows = template_rows(classes.names, classes.template)
    method: Any = SimpleNamespace(clip=clip, prompts=lambda: prompts, layout=lambda few: clip.layout(rows))
    size = clip.shape.image_size
    return influence(method, classes, torch.randn(2, 3, size, size))


def test_layers_before_the_first_prompt_are_untouched(clip: FrozenCLIP, classes: Classes) -> None:
    text, vision = torch.randn(2, clip.shape.text_width), torch.randn(3, clip.shape.vision_width)
    found = measured(clip, classes, Prompts([None, None, text], [None, None, vision]))
    for tower in ("text", "vision"):
        assert len(found[tower]) == 4
        assert found[tower][:2] == [0, 0]
        assert min(found[tower][2:]) > 1e-3


def test_a_relative_change_is_what_it_says(clip: FrozenCLIP, classes: Classes) -> None:
    """A hook that adds a constant to the output of the first block only, checked by hand on ln_1."""
    shift = 0.1 * torch.randn(clip.shape.vision_width)
    images = torch.randn(2, 3, clip.shape.image_size, clip.shape.image_size)
    seen: list[torch.Tensor] = []

    def hook(layer: int, h: torch.Tensor) -> tuple[None, torch.Tensor | None]:
        seen.append(h[:, 0])
        return None, (shift.expand_as(h) if layer == 0 else None)

    clip.image_features(images, Prompts(vision_hook=hook))
    changed, amount = seen[1], shift.clone()
    seen.clear()
    shift.zero_()
    clip.image_features(images, Prompts(vision_hook=hook))
    frozen = seen[1]
    by_hand = ((changed - frozen).norm(dim=-1) / frozen.norm(dim=-1)).mean().item()
    shift.copy_(amount)
    method: Any = SimpleNamespace(clip=clip, prompts=lambda: Prompts(vision_hook=hook))
    assert abs(influence(method, classes, images)["vision"][0] - by_hand) < 1e-5


def test_an_adapter_that_starts_at_zero_changes_nothing(clip: FrozenCLIP, classes: Classes) -> None:
    kind = get_method("clip_lora")
    method = kind(clip, kind.Settings(), classes)
    size = clip.shape.image_size
    found = influence(method, classes, torch.randn(2, 3, size, size))
    assert found == {"text": [0.0] * 4, "vision": [0.0] * 4}


def test_diverged_prompts_have_no_influence_to_report(clip: FrozenCLIP, classes: Classes) -> None:
    """A number that is none would make the record unreadable."""
    text = torch.full((2, clip.shape.text_width), 1e38)
    found = measured(clip, classes, Prompts([None, text], [torch.randn(2, clip.shape.vision_width)]))
    assert set(found) == {"vision"}
