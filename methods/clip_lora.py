"""CLIP-LoRA: low-rank changes of the attention in both towers."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

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


class CLIPLoRASettings(Settings):
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Rate = 2e-4
    lr_min: Rate = 1e-6
    weight_decay: float = Field(1e-2, ge=0)
    warmup_epochs: Count = 0
    schedule: Literal["epoch", "step"] = "step"
    epochs: Count = Field(50, description="only if steps is 0")
    batch_size: Positive = 32
    drop_last: bool = Field(False, description="leave out a short last batch; the official loader does not")
    rank: Positive = Field(2, description="r of B A")
    alpha: float = Field(1.0, gt=0, description="the change is alpha / sqrt(r) * B A")
    dropout: float = Field(0.25, ge=0, lt=1, description="on the input of the low-rank branch")
    params: str = Field("qkv", pattern="^q?k?v?o?$", description="maps that change; o is the output's")
    text_blocks: tuple[Count, ...] | None = Field(None, description="blocks from 0 that change; none: all")
    vision_blocks: tuple[Count, ...] | None = Field(None, description="the same of the vision tower")
    template: Template = Field(PLAIN, description="text of every dataset")

    def blocks(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The blocks that change, counted from 0, by tower."""
        text, vision = tuple(range(shape.text_layers)), tuple(range(shape.vision_layers))
        return {
            "text": text if self.text_blocks is None else self.text_blocks,
            "vision": vision if self.vision_blocks is None else self.vision_blocks,
        }


class CLIPLoRA(Method):
    """Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPRW 2024.

    W' = W + alpha / sqrt(r) B A on the query, key and value maps of every block of both towers, A (r x d)
    Kaiming-uniform, B (d x r) zero; dropout before A. Text: ``a photo of a <class>.`` Loss = cross-entropy.

    Trainable parameters: 3 * 2 r d per block, L_t and L_v blocks: 6 r (L_t d_t + L_v d_v)
    (ViT-B/16, r = 2: 184,320).

    Settings (MaxZanella/CLIP-LoRA: lora.py, run_utils.py): AdamW 2e-4, decay 0.01, cosine per step to 1e-6,
    no warm-up, 500 K steps of batch 32 for K shots whatever the dataset, short last batches of an epoch
    counted. The official code covers few-shot only; other benchmarks have the same settings. Its logits have
    the constant 100 (``--set logit_scale=100``), ours the backbone's own scale. Tokens that all classes
    share are run once, so they share one dropout mask in a step, where the official code draws one per
    class; without dropout, and in testing, the two are equal.
    """

    name = "clip_lora"
    paper = "arXiv:2405.18541"
    published_name = "CLIP-LoRA"
    trains = frozenset({"text", "vision"})
    Settings = CLIPLoRASettings
    settings: CLIPLoRASettings

    def __init__(self, clip: FrozenCLIP, settings: CLIPLoRASettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        rank, n = settings.rank, len(settings.params)
        widths = {"text": clip.shape.text_width, "vision": clip.shape.vision_width}
        self.blocks = settings.blocks(clip.shape)
        # A of a block is [n r, d], B [n, d, r]: one for each of the n maps
        self.A, self.B = nn.ModuleDict(), nn.ModuleDict()
        for tower, width in widths.items():
            bound = width**-0.5  # Kaiming-uniform with a = sqrt(5)
            down = [torch.empty(n * rank, width).uniform_(-bound, bound) for _ in self.blocks[tower]]
            self.A[tower] = nn.ParameterList(down)
            self.B[tower] = nn.ParameterList(torch.zeros(n, width, rank) for _ in self.blocks[tower])

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        return {"steps": 500 * shots}

    @classmethod
    def parameter_count(cls, settings: CLIPLoRASettings, shape: Shape, n_classes: int) -> int:
        blocks, widths = settings.blocks(shape), {"text": shape.text_width, "vision": shape.vision_width}
        width = sum(len(blocks[tower]) * widths[tower] for tower in blocks)
        return 2 * len(settings.params) * settings.rank * width

    @classmethod
    def check(cls, settings: CLIPLoRASettings, shape: Shape) -> None:
        layers = {"text": shape.text_layers, "vision": shape.vision_layers}
        for tower, blocks in settings.blocks(shape).items():
            if max(blocks, default=0) >= layers[tower]:
                raise UserError(
                    f"clip_lora: {tower}_blocks={list(blocks)} but this backbone's {tower} tower has "
                    f"{layers[tower]} blocks; use numbers from 0 to {layers[tower] - 1}."
                )

    def factors(self, tower: str, layer: int) -> dict[str, tuple[Tensor, Tensor]]:
        """A [r, d] and B [d, r] of the maps of a block that change, by the map's letter."""
        if layer not in self.blocks[tower]:
            return {}
        i, params = self.blocks[tower].index(layer), self.settings.params
        downs, ups = (maps.get_parameter(f"{tower}.{i}") for maps in (self.A, self.B))
        return dict(zip(params, zip(downs.chunk(len(params)), ups, strict=True), strict=True))

    @property
    def scale(self) -> float:
        return float(self.settings.alpha / self.settings.rank**0.5)

    def merged(self, tower: str, layer: int) -> dict[str, Tensor]:
        """The maps of a block that change, with the change in them, [out, in] by the map's letter."""
        frozen, factors = self.clip.attention_weights(tower, layer), self.factors(tower, layer)
        return {key: frozen[key] + self.scale * b @ a for key, (a, b) in factors.items()}

    def drop(self, tower: str, layer: int, key: str, h: Tensor) -> Tensor:
        """The low-rank branch's input [..., N, d]: every map draws a mask of its own."""
        return F.dropout(h, self.settings.dropout, self.training)

    def branch(self, tower: str, layer: int, h: Tensor, key: str) -> Tensor:
        """What is added to a map's output, for inputs h [..., N, d]: the same shape."""
        if key not in (factors := self.factors(tower, layer)):
            return torch.zeros_like(h)
        a, b = factors[key]
        return self.scale * F.linear(F.linear(self.drop(tower, layer, key, h), a), b)

    def change(self, tower: str, layer: int, h: Tensor) -> tuple[Tensor | None, None]:
        """What is added to queries, keys and values, for block inputs h [..., N, d]: [..., N, 3 d]."""
        if layer not in self.blocks[tower]:
            return None, None
        return torch.cat([self.branch(tower, layer, h, key) for key in "qkv"], dim=-1), None

    def prompts(self) -> Prompts:
        text, vision = (partial(self.change, tower) for tower in ("text", "vision"))
        prompts = Prompts(text_hook=text, vision_hook=vision)
        if "o" not in self.settings.params:
            return prompts
        text_out, vision_out = (partial(self.branch, tower, key="o") for tower in ("text", "vision"))
        return replace(prompts, text_out_hook=text_out, vision_out_hook=vision_out)

    def template(self, classes: Classes) -> str:
        return self.settings.template
