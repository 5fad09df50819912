"""The base of every method, its settings, and how methods are found.

A method is one file in ``methods/``: a subclass of `Method` that owns its parameters and its mathematics
and nothing else (no optimiser, device, precision, data, saving). Its docstring is its card.
"""

import importlib
import operator
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache, reduce
from importlib import resources
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.clip.tokens import TextLayout, uses_words
from promptbench.data.classnames import Classes
from promptbench.errors import UserError, invalid, unknown
from promptbench.storage import parse_yaml

# Types of settings: a subclass that gives a field another default keeps its bounds by naming the type.
Rate = Annotated[float, Field(ge=0)]
# No count is near a million; a slip of zeros is told before it takes all memory.
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Template = Annotated[str, Field(pattern=r"\{\}")]  # {} stands for the class name
Wording = Annotated[str, Field(pattern=r"^$|\{\}")]  # the same, or nothing


class Settings(BaseModel):
    """What every method can be told about its optimisation; defaults are the field's.

    Sources: Dassl.pytorch dassl/config/defaults.py and the YAML files of CoOp, which every method of the
    family inherits. Subclasses add their own fields; the paper's values are the defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Rate = 0.002
    epochs: Count = 0
    steps: Count = Field(0, description="optimiser steps in all; replaces epochs if not 0")
    batch_size: Positive = 32
    drop_last: bool = Field(True, description="leave out a short last batch, unless it is the only one")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only")
    weight_decay: float = Field(5e-4, ge=0, description="acts on the prompts although no YAML says so")
    eps: float = Field(1e-8, gt=0, description="Adam and AdamW only")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Adam and AdamW only")
    warmup_epochs: Count = Field(1, description="epochs at warmup_lr before the cosine starts")
    warmup_lr: Rate = 1e-5
    schedule: Literal["epoch", "step"] = Field("epoch", description="how often the cosine is stepped")
    lr_min: Rate = Field(0.0, description="where the cosine ends")
    gpa_mean: float = Field(0.0, description="epoch that weighs most in Gaussian prompt aggregation")
    gpa_std: Rate = Field(0.0, description="width of its weights in epochs; 0 = no aggregation")
    crop_min: float = Field(0.08, gt=0, le=1, description="smallest area of the random crop")
    logit_scale: Rate = Field(0.0, description="s of the logits; 0 = the backbone's own")


class PromptSettings(Settings):
    """Settings of methods whose text input is ``<context> <class name>.``"""

    n_ctx: Count = Field(4, description="context tokens")
    ctx_init: str = Field("a photo of a", description="words the context starts from; empty = random")

    @model_validator(mode="after")
    def _words_fit(self) -> "PromptSettings":
        if self.ctx_init and len(self.ctx_init.split()) < self.n_ctx <= 4:
            raise ValueError("ctx_init has fewer words than n_ctx; ctx_init='' starts from random tokens")
        return self


@dataclass
class Batch:
    """One step's pictures: ``labels`` [B]; ``images`` [B, 3, H, W] if the method needs them; ``frozen``
    [B, e], the frozen tower's features of the same views before normalisation, if it needs those."""

    labels: Tensor
    images: Tensor | None = None
    frozen: Tensor | None = None


