"""CLIP-LoRA: low-rank changes of the attention in both towers."""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptbench.clip import FrozenCLIP, Prompts
from promptbench.method import Count, Method, Positive, Rate, Settings
from promptbench.names import Classes
from promptbench.templates import PLAIN
from promptbench.tokens import TextLayout, template_rows
from promptbench.weights import Shape


class CLIPLoRASettings(Settings):
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Rate = 2e-4
    lr_min: Rate = 1e-6
    weight_decay: float = Field(1e-2, ge=0)
    warmup_epochs: Count = 0
    schedule: Literal["epoch", "step"] = "step"
    epochs: Count = Field(50, description="only if steps is 0")
    batch_size: Positive = 32
    rank: Positive = Field(2, description="r of B A")
    alpha: float = Field(1.0, gt=0, description="the change is alpha / sqrt(r) * B A")
    dropout: float = Field(0.25, ge=0, lt=1, description="on the input of the low-rank branch")


class CLIPLoRA(Method):
    """Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPRW 2024.

    W' = W + alpha / sqrt(r) B A on the query, key and value maps of every block of both towers, A (r x d)
    Kaiming-uniform, B (d x r) zero; dropout before A. Text: ``a photo of a <class>.`` Loss = cross-entropy.

    Trainable parameters: 3 * 2 r d per block, L_t and L_v blocks: 6 r (L_t d_t + L_v d_v)
    (ViT-B/16, r = 2: 184,320).

    Settings (MaxZanella/CLIP-LoRA: lora.py, run_utils.py): AdamW 2e-4, decay 0.01, cosine per step to 1e-6,
    no warm-up, 500 K steps of batch 32 for K shots whatever the dataset. The official code covers few-shot
    only; other benchmarks have the same settings. Tokens that all classes share are run once, so they
    share one dropout mask in a step, where the official code draws one per class; without dropout, and
    in testing, the two are equal.
    """

    name = "clip_lora"
    paper = "arXiv:2405.18541"
    published_name = "CLIP-LoRA"
    trains = frozenset({"text", "vision"})
    formula = "6 r (L_t d_t + L_v d_v)"
    Settings = CLIPLoRASettings

    def __init__(self, clip: FrozenCLIP, settings: CLIPLoRASettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        shape, rank = clip.shape, settings.rank
        towers = {
            "text": (shape.text_layers, shape.text_width),
            "vision": (shape.vision_layers, shape.vision_width),
        }
        # A of a block is [3 r, d], B [3, d, r]: one for queries, keys and values each
        self.A, self.B = nn.ModuleDict(), nn.ModuleDict()
        for tower, (layers, width) in towers.items():
            bound = width**-0.5  # Kaiming-uniform with a = sqrt(5)
            down = [torch.empty(3 * rank, width).uniform_(-bound, bound) for _ in range(layers)]
            self.A[tower] = nn.ParameterList(down)
            self.B[tower] = nn.ParameterList(torch.zeros(3, width, rank) for _ in range(layers))

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        return {"steps": 500 * shots}

    @classmethod
    def parameter_count(cls, settings: CLIPLoRASettings, shape: Shape, n_classes: int) -> int:
        width = shape.text_layers * shape.text_width + shape.vision_layers * shape.vision_width
        return 6 * settings.rank * width

    def change(self, tower: str, layer: int, h: Tensor) -> tuple[Tensor, None]:
        """What is added to queries, keys and values, for block inputs h [..., N, d]: [..., N, 3 d]."""
        s = self.settings
        parts = []
        downs = self.A[tower][layer].chunk(3)  # type: ignore[index]
        for a, b in zip(downs, self.B[tower][layer], strict=True):  # type: ignore[index]
            parts.append(F.linear(F.linear(F.dropout(h, s.dropout, self.training), a), b))
        return s.alpha / s.rank**0.5 * torch.cat(parts, dim=-1), None

    def prompts(self) -> Prompts:
        hooks = {f"{tower}_hook": partial(self.change, tower) for tower in ("text", "vision")}
        return Prompts(**hooks)  # type: ignore[arg-type]

    def layout(self, classes: Classes) -> TextLayout:
        return self.clip.layout(template_rows(classes.names, PLAIN))
