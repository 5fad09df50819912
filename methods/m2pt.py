"""M2PT on CLIP: prompts in every layer of both towers, text prompts moved by the vision prompts."""

from typing import Any

from pydantic import Field
from torch import nn

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.data.classnames import Classes
from promptbench.methods._base import Method, deep_prompts
from promptbench.methods._settings import Count, Positive, PromptSettings, Rate


class M2PTSettings(PromptSettings):
    lr: Rate = 0.0025
    epochs: Count = 20
    batch_size: Positive = 4
    n_ctx: Positive = Field(4, description="P: prompt tokens, in both towers")
    depth: Positive = Field(12, description="layers with prompts, the input counted")


class M2PT(Method):
    """M2PT (CLIP adaptation by this project), after Wang et al., M2PT: Multimodal Prompt Tuning for
    Zero-shot Instruction Learning, EMNLP 2024.

    Vision prompts V_i (P x d_v) and text prompts T_i (P x d_t) in every layer i; the text tower gets
    T_i + G(V_i) with one linear map G: d_v -> d_t for all layers. Loss = cross-entropy.

    Trainable parameters: J P (d_v + d_t) + d_v d_t + d_t   (ViT-B/16, P = 4, J = 12: 455,168).

    The original prompts LLaVA (William-wAng618/M2PT), where vision tokens, prompts included, enter the
    language model through a projector. CLIP's towers share no sequence, so the interaction acts on the
    parameters here, from vision to text, the other way round than MaPLe. As there: own tokens in all
    layers, vision prompts behind the pre-norm, Xavier-uniform; T_1 starts from "a photo of a" and G from 0,
    so training starts as plain IVLP. There is no published number to compare with. Settings: lr 0.0025,
    batch 4, 20 epochs (fewshot 50), all 12 layers in every benchmark.
    """

    name = "m2pt"
    paper = "arXiv:2409.15657"
    trains = frozenset({"text", "vision"})
    Settings = M2PTSettings
    settings: M2PTSettings

    def __init__(self, clip: FrozenCLIP, settings: M2PTSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        s, shape = settings, clip.shape
        self.text = deep_prompts(s.depth, s.n_ctx, shape.text_width)
        self.vision = deep_prompts(s.depth, s.n_ctx, shape.vision_width)
        for tokens in (*self.text, *self.vision):
            nn.init.xavier_uniform_(tokens)
        self.text[0].data.copy_(self.initial_context(s.n_ctx, s.ctx_init))
        self.interaction = nn.Linear(shape.vision_width, shape.text_width)
        nn.init.zeros_(self.interaction.weight)
        nn.init.zeros_(self.interaction.bias)

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        return {"epochs": 50} if benchmark == "fewshot" else {}

    @classmethod
    def parameter_count(cls, settings: M2PTSettings, shape: Shape, n_classes: int) -> int:
        tokens = settings.depth * settings.n_ctx * (shape.vision_width + shape.text_width)
        return tokens + (shape.vision_width + 1) * shape.text_width

    def prompts(self) -> Prompts:
        text = [t + self.interaction(v) for t, v in zip(self.text, self.vision, strict=True)]
        return Prompts(text, list(self.vision), ln_pre=False)
