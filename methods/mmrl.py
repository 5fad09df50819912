"""MMRL: representation tokens that enter the upper blocks of both towers."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptbench.clip import FrozenCLIP, Prompts
from promptbench.errors import UserError
from promptbench.losses import cosine_distance
from promptbench.method import Batch, Count, Method, Positive, Rate, Settings
from promptbench.names import Classes
from promptbench.tokens import TextLayout, template_rows
from promptbench.weights import Shape

#: Weight of the distance to frozen CLIP, chosen per dataset by the authors.
REGULARISATION = {
    "stanford_cars": 7.0,
    "fgvc_aircraft": 6.0,
    "sun397": 6.0,
    "dtd": 6.0,
    "food101": 5.0,
    "oxford_flowers": 4.0,
    "ucf101": 3.0,
    "imagenet": 0.5,
    "caltech101": 0.5,
    "oxford_pets": 0.2,
    "eurosat": 0.01,
}


class MMRLSettings(Settings):
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Rate = 0.001
    epochs: Count = 10
    batch_size: Positive = 4
    crop_min: float = Field(0.5, gt=0, le=1)
    tokens: Positive = Field(5, description="K: representation tokens, in both towers")
    width: Positive = Field(512, description="d_r: width of their space")
    first_layer: Positive = Field(6, description="first block that gets them, counted from 1")
    share: float = Field(0.7, ge=0, le=1, description="a: the class token's share in loss and logits")
    weight: Rate = Field(0.5, description="l: of the distance to the frozen features")


class MMRL(Method):
    """Guo and Gu, MMRL: Multi-Modal Representation Learning for Vision-Language Models, CVPR 2025.

    Tokens R (K x d_r); block i >= 6 gets F_i(R) in the text and G_i(R) in the vision tower (linear, per
    block), inserted behind the start token and beside the class token, then overwritten. The class token
    gives f as ever; the K vision tokens' mean, through a projection of its own, gives f_r.
    Loss = a CE(f) + (1 - a) CE(f_r) + l (1 - cos(f, z)) + l (1 - mean cos(t_c, g_c)), z and g_c frozen.
    Testing on the classes of training uses a, 1 - a; on any other classes or dataset f alone.

    Trainable parameters: K d_r + n (d_r d_t + d_t) + n (d_r d_v + d_v) + d_v e, n = L + 1 - first_layer
    (ViT-B/16: 4,992,256).

    Settings (yunncheng/MMRL: trainers/mmrl.py, configs): AdamW 0.001, crops of at least half the picture,
    text from the dataset's template; l per dataset (others: 0.5). base2novel batch 4, 10 epochs; fewshot
    batch 32, 50 epochs; ImageNet batch 32, 5 epochs; crossdataset and domain batch 32, one epoch without
    warm-up, l = 0.2; EuroSAT d_r = 2048. The new projection starts from N(0, 1 / d_v).
    """

    name = "mmrl"
    paper = "arXiv:2503.08497"
    published_name = "MMRL"
    trains = frozenset({"text", "vision"})
    formula = "K d_r + n (d_r d_t + d_t + d_r d_v + d_v) + d_v e, n = L + 1 - first_layer"
    Settings = MMRLSettings

    def __init__(self, clip: FrozenCLIP, settings: MMRLSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        s, shape = settings, clip.shape
        self.classes = classes
        self.first = s.first_layer - 1
        self.layers = min(shape.text_layers, shape.vision_layers) - self.first
        self.tokens = nn.Parameter(torch.empty(s.tokens, s.width).normal_(std=0.02))
        self.build()

    def build(self) -> None:
        """The maps from the tokens into the towers and from the vision tokens to a feature."""
        shape, width = self.clip.shape, self.settings.width
        self.to_text = _copies(nn.Linear(width, shape.text_width), self.layers)
        self.to_vision = _copies(nn.Linear(width, shape.vision_width), self.layers)
        start = torch.empty(shape.vision_width, shape.embed_dim).normal_(std=shape.vision_width**-0.5)
        self.projection = nn.Parameter(start)

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        if benchmark in ("crossdataset", "domain"):
            return {"batch_size": 32, "epochs": 1, "warmup_epochs": 0, "weight": 0.2}
        found: dict[str, Any] = {"weight": REGULARISATION.get(dataset, 0.5)}
        if dataset == "eurosat":
            found["width"] = 2048
        if benchmark == "fewshot":
            found |= {"batch_size": 32, "epochs": 50}
        return found | ({"batch_size": 32, "epochs": 5} if dataset == "imagenet" else {})

    @classmethod
    def parameter_count(cls, settings: MMRLSettings, shape: Shape, n_classes: int) -> int:
        s, layers = settings, min(shape.text_layers, shape.vision_layers) + 1 - settings.first_layer
        maps = layers * (s.width + 1) * (shape.text_width + shape.vision_width)
        return s.tokens * s.width + maps + shape.vision_width * shape.embed_dim

    @classmethod
    def check(cls, settings: MMRLSettings, shape: Shape) -> None:
        layers = min(shape.text_layers, shape.vision_layers)
        if not 2 <= settings.first_layer <= layers:
            raise UserError(
                f"{cls.name}: first_layer={settings.first_layer} must be between 2 and this backbone's "
                f"{layers} layers; use --set first_layer=..."
            )

    @property
    def needs_frozen(self) -> bool:
        return True

    def prompts(self) -> Prompts:
        below: list[Tensor | None] = [None] * self.first
        text = [one(self.tokens) for one in self.to_text]
        return Prompts([*below, *text], [*below, *(one(self.tokens) for one in self.to_vision)])

    def layout(self, classes: Classes) -> TextLayout:
        return self.clip.layout(template_rows(classes.names, classes.template))

    def both_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit-norm features of the class token and of the representation tokens: [B, e] each."""
        assert batch.images is not None
        states = self.clip.image_states(batch.images, self.prompts(), n_read=self.settings.tokens)
        with torch.autocast(states.device.type, enabled=False):  # as every projection into the joint space
            states = states.float()
            plain = states[:, 0] @ self.clip.image_projection
            tokens = states[:, 1:].mean(dim=1) @ self.token_projection()
        return F.normalize(plain, dim=-1), F.normalize(tokens, dim=-1)

    def token_projection(self) -> Tensor:
        """The map from the mean representation token to the joint space: [d_v, e]."""
        return self.projection

    def image_features(self, batch: Batch) -> Tensor:
        return self.both_features(batch)[0]

    def classifier(self, classes: Classes) -> tuple[Tensor, bool]:
        """Text features, and whether the representation tokens may speak: on the classes of training."""
        return self.text_features(classes), classes == self.classes

    def logits(self, batch: Batch, classifier: tuple[Tensor, bool]) -> Tensor:
        text, trained = classifier
        plain, tokens = self.both_features(batch)
        logits, share = self.clip.logits(plain, text), self.settings.share
        return share * logits + (1 - share) * self.clip.logits(tokens, text) if trained else logits

    def loss(self, batch: Batch, classes: Classes) -> Tensor:
        assert batch.frozen is not None
        s, text, (plain, tokens) = self.settings, self.text_features(classes), self.both_features(batch)
        loss = s.share * F.cross_entropy(self.clip.logits(plain, text), batch.labels)
        loss = loss + (1 - s.share) * F.cross_entropy(self.clip.logits(tokens, text), batch.labels)
        anchors = self.clip.frozen_text(classes, (classes.template,))
        away = cosine_distance(plain, F.normalize(batch.frozen, dim=-1)) + cosine_distance(text, anchors)
        return loss + s.weight * away


def _copies(layer: nn.Linear, n: int) -> nn.ModuleList:
    """``n`` layers with the initial values of one, as the official code clones them."""
    copies = nn.ModuleList(nn.Linear(layer.in_features, layer.out_features) for _ in range(n))
    for one in copies:
        one.load_state_dict(layer.state_dict())
    return copies
