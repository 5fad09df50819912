"""MMRL: representation tokens that enter the upper blocks of both towers."""

from copy import deepcopy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.data.classnames import Classes
from promptbench.methods._base import Batch, Method
from promptbench.methods._losses import cosine_distance
from promptbench.methods._settings import Count, Positive, Rate, Settings, Wording

#: Weight of the distance to frozen CLIP, chosen per dataset by the authors.
REGULARISATION = {
    **dict.fromkeys(("fgvc_aircraft", "sun397", "dtd"), 6.0),
    **dict.fromkeys(("imagenet", "caltech101"), 0.5),
    **{"stanford_cars": 7.0, "food101": 5.0, "oxford_flowers": 4.0, "ucf101": 3.0},
    **{"oxford_pets": 0.2, "eurosat": 0.01},
}
Classifier = tuple[Tensor, Prompts, bool]


class MMRLSettings(Settings):
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Rate = 0.001
    epochs: Count = 10
    batch_size: Positive = 4
    crop_min: float = Field(0.5, gt=0, le=1)
    tokens: Positive = Field(5, description="K: representation tokens, in both towers")
    width: Positive = Field(512, description="d_r: width of their space")
    first_layer: Positive = Field(6, description="first block that gets them, counted from 1")
    layers: tuple[Positive, ...] = Field((), description="the blocks one by one, instead of first_layer")
    share: float = Field(0.7, ge=0, le=1, description="a: the class token's share in loss and logits")
    weight: Rate = Field(1.0, description="l: of the distance to the frozen features")
    anchor: Wording = Field("", description="template of the frozen text features; empty = the dataset's")
    logit_scale: Rate = Field(100.0, description="s of the logits; 0 = the backbone's own")

    def blocks(self, shape: Shape) -> list[int]:
        """The blocks that get tokens, counted from 0."""
        above = range(self.first_layer, min(shape.text_layers, shape.vision_layers) + 1)
        return sorted({layer - 1 for layer in self.layers or above})

    def parameters(self, shape: Shape) -> int:
        """Trainable parameters by the card's formula."""
        maps = len(self.blocks(shape)) * (self.width + 1) * (shape.text_width + shape.vision_width)
        return self.tokens * self.width + maps + shape.vision_width * shape.embed_dim


