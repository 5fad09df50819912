"""CoOp: learn the words around the class name."""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.clip.tokens import TextLayout, uses_words
from promptbench.data.classnames import Classes
from promptbench.methods._base import Method
from promptbench.methods._settings import Count, Positive, PromptSettings, Rate


class CoOpSettings(PromptSettings):
    lr: Rate = 0.002
    epochs: Count = 200
    batch_size: Positive = 32
    n_ctx: Positive = Field(4, description="M: context tokens")
    position: Literal["end", "middle", "front"] = Field("end", description="where the class name stands")
    class_specific: bool = Field(False, description="one context per class (CSC) instead of a shared one")

    @model_validator(mode="after")
    def _position_fits(self) -> "CoOpSettings":
        if self.position != "end" and uses_words(self.ctx_init, self.n_ctx) and self.n_ctx < self._words:
            raise ValueError(f"position={self.position} needs n_ctx={self._words}, all words of ctx_init")
        return self

    @property
    def _words(self) -> int:
        return len(self.ctx_init.split())


class CoOp(Method):
    """Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022.

    t_c = text([v_1] ... [v_M] [class c].), loss = cross-entropy of s * cos(f, t_c); only v_1..v_M are
    trained, the image tower is left alone.

    Trainable parameters: M * d_t, class-specific C * M * d_t (ViT-B/16: 2,048 with M = 4, 8,192 with 16).

    Settings (KaiyangZhou/CoOp: configs/trainers/CoOp, scripts/cocoop):
      base2novel               M = 4 from "a photo of a", 200 epochs (ImageNet 50)
      crossdataset, domain     the same, 50 epochs
      fewshot                  M = 16 random, 50 / 100 / 100 / 200 / 200 epochs for 1 / 2 / 4 / 8 / 16 shots
                               (ImageNet 50)
    A context started from words has as many tokens as there are words. Official runs keep the context in
    fp16 under SGD; here it is fp32.
    """

    name = "coop"
    paper = "arXiv:2109.01134"
    published_name = "CoOp"
    trains = frozenset({"text"})
    Settings = CoOpSettings
    settings: CoOpSettings

    def __init__(self, clip: FrozenCLIP, settings: CoOpSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        context = self.initial_context(settings.n_ctx, settings.ctx_init)
        if settings.class_specific:
            # Words give every class the same start; random contexts are drawn class by class.
            size = (len(classes), *context.shape)
            words = uses_words(settings.ctx_init, settings.n_ctx)
            context = context.repeat(size[0], 1, 1) if words else torch.empty(size).normal_(std=0.02)
        self.ctx = nn.Parameter(context)

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        if benchmark == "fewshot":
            epochs = 50 if dataset == "imagenet" or shots <= 1 else 100 if shots <= 4 else 200
            return {"n_ctx": 16, "ctx_init": "", "epochs": epochs}
        return {"epochs": 200 if benchmark == "base2novel" and dataset != "imagenet" else 50}

    @classmethod
    def parameter_count(cls, settings: CoOpSettings, shape: Shape, n_classes: int) -> int:
        contexts = n_classes if settings.class_specific else 1
        return contexts * settings.n_ctx * shape.text_width

    def prompts(self) -> Prompts:
        return Prompts(text=[self.ctx])

    def layout(self, classes: Classes) -> TextLayout:
        s = self.settings
        return self.clip.prompt_layout(classes, s.ctx_init, s.n_ctx, s.position, not s.class_specific)
