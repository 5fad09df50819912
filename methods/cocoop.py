"""CoCoOp: a context that every image shifts."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.data.classnames import Classes
from promptbench.methods._base import Batch, Method
from promptbench.methods._settings import Count, Positive, PromptSettings, Rate


class CoCoOpSettings(PromptSettings):
    lr: Rate = 0.002
    epochs: Count = 10
    batch_size: Positive = 1
    n_ctx: Positive = Field(4, description="M: context tokens")


class CoCoOp(Method):
    """Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022.

    Context v_1..v_M from "a photo of a"; every token is shifted by pi(f) = W_2 relu(W_1 f), f the unit-norm
    image feature. Each image so has text features of its own: B * C sentences for a batch, run image
    by image, each with its context shared by all classes. Loss = cross-entropy.

    Trainable parameters: M d_t + (e h + h) + (h d_t + d_t), h = e // 16   (ViT-B/16, M = 4: 35,360;
    the paper leaves out the biases: 34,816).

    Settings (KaiyangZhou/CoOp: trainers/cocoop.py, vit_b16_c4_ep10_batch1_ctxv1): batch 1, 10 epochs, lr
    0.002 in every benchmark.
    """

    name = "cocoop"
    paper = "arXiv:2203.05557"
    published_name = "CoCoOp"
    trains = frozenset({"text"})
    Settings = CoCoOpSettings
    settings: CoCoOpSettings

    def __init__(self, clip: FrozenCLIP, settings: CoCoOpSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        width, hidden = clip.shape.embed_dim, clip.shape.embed_dim // 16
        self.ctx = nn.Parameter(self.initial_context(settings.n_ctx, settings.ctx_init))
        self.meta_net = nn.ModuleDict(
            {"linear1": nn.Linear(width, hidden), "linear2": nn.Linear(hidden, clip.shape.text_width)}
        )

    @classmethod
    def parameter_count(cls, settings: CoCoOpSettings, shape: Shape, n_classes: int) -> int:
        hidden = shape.embed_dim // 16
        meta_net = (shape.embed_dim + 1) * hidden + (hidden + 1) * shape.text_width
        return settings.n_ctx * shape.text_width + meta_net

    def prompts(self) -> Prompts:
        """The context before any image shifts it."""
        return Prompts(text=[self.ctx])

    def text_for(self, image: Tensor, classes: Classes) -> Tensor:
        shift = self.meta_net["linear2"](F.relu(self.meta_net["linear1"](image)))
        layout = self.layout(classes)
        return torch.stack([self.clip.text_features(layout, Prompts(text=[self.ctx + one])) for one in shift])

    def classifier(self, classes: Classes) -> Classes:
        """The classes themselves: their features depend on the image."""
        return classes

    def logits(self, batch: Batch, classifier: Classes) -> Tensor:
        image = self.image_features(batch)
        text = F.normalize(self.text_for(image, classifier), dim=-1)
        return torch.cat([self.scores(f[None], t) for f, t in zip(image, text, strict=True)])
