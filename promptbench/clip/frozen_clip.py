"""FrozenCLIP: open_clip's two towers, frozen, with places where a method may put prompts.

The towers run open_clip's own weights through our own forward (`text_tower`, `vision_tower`, `blocks`),
because three exact savings need it: text is never padded, the part of a prompt that all classes share is
run once, and the last block is computed only where the feature is read. `reference.ReferenceCLIP` runs
open_clip's own blocks over the full context instead and gives the same features and prompt gradients.

Only the modules of this folder touch open_clip's internals.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import backbones, weights
from promptbench.clip.blocks import project, run_block
from promptbench.clip.cache import FeatureCache
from promptbench.clip.memory import ActivationMemory, active_precision
from promptbench.clip.prompts import Prompts
from promptbench.clip.text_tower import TextTower
from promptbench.clip.tokenizer import Row, encode
from promptbench.clip.tokens import Position, TextLayout, prompt_rows, template_rows
from promptbench.clip.vision_tower import VisionTower
from promptbench.data.cards import POCKET
from promptbench.data.classnames import Classes
from promptbench.storage import hash_value

_TEXT_CHUNK = 8192  # tokens run at once where no gradient is kept
_LAYOUTS = 32  # class sets whose layout is kept


class FrozenCLIP:
    """The frozen backbone. Not an nn.Module, so no method can save or train it by accident.

    ``shape`` gives its sizes, ``scale`` the logit scale exp(s) [], ``preprocess`` size, mean and std of
    its images, ``fingerprint`` the hash of its weights file, ``architecture`` that of its configuration,
    ``memory`` what the text tower may keep for its backward pass.
    """

    reference: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        shape: backbones.Shape,
        preprocess: dict[str, Any] | None = None,
        fingerprint: str = "",
        architecture: str = "",
        device: torch.device | str = "cpu",
        cache: FeatureCache | None = None,
    ) -> None:
        torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32 in the patch embedding, too
        self.model: Any = model
        self.model.to(device).eval().requires_grad_(False)
        self.shape = shape
        self.preprocess = preprocess or {"size": shape.image_size, "mean": weights.MEAN, "std": weights.STD}
        self.fingerprint, self.architecture = fingerprint, architecture
        self.device = torch.device(device)
        self.scale: Tensor = model.get_parameter("logit_scale").exp()
        self.compiled = False
        self.memory = ActivationMemory(self.device, shape.text_layers)
        self.text_tower = TextTower(self.model, self.memory)
        self.vision_tower = VisionTower(self.model.visual)
        # Without a fingerprint of the weights nothing may outlive this object.
        self.cache = cache if cache and fingerprint else FeatureCache(None)
        self._layouts: dict[Any, TextLayout] = {}
        self._known: Tensor | None = None
        self._frozen: dict[Any, Tensor] = {}

    @classmethod
    def load(
        cls,
        name: str = POCKET,
        pretrained: str | None = None,
        device: torch.device | str = "cpu",
        cache: FeatureCache | None = None,
    ) -> "FrozenCLIP":
        """A backbone by open_clip name (or "pocket") with weights from a tag or file. Raises UserError."""
        model, config, fingerprint = weights.load_model(name, pretrained)
        return FrozenCLIP(
            model,
            backbones.shape_of(config),
            weights.preprocessing(name, pretrained),
            fingerprint,
            hash_value(config),
            device,
            cache,
        )

    @classmethod
    def untrained(cls, name: str, device: torch.device | str = "cpu") -> "FrozenCLIP":
        """A backbone with random weights, for measuring speed. Raises UserError for an unknown name."""
        model, config = weights.untrained_model(name)
        return FrozenCLIP(model, backbones.shape_of(config), device=device)

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> "FrozenCLIP":
        """Run the blocks through torch.compile from now on: the same features and gradients, up to rounding.

        The first step of every shape takes up to minutes; see docs/speed.md for when that pays.
        """
        # A block of its own for each layer with a hook: beyond its limit torch goes on uncompiled.
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.accumulated_recompile_limit = 4096
        self.compiled = True
        self.text_tower.run_block = self.vision_tower.run_block = torch.compile(run_block, backend=backend)
        return self

    # ------------------------------------------------------------------ tokens

    def layout(self, rows: Sequence[Row], shared: bool = True) -> TextLayout:
        """The packed layout of token rows, built once per class set. Raises UserError on a row too long."""
        key = (tuple(rows), shared)
        if key not in self._layouts:
            if len(self._layouts) >= _LAYOUTS:
                self._layouts.pop(next(iter(self._layouts)))
            self._layouts[key] = TextLayout(rows, self.shape.context_length, shared, self.device)
        return self._layouts[key]

    def prompt_layout(
        self,
        classes: Classes,
        words: str,
        n_ctx: int,
        position: Position = "end",
        shared: bool = True,
        sentence: str = "{}.",
    ) -> TextLayout:
        """The layout of ``<n_ctx learnable tokens> <class name>.``, see `tokens.prompt_rows`."""
        return self.layout(prompt_rows(classes.names, words, n_ctx, position, sentence), shared)

    def embed(self, words: str) -> Tensor:
        """Frozen token embeddings of ``words``, without start and end token: [tokens, d_t]."""
        return self.model.token_embedding.weight[torch.tensor(encode(words), device=self.device)]

    def known(self, tokens: Row) -> Row:
        """Those of ``tokens`` that have an embedding: a backbone may ship only the rows of its own corpus."""
        if self._known is None:
            self._known = self.model.token_embedding.weight.ne(0).any(dim=1).cpu()
        return tuple(token for token in tokens if self._known[token])

    # ------------------------------------------------------------------ features

    def text_features(self, layout: TextLayout, prompts: Prompts | None = None) -> Tensor:
        """Text features of every class before normalisation: [C, e].

        ``prompts.text[0]`` is required if the layout has learnable tokens.
        """
        prompts = prompts or Prompts()
        first = prompts.text_tokens(0)
        if layout.n_ctx and (first is None or first.shape[-2] != layout.n_ctx):
            raise ValueError(f"the layout holds {layout.n_ctx} context tokens, the prompts do not")
        if layout.n_ctx and any(p is not None for p in prompts.text[1:]) and not layout.deep:
            raise ValueError("deep text prompts need their context tokens right after the start token")
        return self.text_tower.features(layout, prompts)

    def image_features(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Image features before normalisation: images [B, 3, size, size] -> [B, e]."""
        return project(self.image_states(images, prompts)[:, 0], self.image_projection)

    def image_states(self, images: Tensor, prompts: Prompts | None = None, n_read: int = 0) -> Tensor:
        """The class token and the last ``n_read`` prompt tokens after ``ln_post``: [B, 1 + n_read, d_v]."""
        return self.vision_tower.states(images, prompts or Prompts(), n_read)

    def logits(self, image: Tensor, text: Tensor, scale: float | None = None) -> Tensor:
        """scale * image @ text.T for unit-norm features [B, e] and [C, e]: [B, C], always in fp32.

        ``scale`` is the backbone's own unless it is given. At a scale of 100 the rounding of bf16 would
        decide between close classes.
        """
        with torch.autocast(self.device.type, enabled=False):
            return (self.scale if scale is None else scale) * image.float() @ text.float().T

    # ------------------------------------------------------------------ frozen text

    def frozen_text(
        self,
        classes: Classes,
        templates: Sequence[str],
        normalise_each: bool = True,
        normalise_mean: bool = True,
    ) -> Tensor:
        """Frozen text features of a template ensemble: [C, e], computed once per class set.

        Mean over templates of the (normalised, or with ``normalise_each`` False raw) features,
        normalised once more unless ``normalise_mean`` is False. Zero-shot CLIP normalises each,
        PromptSRC's anchors only the mean, TaskRes neither.
        """
        key: dict[str, Any] = {"what": "text", **self.identity()}
        key |= {"classes": classes.names, "templates": tuple(templates)}
        key |= {"normalise_each": normalise_each, "normalise_mean": normalise_mean}
        memo = tuple(key.values())
        if memo not in self._frozen:
            features = self.cache.get(
                key, lambda: self._ensemble(classes, templates, normalise_each, normalise_mean)
            )
            self._frozen[memo] = features.to(self.device)
        return self._frozen[memo]

    @torch.no_grad()
    def _ensemble(
        self, classes: Classes, templates: Sequence[str], normalise_each: bool, normalise_mean: bool
    ) -> Tensor:
        total = torch.zeros(len(classes), self.shape.embed_dim, device=self.device)
        for template in templates:
            rows = template_rows(classes.names, template)
            # Bounded memory for thousands of classes: as many rows at a time as fit in a chunk of tokens.
            step = max(1, _TEXT_CHUNK // max(len(row) for row in rows))
            chunks = [rows[i : i + step] for i in range(0, len(rows), step)]
            length = self.shape.context_length
            layouts = [TextLayout(chunk, length, device=self.device) for chunk in chunks]
            each = torch.cat([self.text_tower.features(layout, Prompts()) for layout in layouts])
            total += F.normalize(each, dim=-1) if normalise_each else each
        mean = total / len(templates)
        return F.normalize(mean, dim=-1) if normalise_mean else mean

    # ------------------------------------------------------------------ what it is

    def identity(self) -> dict[str, Any]:
        """What frozen features depend on besides their input: the key of every cache."""
        return {
            "weights": self.fingerprint,
            "architecture": self.architecture,
            "device": self.device.type,
            "precision": str(self.precision),
            "reference": self.reference,
            "compiled": self.compiled,
        }

    @property
    def precision(self) -> torch.dtype:
        """The number format of the towers' matrix products: autocast's, or fp32. Residual streams are
        fp32."""
        return active_precision(self.device)

    @property
    def image_projection(self) -> Tensor:
        """The map from the vision tower's width into the joint space: [d_v, e]."""
        return self.model.visual.proj

    def attention_weights(self, tower: str, layer: int) -> dict[str, Tensor]:
        """The frozen maps of a block's attention by name, [out, in] each: q, k, v and the output's o."""
        holder = self.model if tower == "text" else self.model.visual
        attn = holder.transformer.resblocks[layer].attn
        return dict(zip("qkvo", (*attn.in_proj_weight.chunk(3), attn.out_proj.weight), strict=True))
