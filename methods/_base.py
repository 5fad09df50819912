"""The base of every method.

A method is one file in ``methods/``: a subclass of `Method` that owns its parameters and its mathematics
and nothing else (no optimiser, device, precision, data, saving). Its docstring is its card.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.clip.tokens import TextLayout, template_rows, uses_words
from promptbench.data.classnames import Classes
from promptbench.errors import UserError
from promptbench.methods._settings import PromptSettings
from promptbench.methods._settings import Settings as AnySettings


@dataclass
class Batch:
    """One step's images: ``labels`` [B]; ``images`` [B, 3, H, W] if the method needs them; ``frozen``
    [B, e], the frozen tower's features of the same views before normalisation, if it needs those."""

    labels: Tensor
    images: Tensor | None = None
    frozen: Tensor | None = None


@dataclass
class Shots:
    """The few training images as frozen features, for what a method fits in closed form or searches.

    ``features(pass)`` [N, e], before normalisation: of the random views of that pass (0, 1, ...), other
    ones than those of the epochs, or of the plain test views for None. ``validation()``: features [M, e]
    and labels [M] of the few-shot validation images; None where a dataset has none of its own
    (ImageNet's are its test images).
    """

    labels: Tensor
    classes: Classes
    features: Callable[[int | None], Tensor]
    validation: Callable[[], tuple[Tensor, Tensor] | None]


