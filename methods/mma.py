"""MMA: adapters beside the upper blocks of both towers, with a middle layer they share."""

from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.data.classnames import Classes
from promptbench.errors import UserError
from promptbench.methods._base import Method
from promptbench.methods._settings import Count, Positive, Rate, Settings, Template
from promptbench.methods._templates import PLAIN


class MMASettings(Settings):
    lr: Rate = 1.5e-3
    epochs: Count = 5
    batch_size: Positive = 16
    warmup_epochs: Count = 0
    first_layer: Positive = Field(5, description="first block with an adapter, counted from 1")
    last_layer: Count = Field(0, description="last block with an adapter; 0 = the last of both towers")
    hidden: Positive = Field(32, description="h: width of the shared layer")
    scale: float = Field(0.001, gt=0, description="s: the adapter's share")
    template: Template = Field(PLAIN, description="text of every dataset")

    def blocks(self, shape: Shape) -> range:
        """The blocks with an adapter, counted from 0."""
        return range(self.first_layer - 1, self.last_layer or min(shape.text_layers, shape.vision_layers))


class _Scale(torch.autograd.Function):
    """Forward and backward each by a factor of its own; no detour over 1 / s, which fp16 could not hold."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: float, back: float) -> Tensor:
        ctx.back = back
        return x.view_as(x) if forth == 1 else forth * x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.back, None, None


class MMA(Method):
    """Yang et al., MMA: Multi-Modal Adapter for Vision-Language Models, CVPR 2024.

    Beside block i, for tokens x of either tower: y = s U_i relu(S_i relu(D_i ln_1(x))), with D_i and U_i of
    the tower and S_i shared by both; the block's output is the usual one plus y. Gradients are rescaled so
    that the adapter learns as if s were 1, while what lies below sees the true gradient: without it
    SGD at this rate would not move it. Text: ``a photo of a <class>.`` Loss = cross-entropy.

    Trainable parameters per block: (d_t h + h + h d_t + d_t) + (d_v h + h + h d_v + d_v) + (h h + h)
    (ViT-B/16, blocks 5 to 12, h = 32: 674,560).

    Settings (ZjjConan/VLM-MultiModalAdapter: trainers/mmadapter.py, configs): SGD 0.0015, batch 16
    (ImageNet 128), 5 epochs, no warm-up; all maps Kaiming-normal (fan out), biases 0. Settings for
    few-shot and transfer are not released, ours are the same. The default first block of the code is 4, of
    its YAML 5, as here.
    """

    name = "mma"
    paper = "CVPR 2024"
    published_name = "MMA"
    trains = frozenset({"text", "vision"})
    Settings = MMASettings
    settings: MMASettings

    def __init__(self, clip: FrozenCLIP, settings: MMASettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        s, shape = settings, clip.shape
        self.layers = s.blocks(shape)

        def maps(rows: int, columns: int) -> nn.ModuleList:
            found = [nn.Linear(columns, rows) for _ in self.layers]
            for one in found:
                nn.init.kaiming_normal_(one.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(one.bias)
            return nn.ModuleList(found)

        widths = {"text": shape.text_width, "vision": shape.vision_width}
        self.down = nn.ModuleDict({tower: maps(s.hidden, width) for tower, width in widths.items()})
        self.up = nn.ModuleDict({tower: maps(width, s.hidden) for tower, width in widths.items()})
        self.shared = maps(s.hidden, s.hidden)

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        return {"batch_size": 128} if dataset == "imagenet" else {}

    @classmethod
    def parameter_count(cls, settings: MMASettings, shape: Shape, n_classes: int) -> int:
        h, widths = settings.hidden, shape.text_width + shape.vision_width
        return len(settings.blocks(shape)) * (2 * widths * h + widths + h * h + 3 * h)

    @classmethod
    def check(cls, settings: MMASettings, shape: Shape) -> None:
        super().check(settings, shape)
        if not settings.blocks(shape):
            raise UserError("mma: last_layer is below first_layer; use --set last_layer=0 for the last.")

    def beside(self, tower: str, layer: int, h: Tensor) -> tuple[None, Tensor | None]:
        """The adapter's output for block inputs h = ln_1(x): [..., N, d]."""
        if layer not in self.layers:
            return None, None
        i, scale = layer - self.layers[0], self.settings.scale
        down, up = (maps.get_submodule(f"{tower}.{i}") for maps in (self.down, self.up))
        x = F.relu(self.shared[i](F.relu(down(_Scale.apply(h, 1.0, scale)))))
        return None, _Scale.apply(up(x), scale, 1.0)

    def prompts(self) -> Prompts:
        return Prompts(text_hook=partial(self.beside, "text"), vision_hook=partial(self.beside, "vision"))

    def template(self, classes: Classes) -> str:
        return self.settings.template
