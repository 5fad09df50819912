"""MMLoP: low-rank multi-modal prompts anchored to frozen CLIP."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.clip.tokens import uses_words
from promptbench.data.classnames import Classes
from promptbench.methods._base import Batch, Method
from promptbench.methods._losses import self_regulation
from promptbench.methods._settings import Count, Positive, PromptSettings, Rate
from promptbench.methods._templates import GENERIC_60


class MMLoPSettings(PromptSettings):
    lr: Rate = 0.0025
    epochs: Count = 30
    batch_size: Positive = 4
    n_ctx: Positive = Field(4, description="T: context tokens, in both towers")
    rank: Positive = Field(1, description="r of U (T x r) and V (r x d)")
    depth: Positive = Field(9, description="layers with prompts, the input counted")
    shared: bool = Field(True, description="one U for both towers instead of one each")
    consistency: Literal["both", "features", "logits", "off"] = "both"
    text_weight: Rate = 25.0
    image_weight: Rate = 10.0
    logit_weight: Rate = 1.0
    drift: Literal["off", "test", "both"] = Field("both", description="uniform drift correction")
    anchor: Literal["templates", "words"] = Field("templates", description="60 templates or ctx_init")
    init: Literal["matched", "small", "words"] = "matched"
    residual: bool = Field(False, description="layer 1 text prompt = word embeddings + U V_t, V_t from 0")

    @model_validator(mode="after")
    def _words_are_used(self) -> "MMLoPSettings":
        if (self.init == "words" or self.residual) and not uses_words(self.ctx_init, self.n_ctx):
            raise ValueError("init=words and residual need n_ctx tokens of words in ctx_init")
        return self


class MMLoP(Method):
    """MMLoP: Multi-Modal Low-Rank Prompting for efficient vision-language adaptation, arXiv 2602.21397.

    Published (no code is): layer i has P_t = U V_t and P_v = U V_v, U (T x r) shared by the towers, V_t
    (r x d_t), V_v (r x d_v); loss = cross-entropy + consistency with frozen CLIP; uniform drift
    correction t'_c = normalise(t_c - d), d = mean over classes of (t_c - g_c), g_c the frozen anchor.

    Trainable parameters: J * (T r + r d_t + r d_v), unshared J * (2 T r + r d_t + r d_v)
    (ViT-B/16, T = 4, r = 1, J = 9: 11,556).

    Not published, so our choice (PromptSRC's where it has one):
      prompts      enter as in IVLP: text tokens replace "a photo of a", vision tokens follow the patches
      consistency  25 * mean|t'_c - g_c| + 10 * mean|f - z| + 1 * KL(p_frozen || p) / (B C), z the frozen
                   feature of the same view, p_frozen the frozen CLIP's softmax with the anchors g as text
      anchor g     60 generic templates, averaged before normalisation (``anchor=words``: ctx_init)
      drift        t_c and g_c unit-norm; over the classes of the current classifier; in training and in
                   testing, the consistency loss sees the corrected features
      init         ``matched``: U ~ N(0, 1), V ~ N(0, 0.02 / sqrt r), so that products have IVLP's std 0.02;
                   ``small``: U, V ~ N(0, 0.02); ``words``: layer 1 text prompt = best rank-r fit of the
                   words' embeddings, U scaled to unit mean square, the rest as ``matched``
      settings     SGD 0.0025, batch 4; depth 9 and 30 epochs for base2novel, 50 for fewshot; depth 3 and
                   30 epochs for crossdataset and domain; PromptSRC's aggregation of epochs is off, the
                   paper's chain of additions has none (gpa_mean and gpa_std switch it on)
    """

    name = "mmlop"
    paper = "arXiv:2602.21397"
    published_name = "MMLoP"
    trains = frozenset({"text", "vision"})
    Settings = MMLoPSettings
    settings: MMLoPSettings

    def __init__(self, clip: FrozenCLIP, settings: MMLoPSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        s, shape = settings, clip.shape
        u_std, v_std = (0.02, 0.02) if s.init == "small" else (1.0, 0.02 / s.rank**0.5)

        def factors(rows: int, columns: int, std: float) -> nn.ParameterList:
            return nn.ParameterList(torch.empty(rows, columns).normal_(std=std) for _ in range(s.depth))

        self.U = factors(s.n_ctx, s.rank, u_std)
        self.U_vision = None if s.shared else factors(s.n_ctx, s.rank, u_std)
        self.V_text = factors(s.rank, shape.text_width, v_std)
        self.V_vision = factors(s.rank, shape.vision_width, v_std)
        with torch.no_grad():
            words = self.initial_context(s.n_ctx, s.ctx_init)
            if s.init == "words":
                left, values, right = torch.linalg.svd(words, full_matrices=False)
                kept = min(s.rank, len(values))
                self.U[0][:, :kept] = left[:, :kept] * s.n_ctx**0.5
                self.V_text[0][:kept] = values[:kept, None] * right[:kept] / s.n_ctx**0.5
            if s.residual:
                self.V_text[0].zero_()
        self.register_buffer("words", words.to(clip.device) if s.residual else None, persistent=False)

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        if benchmark in ("crossdataset", "domain"):
            return {"depth": 3}
        return {"epochs": 50} if benchmark == "fewshot" else {}

    @classmethod
    def parameter_count(cls, settings: MMLoPSettings, shape: Shape, n_classes: int) -> int:
        s = settings
        left = s.n_ctx * (1 if s.shared else 2)
        return s.depth * s.rank * (left + shape.text_width + shape.vision_width)

    @property
    def needs_frozen(self) -> bool:
        return self.settings.consistency != "off"

    def prompts(self) -> Prompts:
        text = [u @ v for u, v in zip(self.U, self.V_text, strict=True)]
        if self.words is not None:
            text[0] = text[0] + self.words
        left = self.U if self.U_vision is None else self.U_vision
        return Prompts(text, [u @ v for u, v in zip(left, self.V_vision, strict=True)])

    def anchors(self, classes: Classes) -> Tensor:
        """Unit-norm frozen text features g: [C, e]."""
        words = f"{self.settings.ctx_init} {{}}.".strip()
        templates = GENERIC_60 if self.settings.anchor == "templates" else (words,)
        return self.clip.frozen_text(classes, templates, normalise_each=False)

    def text_features(self, classes: Classes) -> Tensor:
        text = super().text_features(classes)
        if self.settings.drift == "both" or (self.settings.drift == "test" and not self.training):
            text = F.normalize(text - (text - self.anchors(classes)).mean(dim=0), dim=-1)
        return text

    def terms(self, batch: Batch, classes: Classes) -> dict[str, Tensor]:
        text, image = self.text_features(classes), self.image_features(batch)
        logits = self.scores(image, text)
        found = {"ce": F.cross_entropy(logits, batch.labels)}
        if batch.frozen is None:
            return found
        frozen, anchors = F.normalize(batch.frozen, dim=-1), self.anchors(classes)
        frozen_logits = self.scores(frozen, anchors)
        return found | self_regulation(image, text, logits, frozen, anchors, frozen_logits)

    def term_weights(self) -> dict[str, float]:
        s, found = self.settings, {"ce": 1.0}
        if s.consistency in ("both", "features"):
            found |= {"text": s.text_weight, "image": s.image_weight}
        if s.consistency in ("both", "logits"):
            found |= {"logits": s.logit_weight}
        return found
