"""PromptSRC: IVLP that regulates itself by the frozen model and by its own past."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from promptbench.data.classnames import Classes
from promptbench.methods._base import Batch
from promptbench.methods._losses import self_regulation
from promptbench.methods._settings import Rate
from promptbench.methods._templates import GENERIC_60
from promptbench.methods.ivlp import IVLP, IVLPSettings

# Few-shot datasets whose aggregation is centred late and narrow; the others' is centred at 30, width 30.
LATE = {"stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"}


class PromptSRCSettings(IVLPSettings):
    gpa_mean: float = 15.0
    gpa_std: Rate = 1.0
    text_weight: Rate = 25.0
    image_weight: Rate = 10.0
    logit_weight: Rate = 1.0


class PromptSRC(IVLP):
    """Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without Forgetting, ICCV 2023.

    IVLP's prompts; loss = cross-entropy + 25 mean|t_c - g_c| + 10 mean|f - z| + KL(p_frozen || p) / (B C)
    with z the frozen feature of the same view, g_c the mean over 60 templates of un-normalised text
    features, normalised once, p_frozen the frozen model's softmax. The learned tensors that are tested
    are the Gaussian-weighted sum of those after each epoch (gpa_mean, gpa_std in epochs).

    Trainable parameters: J_t * n_t * d_t + J_v * n_v * d_v   (ViT-B/16, 4 + 4 tokens, depth 9: 46,080).

    Settings (muzairkhattak/PromptSRC: configs/trainers/PromptSRC, docs/TRAIN.md): base2novel 20 epochs,
    aggregation 15 / 1; crossdataset and domain depth 3, 20 epochs, 6 / 10; fewshot 50 epochs, 30 / 30, or
    45 / 5 for Cars, Flowers, Aircraft, DTD and EuroSAT. The official code aggregates the frozen weights
    too, in fp16, which only adds rounding; here the learned tensors, in fp32.
    """

    name = "promptsrc"
    paper = "arXiv:2307.06948"
    published_name = "PromptSRC"
    Settings = PromptSRCSettings
    settings: PromptSRCSettings

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        if benchmark in ("crossdataset", "domain"):
            return {"depth_text": 3, "depth_vision": 3, "gpa_mean": 6.0, "gpa_std": 10.0}
        if benchmark == "fewshot":
            mean, std = (45.0, 5.0) if dataset in LATE else (30.0, 30.0)
            return {"epochs": 50, "gpa_mean": mean, "gpa_std": std}
        return {}

    @property
    def needs_frozen(self) -> bool:
        return True

    def anchors(self, classes: Classes) -> Tensor:
        """Unit-norm frozen text features g: [C, e]."""
        return self.clip.frozen_text(classes, GENERIC_60, normalise_each=False)

    def terms(self, batch: Batch, classes: Classes) -> dict[str, Tensor]:
        """The four terms of the loss: ``ce``, ``text``, ``image``, ``logits``."""
        assert batch.frozen is not None
        text, image, anchors = self.text_features(classes), self.image_features(batch), self.anchors(classes)
        logits, frozen = self.scores(image, text), F.normalize(batch.frozen, dim=-1)
        regulation = self_regulation(image, text, logits, frozen, anchors, self.scores(frozen, anchors))
        return {"ce": F.cross_entropy(logits, batch.labels), **regulation}

    def term_weights(self) -> dict[str, float]:
        s = self.settings
        return {"ce": 1.0, "text": s.text_weight, "image": s.image_weight, "logits": s.logit_weight}
