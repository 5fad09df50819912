"""Tip-Adapter: a cache of the shots, asked by similarity; nothing is trained."""

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data.classnames import Classes
from promptbench.errors import UserError
from promptbench.methods._base import Batch, Method, Shots, trained_index
from promptbench.methods._settings import Positive, Settings, Template
from promptbench.methods._templates import IMAGENET, SELECT_7

# Per dataset: largest beta and alpha of the search, alpha to start from.
SEARCH: dict[str, tuple[float, float, float]] = {
    "imagenet": (7, 3, 1.17),
    "caltech101": (12, 5, 3),
    "oxford_pets": (7, 3, 1.17),
    "stanford_cars": (20, 10, 3),
    "oxford_flowers": (50, 50, 10),
    "food101": (10, 10, 1.17),
    "fgvc_aircraft": (30, 30, 5),
    "sun397": (12, 10, 1.17),
    "dtd": (13, 13, 2),
    "eurosat": (12, 10, 2),
    "ucf101": (7, 3, 3),
}


class TipAdapterSettings(Settings):
    crop_min: float = Field(0.5, gt=0, le=1, description="smallest area of the random crop")
    drop_last: bool = Field(False, description="leave out a short last batch; the official loader does not")
    templates: tuple[Template, ...] = Field((), description="of the text features; empty = the dataset's")
    shots: Positive = Field(16, description="K: images of a class in the cache; that of the trial")
    passes: Positive = Field(10, description="augmented views that a key is the mean of")
    alpha: float = Field(2.0, ge=0, description="weight of the cache before the search")
    beta: float = Field(1.0, ge=0, description="sharpness of the cache before the search")
    alpha_max: float = Field(10.0, ge=0, description="end of the search; 0 = no search")
    beta_max: float = Field(12.0, ge=0, description="end of the search; 0 = no search")
    alpha_steps: Positive = Field(20, description="values of alpha that are tried")
    beta_steps: Positive = Field(200, description="values of beta that are tried")


class TipAdapter(Method):
    """Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022.

    logits = s * cos(f, t_c) + alpha * sum_i exp(-beta (1 - cos(f, k_i))) [label of i is c]; the key k_i of a
    training image is the mean of its image features over 10 augmented views, normalised; these views are
    drawn apart from those of training epochs. alpha and beta
    are searched (20 and 200 values) on the few-shot validation images; without any, they stay as they
    start.

    Trainable parameters: 0; the cache holds C K e numbers. A class that was not trained on has no entry:
    zero-shot.

    Text: the dataset's template, for ImageNet the seven "select" ones. The ends of the search and the start
    of alpha are the authors', per dataset; 12, 10 and 2 elsewhere are ours. The official code
    (gaopengcuhk/Tip-Adapter: main.py) searches on the whole validation split, for
    ImageNet on the test images; here on min(K, 4) images of a class, for ImageNet not at all. Its s is
    the constant 100 (``--set logit_scale=100``), ours the backbone's own.
    """

    name = "tip_adapter"
    paper = "arXiv:2207.09519"
    published_name = "Tip-Adapter"
    unfit = {"crossdataset": "its cache has no entries for the classes of other datasets"}
    fallback = "no cache entries, so zero-shot, for classes it was not trained on"
    Settings = TipAdapterSettings
    settings: TipAdapterSettings
    keys: Tensor  # [C K, e]
    labels: Tensor  # [C K]
    weights: Tensor  # alpha, beta

    def __init__(self, clip: FrozenCLIP, settings: TipAdapterSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        self.classes = classes
        n = len(classes) * settings.shots
        self.register_buffer("keys", torch.zeros(n, clip.shape.embed_dim))
        self.register_buffer("labels", torch.zeros(n, dtype=torch.long))
        self.register_buffer("weights", torch.tensor([settings.alpha, settings.beta], dtype=torch.float64))

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        found: dict[str, Any] = {"shots": shots}
        if dataset in SEARCH:
            found |= dict(zip(("beta_max", "alpha_max", "alpha"), SEARCH[dataset], strict=True))
        return found

    def before_training(self, shots: Shots) -> None:
        if len(shots.labels) != len(self.labels):
            raise UserError(
                f"{self.name}: its cache is for {self.settings.shots} shots, but there are "
                f"{len(shots.labels)} images of {len(shots.classes)} classes; leave out --set shots=..."
            )
        views = torch.stack([shots.features(number) for number in range(self.settings.passes)])
        self.keys.data.copy_(F.normalize(views.mean(dim=0), dim=-1))
        self.labels.copy_(shots.labels)

    def grid(self) -> tuple[list[float], list[float]]:
        """The values of beta and alpha that are tried; the ends themselves are not."""
        s = self.settings
        ends = ((s.beta_max, s.beta_steps), (s.alpha_max, s.alpha_steps))
        betas, alphas = ([0.1 + i * (end - 0.1) / n for i in range(n)] for end, n in ends)
        return betas, alphas

    @torch.no_grad()
    def tried(self, batch: Batch, classes: Classes) -> Iterator[Tensor]:
        """Logits [B, C] with every pair of the grid, beta in the outer loop."""
        betas, alphas = self.grid()
        text, values = self.classifier(classes)
        image = self.image_features(batch)
        with torch.autocast(image.device.type, enabled=False):
            plain, affinity = self.scores(image, text), image @ self.keys.T
            for beta in betas:
                cached = (-beta * (1 - affinity)).exp() @ values
                yield from (plain + alpha * cached for alpha in alphas)

    def after_training(self, shots: Shots) -> None:
        """Search alpha and beta: the first best pair, beta in the outer loop."""
        held_out, (betas, alphas) = shots.validation(), self.grid()
        if held_out is None or not (self.settings.alpha_max and self.settings.beta_max):
            return
        pairs = self.tried(Batch(held_out[1], frozen=held_out[0]), shots.classes)
        right = torch.stack([(logits.argmax(dim=-1) == held_out[1]).sum() for logits in pairs]).tolist()
        i, j = divmod(right.index(max(right)), len(alphas))
        self.weights.copy_(torch.tensor([alphas[j], betas[i]], dtype=torch.float64))

    def text_features(self, classes: Classes) -> Tensor:
        usual = SELECT_7 if classes.dataset in IMAGENET else (classes.template,)
        return self.clip.frozen_text(classes, self.settings.templates or usual)

    def classifier(self, classes: Classes) -> tuple[Tensor, Tensor]:
        """Text features [C, e] and which class every cache entry votes for, one-hot [N, C]."""
        votes = self.labels[:, None] == trained_index(self.classes, classes, self.labels.device)
        return self.text_features(classes), votes.to(self.keys.dtype)

    def logits(self, batch: Batch, classifier: tuple[Tensor, Tensor]) -> Tensor:
        text, values = classifier
        image, (alpha, beta) = self.image_features(batch), self.weights.to(self.keys.dtype).unbind()
        with torch.autocast(image.device.type, enabled=False):  # as the search, and as every logit
            return self.scores(image, text) + alpha * (-beta * (1 - image @ self.keys.T)).exp() @ values
