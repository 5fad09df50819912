"""TCP: context tokens made from what frozen CLIP knows about each class."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.clip.tokens import TextLayout
from promptbench.data.classnames import Classes
from promptbench.errors import UserError
from promptbench.methods._base import Batch, Method
from promptbench.methods._losses import cosine_distance
from promptbench.methods._settings import Count, Positive, PromptSettings, Rate, Wording

TOKENS = 4  # class-aware tokens, however long the context is
# What follows the context, where it is not the end of the dataset's template; and the anchors' wording.
SENTENCES = {
    "stanford_cars": "{}, a type of car",
    "eurosat": "{}.",
    "ucf101": "person doing {}.",
}
ANCHORS = {
    "dtd": "a photo of a {}, a type of texture.",
    "food101": "a photo of a {}, a type of food.",
    "fgvc_aircraft": "a photo of an aircraft {}.",
}


class TCPSettings(PromptSettings):
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    eps: float = Field(1e-3, gt=0, description="the official value: with 1e-8 its fp16 runs diverge")
    lr: Rate = 0.002
    epochs: Count = 50
    n_ctx: Positive = Field(4, description="M: context tokens")
    ctx_init: str = Field("", description="words the context starts from; empty = random")
    layer: Positive = Field(8, description="block, from 0, whose context comes from the class")
    hidden: Positive = Field(128, description="h: width of the bottleneck")
    weight: Rate = Field(8.0, description="weight of the distance to the frozen text features")
    sentence: Wording = Field("", description="what follows the context, with {}; empty = the dataset's")
    anchor: Wording = Field("", description="template of the frozen text features; empty = the dataset's")


class TCP(Method):
    """Yao et al., TCP: Textual-based Class-aware Prompt Tuning, CVPR 2024.

    A context v_1..v_M as in CoOp; before block 8 (from 0) it gives way to class-aware tokens
    T_c = reshape(W_2 quickgelu(W_1 g_c)) [4, d_t], g_c the unit-norm frozen text feature of the dataset's
    template (of DTD, Food101 and Aircraft: of a wording of its own). Loss = cross-entropy
    + 8 * (1 - mean_c cos(t_c, g_c)). The prompt keeps the end of the template, or has one of its own (Cars,
    EuroSAT, UCF101): ``[v_1]..[v_M] <class>, a type of pet.``

    Trainable parameters: M d_t + (e h + h) + (4 h d_t + 4 d_t)   (ViT-B/16, M = 4, h = 128: 331,904).

    Settings (htyao89/Textual-based_Class-aware_prompt_tuning: trainers/tcp.py): Adam 0.002 with eps 0.001,
    decay 5e-4, batch 32, 50 epochs; 25 for SUN397 and ImageNet in base2novel, whose scripts load epoch 25.
    None are released for transfer from ImageNet, ours are the same.
    """

    name = "tcp"
    paper = "arXiv:2311.18231"
    published_name = "TCP"
    trains = frozenset({"text"})
    Settings = TCPSettings
    settings: TCPSettings

    def __init__(self, clip: FrozenCLIP, settings: TCPSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        s, width = settings, clip.shape.text_width
        self.ctx = nn.Parameter(self.initial_context(s.n_ctx, s.ctx_init))
        self.down = nn.Linear(clip.shape.embed_dim, s.hidden)
        self.up = nn.Linear(s.hidden, TOKENS * width)

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        half = benchmark == "base2novel" and dataset in ("sun397", "imagenet")
        return {"epochs": 25} if half else {}

    @classmethod
    def parameter_count(cls, settings: TCPSettings, shape: Shape, n_classes: int) -> int:
        s, width = settings, shape.text_width
        return s.n_ctx * width + (shape.embed_dim + 1) * s.hidden + (s.hidden + 1) * TOKENS * width

    @classmethod
    def check(cls, settings: TCPSettings, shape: Shape) -> None:
        super().check(settings, shape)
        if settings.layer >= shape.text_layers:
            raise UserError(
                f"tcp: layer={settings.layer} but this backbone's text tower has {shape.text_layers} layers, "
                f"counted from 0; use --set layer={shape.text_layers - 1} or less."
            )

    def layout(self, classes: Classes) -> TextLayout:
        s, tail = self.settings, classes.template[classes.template.index("{}") :]
        sentence = s.sentence or SENTENCES.get(classes.dataset, tail)
        return self.clip.prompt_layout(classes, s.ctx_init, s.n_ctx, sentence=sentence)

    def anchors(self, classes: Classes) -> Tensor:
        """Unit-norm frozen text features g: [C, e]."""
        template = self.settings.anchor or ANCHORS.get(classes.dataset, classes.template)
        return self.clip.frozen_text(classes, (template,))

    def class_tokens(self, classes: Classes) -> Tensor:
        """The class-aware tokens: [C, 4, d_t]."""
        hidden = self.down(self.anchors(classes))
        tokens: Tensor = self.up(hidden * torch.sigmoid(1.702 * hidden))
        return tokens.view(len(tokens), TOKENS, -1)

    def raw_text_features(self, classes: Classes) -> Tensor:
        between = [None] * (self.settings.layer - 1)
        prompts = Prompts(text=[self.ctx, *between, self.class_tokens(classes)])
        return self.clip.text_features(self.layout(classes), prompts)

    def terms(self, batch: Batch, classes: Classes) -> dict[str, Tensor]:
        text = self.text_features(classes)
        return {
            "ce": F.cross_entropy(self.logits(batch, text), batch.labels),
            "cos_text": cosine_distance(text, self.anchors(classes)),
        }

    def term_weights(self) -> dict[str, float]:
        return {"ce": 1.0, "cos_text": self.settings.weight}