@dataclass
class Shots:
    """The few training pictures as frozen features, for what a method fits in closed form or searches.

    ``features(pass)`` [N, e], before normalisation: of the random views of that pass (0, 1, ...), other
    ones than those of the epochs, or of the plain test views for None. ``validation()``: features [M, e]
    and labels [M] of the few-shot validation pictures; None where a dataset has none of its own
    (ImageNet's are its test pictures).
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

    name: ClassVar[str]
    paper: ClassVar[str]
    trains: ClassVar[frozenset[str]] = frozenset()
    uses_shots: ClassVar[bool] = True  # False: nothing about it depends on training pictures
    unfit: ClassVar[Mapping[str, str]] = {}  # benchmarks it is refused in, and why
    fallback: ClassVar[str] = ""
    formula: ClassVar[str] = "0"
    Settings: ClassVar[type[Settings]] = Settings
    published_name: ClassVar[str] = ""  # its name in results/published.csv

    def __init__(self, clip: FrozenCLIP, settings: Any, classes: Classes) -> None:
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
        """Trainable parameters by the card's formula."""
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
        """Whether the picture goes through this method's own image tower."""
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

    def layout(self, classes: Classes) -> TextLayout:
        """The text that goes into the tower: by default ``<context> <class name>.``"""
        return self.clip.prompt_layout(classes, self.settings.ctx_init, self.settings.n_ctx)

    def text_features(self, classes: Classes) -> Tensor:
        """Unit-norm text features: [C, e]; frozen ones of the dataset's template if no text is learned."""
        if "text" not in self.trains:
            return self.clip.frozen_text(classes, (classes.template,))
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


@cache
def methods() -> dict[str, type[Method]]:
    """Every method by name: each file in ``methods/`` that defines a `Method` subclass is one."""
    import promptbench.methods as package

    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__:
                if value.name in found:
                    raise RuntimeError(f"two methods are called {value.name!r}: rename one of them")
                found[value.name] = value
    return dict(sorted(found.items()))


def get_method(name: str) -> type[Method]:
    """The method called ``name``. Raises UserError with the nearest name."""
    return get_recipe(name).method


@dataclass(frozen=True)
class Step:
    """A recipe's place in a table of ablations: the method it is an ablation ``of``, the ``group``, what it
    is called there, and ``method`` and ``setting`` of its rows in results/published.csv, if there are any."""

    of: str
    group: str
    step: str
    published: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A method, or a published variant of it under a name of its own: ``settings`` go between the paper's and
    those tuned for a backbone. ``about`` says in a few words what is different."""

    name: str
    method: type[Method]
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    ablation: tuple[Step, ...] = ()

    @property
    def label(self) -> str:
        """What tells the variant from the method: empty for the method itself."""
        return self.name.removeprefix(f"{self.method.name}-") if self.settings else ""


@cache
def recipes() -> dict[str, Recipe]:
    """Everything that can be run by name: the methods, then the variants of ``methods/recipes.yaml``."""
    text = resources.files("promptbench.methods").joinpath("recipes.yaml").read_text("utf-8")
    found = {name: Recipe(name, kind) for name, kind in methods().items()}
    for name, one in parse_yaml(text).items():
        about, usual = one.get("about", ""), {"of": one["method"], "step": one.get("about", "")}
        steps = tuple(Step(**{**usual, **step}) for step in one.get("ablation", ()))
        found.pop(name, None)  # rows of an ablation are in the order of the file
        found[name] = Recipe(name, methods()[one["method"]], one.get("settings", {}), about, steps)
    return found


def get_recipe(name: str) -> Recipe:
    """The method or variant called ``name``. Raises UserError with the nearest name."""
    if name not in recipes():
        raise unknown("method", name, recipes(), "See `promptbench ls methods`.")
    return recipes()[name]


def resolve_settings(
    method: type[Method] | Recipe,
    benchmark: str,
    shots: int,
    dataset: str,
    tuned: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Settings for one trial: the paper's, a recipe's, those ``tuned`` for the backbone, the user's.

    Raises UserError for a key that does not exist or a value that does not fit.
    """
    recipe = method if isinstance(method, Recipe) else Recipe(method.name, method)
    method = recipe.method
    for key in overrides or {}:
        if key not in method.Settings.model_fields:
            raise unknown(f"setting of {method.name}", key, method.Settings.model_fields)
    chosen = {**recipe.settings, **(tuned or {}), **(overrides or {})}
    if "epochs" in chosen:  # somebody's epochs win over a paper's steps
        chosen.setdefault("steps", 0)
    values = {**method.paper_settings(benchmark, shots, dataset), **chosen}
    try:
        return method.Settings(**values)
    except ValidationError as error:
        raise invalid(error, f"A setting of {method.name}") from None