class MMRL(Method):
    """Guo and Gu, MMRL: Multi-Modal Representation Learning for Vision-Language Models, CVPR 2025.

    Tokens R (K x d_r); block i >= 6 gets F_i(R) in the text and G_i(R) in the vision tower (linear, per
    block), inserted behind the start token and beside the class token, then overwritten. The class token
    gives f as ever; the K vision tokens' mean, through a projection of its own, gives f_r.
    Loss = a CE(f) + (1 - a) CE(f_r) + l (1 - cos(f, z)) + l (1 - mean cos(t_c, g_c)), z and g_c frozen.
    The logits' scale is 100, whatever the backbone's own is. Testing on the classes of training uses
    a, 1 - a; on any other classes or dataset f alone.

    Trainable parameters: K d_r + n (d_r d_t + d_t) + n (d_r d_v + d_v) + d_v e, n = L + 1 - first_layer
    (ViT-B/16: 4,992,256).

    Settings (yunncheng/MMRL: trainers/mmrl.py, configs): AdamW 0.001, crops of at least half the image,
    text from the dataset's template; l per dataset (others: 1, in fewshot 0.5). base2novel batch 4, 10
    epochs; fewshot batch 32, 50 epochs; ImageNet batch 32, 5 epochs; EuroSAT d_r = 2048; crossdataset and
    domain batch 32, one epoch without warm-up, l = 0.2, d_r = 512. The maps of a tower start as copies of
    one, the new projection from N(0, 1 / d_v).
    """

    name = "mmrl"
    paper = "arXiv:2503.08497"
    published_name = "MMRL"
    trains = frozenset({"text", "vision"})
    Settings = MMRLSettings
    settings: MMRLSettings

    def __init__(self, clip: FrozenCLIP, settings: MMRLSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        self.classes, self.blocks = classes, settings.blocks(clip.shape)
        self.tokens = nn.Parameter(torch.empty(settings.tokens, settings.width).normal_(std=0.02))
        self.build()

    def build(self) -> None:
        """The maps from the tokens into the towers and from the vision tokens to a feature."""
        shape, width = self.clip.shape, self.settings.width
        to_text, to_vision = nn.Linear(width, shape.text_width), nn.Linear(width, shape.vision_width)
        self.to_text = nn.ModuleList(deepcopy(to_text) for _ in self.blocks)
        self.to_vision = nn.ModuleList(deepcopy(to_vision) for _ in self.blocks)
        start = torch.empty(shape.vision_width, shape.embed_dim).normal_(std=shape.vision_width**-0.5)
        self.projection = nn.Parameter(start)

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        if benchmark in ("crossdataset", "domain"):
            return {"batch_size": 32, "epochs": 1, "warmup_epochs": 0, "weight": 0.2}
        few = benchmark == "fewshot"
        found: dict[str, Any] = {"weight": REGULARISATION.get(dataset, 0.5 if few else 1.0)}
        if dataset == "imagenet":
            return found | {"batch_size": 32, "epochs": 5}
        found |= {"width": 2048} if dataset == "eurosat" else {}
        return found | ({"batch_size": 32, "epochs": 50} if few else {})

    @classmethod
    def parameter_count(cls, settings: MMRLSettings, shape: Shape, n_classes: int) -> int:
        return settings.parameters(shape)

    @property
    def needs_frozen(self) -> bool:
        return True

    def tokens_of(self, tower: str) -> list[Tensor]:
        """The tokens [K, d] of a tower for each of the blocks that get some."""
        maps = self.to_text if tower == "text" else self.to_vision
        return [one(self.tokens) for one in maps]

    def prompts(self) -> Prompts:
        chosen = [dict(zip(self.blocks, self.tokens_of(t), strict=True)) for t in ("text", "vision")]
        text, vision = ([one.get(i) for i in range(max(one) + 1)] for one in chosen)
        return Prompts(text, vision, ln_pre=False)

    def anchors(self, classes: Classes) -> Tensor:
        """Unit-norm frozen text features g: [C, e]."""
        return self.clip.frozen_text(classes, (self.settings.anchor or classes.template,))

    def both_features(self, batch: Batch, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Features of the class token and of the representation tokens, before normalisation: [B, e] each."""
        assert batch.images is not None
        states = self.clip.image_states(batch.images, prompts, n_read=self.settings.tokens)
        with torch.autocast(states.device.type, enabled=False):  # as every projection into the joint space
            states = states.float()
            plain = states[:, 0] @ self.clip.image_projection
            return plain, states[:, 1:].mean(dim=1) @ self.token_projection()

    def token_projection(self) -> Tensor:
        """[d_v, e], for the mean representation token."""
        return self.projection

    def classifier(self, classes: Classes) -> Classifier:
        """Text features, tokens, and whether the tokens take part, as they do on the classes of training."""
        return self.text_features(classes), self.prompts_for(classes), classes == self.classes

    def branches(self, batch: Batch, classifier: Classifier) -> tuple[Tensor, Tensor]:
        """Logits of the class token and of the representation tokens: [B, C] each."""
        plain, tokens = (F.normalize(one, dim=-1) for one in self.both_features(batch, classifier[1]))
        return self.scores(plain, classifier[0]), self.scores(tokens, classifier[0])

    def logits(self, batch: Batch, classifier: Classifier) -> Tensor:
        (plain, tokens), share = self.branches(batch, classifier), self.settings.share
        return share * plain + (1 - share) * tokens if classifier[2] else plain

    def terms(self, batch: Batch, classes: Classes) -> dict[str, Tensor]:
        assert batch.frozen is not None
        text, prompts, _ = self.classifier(classes)
        plain, tokens = (F.normalize(one, dim=-1) for one in self.both_features(batch, prompts))
        return {
            "ce": F.cross_entropy(self.scores(plain, text), batch.labels),
            "ce_rep": F.cross_entropy(self.scores(tokens, text), batch.labels),
            "cos_image": cosine_distance(plain, F.normalize(batch.frozen, dim=-1)),
            "cos_text": cosine_distance(text, self.anchors(classes)),
        }

    def term_weights(self) -> dict[str, float]:
        s = self.settings
        return {"ce": s.share, "ce_rep": 1 - s.share, "cos_image": s.weight, "cos_text": s.weight}
