"""Tip-Adapter-F: Tip-Adapter with a trained cache."""

from typing import Any, Literal

from pydantic import Field
from torch import nn

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data.classnames import Classes
from promptbench.methods._settings import Count, Positive, Rate
from promptbench.methods.tip_adapter import TipAdapter, TipAdapterSettings


class TipAdapterFSettings(TipAdapterSettings):
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Rate = 0.001
    eps: float = Field(1e-4, gt=0, description="the official value, for fp16")
    weight_decay: float = Field(0.01, ge=0)
    epochs: Count = 20
    batch_size: Positive = 256
    warmup_epochs: Count = 0
    schedule: Literal["epoch", "step"] = "step"


class TipAdapterF(TipAdapter):
    """Zhang et al., Tip-Adapter (see ``tip_adapter``), the fine-tuned form.

    The keys k_i start as Tip-Adapter's and are trained by cross-entropy, without being normalised again,
    alpha and beta at their start values; then alpha and beta are searched.

    Trainable parameters: C K e   (ViT-B/16, ImageNet with 16 shots: 8,192,000).

    Settings (gaopengcuhk/Tip-Adapter: main.py): AdamW 0.001, eps 1e-4, decay 0.01, cosine over all steps,
    batch 256 with the short last one of an epoch, 20 epochs (EuroSAT 100), crops of at least half the
    image. The official figure is the best
    epoch on the *test* images, or the searched one if better; here it is the last epoch, searched on
    the few-shot validation images.
    """

    name = "tip_adapter_f"
    published_name = "Tip-Adapter-F"
    trains = frozenset({"head"})
    Settings = TipAdapterFSettings
    settings: TipAdapterFSettings

    def __init__(self, clip: FrozenCLIP, settings: TipAdapterFSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        start = self.keys
        del self.keys
        self.keys = nn.Parameter(start)

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        longer = {"epochs": 100} if dataset == "eurosat" else {}
        return super().paper_settings(benchmark, shots, dataset) | longer

    @classmethod
    def parameter_count(cls, settings: TipAdapterFSettings, shape: Shape, n_classes: int) -> int:
        return n_classes * settings.shots * shape.embed_dim