class Method(nn.Module):
    """One way to adapt a frozen CLIP to a list of class names.

    Subclasses set ``name`` (what the user types), ``paper`` and ``trains``: what receives gradients,
    "text" and "vision" for parameters inside or before a tower, "head" for those behind both. They
    define ``Settings`` and, as a rule, `prompts`; everything else has a default that suits the prompt
    family. ``state_dict()`` holds the learned tensors and nothing else, so moving to new class names is
    nothing but passing other `Classes`. A method with parameters of single classes says so in
    ``fallback``: what it does for a class it was not trained on.
    """

    settings: AnySettings  # subclasses name their own type, so that what they read is checked
    name: ClassVar[str]
    paper: ClassVar[str]
    trains: ClassVar[frozenset[str]] = frozenset()
    uses_shots: ClassVar[bool] = True  # False: nothing about it depends on training images
    unfit: ClassVar[Mapping[str, str]] = {}  # benchmarks it is refused in, and why
    fallback: ClassVar[str] = ""
    Settings: ClassVar[type[AnySettings]] = AnySettings
    published_name: ClassVar[str] = ""  # its name in results/published.csv

    def __init__(self, clip: FrozenCLIP, settings: AnySettings, classes: Classes) -> None:
        """``classes`` is the label space of training; only methods with per-class parameters keep it."""
        super().__init__()
        self.clip = clip
        self.settings = settings

    # -- what a method declares

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        """The paper's values that differ from the defaults of ``Settings`` in this situation."""
        return {}

    @classmethod
    def parameter_count(cls, settings: Any, shape: Shape, n_classes: int) -> int:
        """Trainable parameters by the card's formula; ``settings`` are of the class `Settings`."""
        return 0

    @classmethod
    def check(cls, settings: Any, shape: Shape) -> None:
        """Refuse settings this backbone cannot serve. Raises UserError."""
        towers = {"depth_text": shape.text_layers, "depth_vision": shape.vision_layers}
        both = dict.fromkeys(("depth", "first_layer", "last_layer", "layers"), min(towers.values()))
        for key, layers in {**both, **towers}.items():
            value = getattr(settings, key, 0)
            highest = max(value, default=0) if isinstance(value, tuple) else value
            if highest > layers:
                raise UserError(
                    f"{cls.name}: {key}={highest} but this backbone has {layers} layers; "
                    f"use --set {key}={layers} or less."
                )

    @property
    def needs_images(self) -> bool:
        """Whether the image goes through this method's own image tower."""
        return "vision" in self.trains

    @property
    def needs_frozen(self) -> bool:
        """Whether the frozen image features of a view are used (in training or instead of the tower)."""
        return not self.needs_images

    # -- what a method computes

    def prompts(self) -> Prompts:
        """The tokens for both towers."""
        return Prompts()

    def prompts_for(self, classes: Classes) -> Prompts:
        """The tokens for telling these classes apart; in testing they may depend on the dataset."""
        return self.prompts()

    def raw_text_features(self, classes: Classes) -> Tensor:
        """Text features of the prompted class names before normalisation: [C, e]."""
        return self.clip.text_features(self.layout(classes), self.prompts_for(classes))

    def template(self, classes: Classes) -> str:
        """The sentence around a class name where no context is learned: by default the dataset's."""
        return classes.template

    def layout(self, classes: Classes) -> TextLayout:
        """The text that enters the tower: ``<context> <class name>.``, or the template without a context."""
        s = self.settings
        if isinstance(s, PromptSettings):
            return self.clip.prompt_layout(classes, s.ctx_init, s.n_ctx)
        return self.clip.layout(template_rows(classes.names, self.template(classes)))

    def text_features(self, classes: Classes) -> Tensor:
        """Unit-norm text features: [C, e]; the frozen ones of `template` if no text is learned."""
        if "text" not in self.trains:
            return self.clip.frozen_text(classes, (self.template(classes),))
        return F.normalize(self.raw_text_features(classes), dim=-1)

    def text_for(self, image: Tensor, classes: Classes) -> Tensor:
        """Raw text features [C, e], or [B, C, e] if they depend on unit-norm image features [B, e]."""
        return self.raw_text_features(classes)

    def image_features(self, batch: Batch) -> Tensor:
        """Unit-norm image features: [B, e], from the frozen cache if the image tower is left alone."""
        if not self.needs_images:
            assert batch.frozen is not None
            return F.normalize(batch.frozen, dim=-1)
        assert batch.images is not None
        return F.normalize(self.clip.image_features(batch.images, self.prompts()), dim=-1)

    def classifier(self, classes: Classes) -> Any:
        """What `logits` needs of the classes, computed once per class set: text features [C, e]."""
        return self.text_features(classes)

    def logits(self, batch: Batch, classifier: Any) -> Tensor:
        """scale * image @ text.T: [B, C], with ``classifier`` from `classifier`."""
        return self.scores(self.image_features(batch), classifier)

    def scores(self, image: Tensor, text: Tensor) -> Tensor:
        """scale * image @ text.T of unit-norm features [B, e] and [C, e] at the settings' scale: [B, C]."""
        return self.clip.logits(image, text, self.settings.logit_scale or None)

    def terms(self, batch: Batch, classes: Classes) -> dict[str, Tensor]:
        """What the loss is made of, unweighted: [] each. Default: cross-entropy."""
        return {"ce": F.cross_entropy(self.logits(batch, self.classifier(classes)), batch.labels)}

    def term_weights(self) -> dict[str, float]:
        """The weights of `terms` in the loss; a term without one is left out."""
        return {"ce": 1.0}

    def loss_terms(self, batch: Batch, classes: Classes) -> dict[str, Tensor]:
        """The weighted terms that `loss` is the sum of."""
        terms = self.terms(batch, classes)
        return {name: weight * terms[name] for name, weight in self.term_weights().items()}

    def loss(self, batch: Batch, classes: Classes) -> Tensor:
        """The training loss of a batch: []."""
        return reduce(operator.add, self.loss_terms(batch, classes).values())

    def before_training(self, shots: Shots) -> None:
        """Fit what needs no gradient; also called before a cut-off training goes on."""

    def after_training(self, shots: Shots) -> None:
        """Choose what is chosen with the trained parameters."""

    # -- shared by the prompt family

    def initial_context(self, n_ctx: int, words: str) -> Tensor:
        """Layer 1 text context [n_ctx, d_t]: embeddings of the words' first n_ctx tokens, else N(0, 0.02)."""
        if uses_words(words, n_ctx):
            return self.clip.embed(words)[:n_ctx].cpu().clone()
        return torch.empty(n_ctx, self.clip.shape.text_width).normal_(std=0.02)


def trained_rows(trained: Classes, classes: Classes) -> list[int]:
    """Per class, its label in the label space of training, -1 if it was not trained on.

    Of two classes of one name (ImageNet has two kinds of missile) the same place in the same list decides;
    in another list, such as a variant's 200 classes, the first of that name in training.
    """
    if trained.names == classes.names:
        return list(range(len(classes)))
    index = {name: label for label, name in reversed(list(enumerate(trained.names)))}
    return [index.get(name, -1) for name in classes.names]


@lru_cache(maxsize=64)
def trained_index(trained: Classes, classes: Classes, device: torch.device) -> Tensor:
    """`trained_rows` as an index tensor, made once: [C]."""
    return torch.tensor(trained_rows(trained, classes), device=device)


def deep_prompts(depth: int, n_ctx: int, width: int) -> nn.ParameterList:
    """Fresh tokens [n_ctx, width] ~ N(0, 0.02) for each of ``depth`` layers."""
    return nn.ParameterList(torch.empty(n_ctx, width).normal_(std=0.02) for _ in range(depth))


def trainable_parameters(module: nn.Module) -> int:
    """Scalars with requires_grad."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
