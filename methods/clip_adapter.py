"""CLIP-Adapter: a bottleneck behind the image tower."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data.classnames import Classes
from promptbench.methods._base import Batch, Method
from promptbench.methods._settings import Count, Positive, Rate, Settings


class CLIPAdapterSettings(Settings):
    lr: Rate = 0.002
    epochs: Count = 200
    batch_size: Positive = 32
    reduction: Positive = Field(4, description="r: the bottleneck is e / r wide")
    ratio: float = Field(0.2, ge=0, le=1, description="alpha: the adapter's share of the image feature")


class CLIPAdapter(Method):
    """Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, IJCV 2024.

    f' = alpha relu(W_2 relu(W_1 f)) + (1 - alpha) f with f the image feature before normalisation; text is
    the frozen template. Loss = cross-entropy of s * cos(f', t_c).

    Trainable parameters: 2 e (e / r)   (ViT-B/16, r = 4: 131,072); no biases.

    Settings (gaopengcuhk/CLIP-Adapter: clip_adapter.py, which names CoOp's command: SGD 0.002, batch 32,
    50 / 100 / 100 / 200 / 200 epochs for 1 / 2 / 4 / 8 / 16 shots, ImageNet 50): alpha = 0.2 everywhere; the
    paper tunes it per dataset, 0.6 for DTD and EuroSAT. The released code has no text adapter, nor has this.
    """

    name = "clip_adapter"
    paper = "arXiv:2110.04544"
    published_name = "CLIP-Adapter"
    trains = frozenset({"head"})
    Settings = CLIPAdapterSettings
    settings: CLIPAdapterSettings

    def __init__(self, clip: FrozenCLIP, settings: CLIPAdapterSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        width = clip.shape.embed_dim
        self.down = nn.Linear(width, width // settings.reduction, bias=False)
        self.up = nn.Linear(width // settings.reduction, width, bias=False)

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        return {"epochs": 50 if dataset == "imagenet" or shots <= 1 else 100 if shots <= 4 else 200}

    @classmethod
    def parameter_count(cls, settings: CLIPAdapterSettings, shape: Shape, n_classes: int) -> int:
        return 2 * shape.embed_dim * (shape.embed_dim // settings.reduction)

    def adapted(self, frozen: Tensor) -> tuple[Tensor, Tensor]:
        """The adapter's output for features before normalisation, and both mixed: [B, e] each."""
        share = self.settings.ratio
        with torch.autocast(frozen.device.type, enabled=False):  # fp32, as official
            output = F.relu(self.up(F.relu(self.down(frozen))))
            return output, share * output + (1 - share) * frozen

    def image_features(self, batch: Batch) -> Tensor:
        assert batch.frozen is not None
        return F.normalize(self.adapted(batch.frozen)[1], dim=-1)
