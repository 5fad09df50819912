"""KgCoOp: CoOp held near the frozen text features."""

from typing import Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from promptbench.data.classnames import Classes
from promptbench.methods._base import Batch
from promptbench.methods._losses import cosine_distance
from promptbench.methods._settings import Count, Positive, Rate, Wording
from promptbench.methods.coop import CoOp, CoOpSettings


class KgCoOpSettings(CoOpSettings):
    epochs: Count = 100
    batch_size: Positive = 128
    weight: Rate = Field(8.0, description="W of the distance to the frozen text features")
    anchor: Wording = Field("", description="template of the frozen text features; empty = the dataset's")


class KgCoOp(CoOp):
    """Yao et al., Visual-Language Prompt Tuning with Knowledge-guided Context Optimization, CVPR 2023.

    CoOp's context v_1..v_M from "a photo of a"; loss = cross-entropy + W * (1 - mean_c cos(t_c, g_c)), g_c
    the frozen text feature of the dataset's template (DTD's reads "a photo of a {}, a type of texture.").

    Trainable parameters: M * d_t (ViT-B/16, M = 4: 2,048). The official module also builds a layer, a
    bias and an adapter that it freezes and never uses; they are not here.

    Settings (htyao89/KgCoOp: configs/trainers/KgCoOp, scripts): W = 8, 100 epochs, batch 128, M = 4 in
    every benchmark; none are released for transfer from ImageNet, ours are the same.
    """

    name = "kgcoop"
    paper = "arXiv:2303.13283"
    published_name = "KgCoOp"
    Settings = KgCoOpSettings
    settings: KgCoOpSettings

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        return {}

    def anchors(self, classes: Classes) -> Tensor:
        """Unit-norm frozen text features g: [C, e]."""
        texture = classes.dataset == "dtd"
        usual = "a photo of a {}, a type of texture." if texture else classes.template
        return self.clip.frozen_text(classes, (self.settings.anchor or usual,))

    def terms(self, batch: Batch, classes: Classes) -> dict[str, Tensor]:
        text = self.text_features(classes)
        return {
            "ce": F.cross_entropy(self.logits(batch, text), batch.labels),
            "cos_text": cosine_distance(text, self.anchors(classes)),
        }

    def term_weights(self) -> dict[str, float]:
        return {"ce": 1.0, "cos_text": self.settings.weight}
