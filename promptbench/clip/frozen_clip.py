"""FrozenCLIP: open_clip's two towers, frozen, with places where a method may put prompts.

The towers run open_clip's own weights through our own forward, because three exact savings need it:
text is never padded, the part of a prompt that all classes share is run once, and the last block is
computed only where the feature is read. ``FrozenCLIP.reference`` switches to the *reference path*:
open_clip's own blocks over the full context. Both give the same features and prompt gradients.

This is the only module that touches open_clip's internals.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from promptbench.clip import weights
from promptbench.clip.cache import FeatureCache
from promptbench.clip.memory import free_memory, kept_bytes
from promptbench.clip.tokens import Position, Row, TextLayout, encode, mixed, prompt_rows, template_rows
from promptbench.data.cards import POCKET
from promptbench.data.classnames import Classes
from promptbench.storage import hash_value

_TEXT_CHUNK = 8192  # tokens run at once where no gradient is kept


#: What an adapter adds inside block ``i`` (from 0), given the block's normalised input h = ln_1(x)
#: [..., N, d]: to queries, keys and values [..., N, 3d], and to the block's output [..., N, d].
Hook = Callable[[int, Tensor], tuple[Tensor | None, Tensor | None]]
#: What it adds to the attention's output projection, given that projection's input: [..., N, d] of both.
OutHook = Callable[[int, Tensor], Tensor]


@dataclass
class Prompts:
    """What a method puts into the towers: tokens, one tensor per layer counted from the input, and hooks.

    ``text[i]`` is [n_t, d_t] and takes positions 1..n_t before block i; [C, n_t, d_t] if it differs
    between classes, and then n_t may be another number than the layout's. Where the layout has no places
    for learnable tokens, the first of them is inserted behind the start token instead (MMRL).
    ``vision[i]`` is [n_v, d_v] and stands behind the patches; the first of them may come at any layer.
    None leaves a layer's tokens as they are.

    The token of layer i replaces what came out of layer i-1 (deep prompting), or, with ``mix`` < 1, its
    share in ``mix * new + (1 - mix) * old``. Layer 0 text tokens get the positional embedding, layer 0
    vision tokens pass ``ln_pre`` (unless that is False); deeper ones get neither
    (multimodal-prompt-learning: clip/model.py).
    """

    text: Sequence[Tensor | None] = ()
    vision: Sequence[Tensor | None] = ()
    mix: float = 1.0
    ln_pre: bool = True
    text_hook: Hook | None = None
    vision_hook: Hook | None = None
    text_out_hook: OutHook | None = None
    vision_out_hook: OutHook | None = None


class FrozenCLIP:
    """The frozen backbone. Not an nn.Module, so no method can save or train it by accident.

    ``shape`` gives its sizes, ``scale`` the logit scale exp(s) [], ``preprocess`` size, mean and std of
    its pictures, ``fingerprint`` the hash of its weights file, ``architecture`` that of its configuration.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: weights.Shape,
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
        self.reference = False
        self.compiled = False
        self._block: Callable[..., Tensor] = _block
        #: What the text tower may keep for its backward pass; None: half of what is free at first use,
        #: divided among ``share`` processes.
        self.activation_bytes: int | None = None
        self.share = 1
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
        return cls(
            model,
            weights.shape_of(config),
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
        return cls(model, weights.shape_of(config), device=device)

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> "FrozenCLIP":
        """Run the blocks through torch.compile from now on: the same features and gradients, up to rounding.

        The first step of every shape takes up to minutes; see docs/speed.md for when that pays.
        """
        # A block of its own for each layer with a hook: beyond its limit torch goes on uncompiled.
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.accumulated_recompile_limit = 4096
        self.compiled, self._block = True, torch.compile(_block, backend=backend)
        return self

    # ------------------------------------------------------------------ text

    def layout(self, rows: Sequence[Row], shared: bool = True) -> TextLayout:
        """The packed layout of token rows, built once per class set. Raises UserError on a row too long."""
        key = (tuple(rows), shared)
        if key not in self._layouts:
            if len(self._layouts) >= 32:
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

    def text_features(self, layout: TextLayout, prompts: Prompts | None = None) -> Tensor:
        """Text features of every class before normalisation: [C, e].

        ``prompts.text[0]`` is required if the layout has learnable tokens.
        """
        prompts = prompts or Prompts()
        first = prompts.text[0] if prompts.text else None
        if layout.n_ctx and (first is None or first.shape[-2] != layout.n_ctx):
            raise ValueError(f"the layout holds {layout.n_ctx} context tokens, the prompts do not")
        if layout.n_ctx and any(p is not None for p in prompts.text[1:]) and not layout.deep:
            raise ValueError("deep text prompts need their context tokens right after the start token")
        x = self._text_reference(layout, prompts) if self.reference else self._text_packed(layout, prompts)
        return self._read_text(x)

    def _read_text(self, x: Tensor) -> Tensor:
        """Text features [C, e] from hidden states at the end tokens [C, d_t]."""
        return _project(self.model.ln_final(x), self.model.text_projection)

    def _text_packed(self, layout: TextLayout, prompts: Prompts) -> Tensor:
        """Hidden states at the end tokens, [C, d_t], from the packed sequence: no padding, prefix once."""
        frozen = self.model.positional_embedding[layout.positions]
        x = self.model.token_embedding.weight[layout.ids]
        if layout.n_ctx:
            x = layout.put(x, _given(prompts.text, 0))
        x = x + frozen
        blocks = self.model.transformer.resblocks
        for i, block in enumerate(blocks):
            new = _given(prompts.text, i)
            if new is not None and (i or not layout.n_ctx):
                x, layout = layout.prompted(x, new, prompts.mix)
            hook = partial(prompts.text_hook, i) if prompts.text_hook else None
            out = partial(prompts.text_out_hook, i) if prompts.text_out_hook else None
            if i == len(blocks) - 1:
                attention = partial(_attend_ends, layout=layout)
                return self._block(block, x, attention, hook, out, pick=itemgetter(layout.ends))
            attention = partial(_attend_packed, layout=layout)
            step = partial(self._block, block, attention=attention, hook=hook, out=out)
            # Run again in the backward pass instead of kept, where a thousand classes would not fit.
            x = step(x) if self._fits(x) else checkpoint(step, x, use_reentrant=False)
        raise AssertionError("a tower has at least one block")

    def _fits(self, x: Tensor) -> bool:
        """Whether what the text tower keeps of ``x`` [tokens, d_t] for the backward pass fits in memory."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return True
        if self.activation_bytes is None:
            self.activation_bytes = free_memory(self.device) // (2 * self.share)
        size = self.precision.itemsize
        return kept_bytes(len(x), x.shape[1], self.shape.text_layers, size) <= self.activation_bytes

    def _text_reference(self, layout: TextLayout, prompts: Prompts) -> Tensor:
        """The same hidden states from open_clip's own blocks over the whole padded context."""
        model, length, n = self.model, self.shape.context_length, layout.n_ctx
        padded, ends = layout.padded(length)
        x, mask = model.token_embedding(padded.clamp(min=0)), model.attn_mask
        if n:
            context = _given(prompts.text, 0).expand(len(x), n, -1)
            at = padded < 0
            slot = (-1 - padded).clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
            x = torch.where(at[..., None], context.gather(1, slot), x)
        x = x + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks):
            new = _given(prompts.text, i)
            if new is not None and (i or not n):
                new = new.expand(len(x), new.shape[-2], -1)
                places = new.shape[1] if n else 0
                if n:
                    new = mixed(new, x[:, 1 : 1 + places], prompts.mix)
                else:  # inserted, so the mask grows and every end token moves
                    ends = ends + new.shape[1]
                    longer = x.shape[1] + new.shape[1]
                    mask = torch.full((longer, longer), -math.inf, device=self.device).triu(1)
                x = torch.cat([x[:, :1], new, x[:, 1 + places :]], dim=1)
                n = n or new.shape[1]
            x = _call_block(model.transformer, block, x, mask, prompts.text_hook, prompts.text_out_hook, i)
        return x[torch.arange(len(x), device=self.device), ends]

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
        parts: dict[str, Any] = {"classes": classes.names, "templates": tuple(templates)}
        parts |= {"normalise_each": normalise_each, "normalise_mean": normalise_mean}
        # on the fast path whatever the training step takes: official code, too, computes them once
        key = {"what": "text", **self.identity(), "reference": False, **parts}
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
            features = [self._read_text(self._text_packed(layout, Prompts())) for layout in layouts]
            each = torch.cat(features)
            total += F.normalize(each, dim=-1) if normalise_each else each
        mean = total / len(templates)
        return F.normalize(mean, dim=-1) if normalise_mean else mean

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
        """What the towers' matrix products are in: autocast's type, or fp32. Residual streams are fp32."""
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32

    # ------------------------------------------------------------------ vision

    def image_features(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Image features before normalisation: images [B, 3, size, size] -> [B, e]."""
        if self.reference and prompts is None:
            return self.model.encode_image(images)
        return _project(self.image_states(images, prompts)[:, 0], self.image_projection)

    @property
    def image_projection(self) -> Tensor:
        """The map from the vision tower's width into the joint space: [d_v, e]."""
        return self.model.visual.proj

    def image_states(self, images: Tensor, prompts: Prompts | None = None, n_read: int = 0) -> Tensor:
        """The class token and the last ``n_read`` prompt tokens after ``ln_post``: [B, 1 + n_read, d_v]."""
        prompts, visual = prompts or Prompts(), self.model.visual
        x = visual.conv1(images).float().flatten(2).transpose(1, 2)  # the stream is fp32 under autocast, too
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = visual.ln_pre(x + visual.positional_embedding)
        n, blocks = 0, visual.transformer.resblocks

        def pick(t: Tensor) -> Tensor:
            return torch.cat([t[:, :1], t[:, t.shape[1] - n_read :]], dim=1) if n_read else t[:, :1]

        for i, block in enumerate(blocks):
            if (new := _given(prompts.vision, i)) is not None:
                new = new.to(x.dtype)
                if i == 0 and prompts.ln_pre:
                    new = visual.ln_pre(new)
                new = new.expand(len(x), -1, -1)
                if n:
                    new = mixed(new, x[:, -n:], prompts.mix)
                x = torch.cat([x[:, : x.shape[1] - n], new], dim=1)
                n = new.shape[1]
            if self.reference:
                hooks = prompts.vision_hook, prompts.vision_out_hook
                x = _call_block(visual.transformer, block, x, None, *hooks, i)
            else:
                hook = partial(prompts.vision_hook, i) if prompts.vision_hook else None
                out = partial(prompts.vision_out_hook, i) if prompts.vision_out_hook else None
                last = i == len(blocks) - 1
                x = self._block(block, x, F.scaled_dot_product_attention, hook, out, pick if last else None)
        return visual.ln_post(pick(x))

    def logits(self, image: Tensor, text: Tensor, scale: float | None = None) -> Tensor:
        """scale * image @ text.T for unit-norm features [B, e] and [C, e]: [B, C], always in fp32.

        ``scale`` is the backbone's own unless it is given. At a scale of 100 the rounding of bf16 would
        decide between close classes.
        """
        with torch.autocast(self.device.type, enabled=False):
            return (self.scale if scale is None else scale) * image.float() @ text.float().T

    def attention_weights(self, tower: str, layer: int) -> dict[str, Tensor]:
        """The frozen maps of a block's attention by name, [out, in] each: q, k, v and the output's o."""
        holder = self.model if tower == "text" else self.model.visual
        attn = holder.transformer.resblocks[layer].attn
        return dict(zip("qkvo", (*attn.in_proj_weight.chunk(3), attn.out_proj.weight), strict=True))


# ---------------------------------------------------------------------- blocks


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """The projection into the joint space, in fp32 under any autocast: it is tiny, features are compared."""
    with torch.autocast(x.device.type, enabled=False):
        return x.float() @ weight


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def _given(tokens: Sequence[Tensor | None], layer: int) -> Any:
    """The tokens that take their places before block ``layer``, or None."""
    return tokens[layer] if layer < len(tokens) else None


def _block(
    block: Any,
    x: Tensor,
    attention: Attention,
    hook: Callable[[Tensor], tuple[Tensor | None, Tensor | None]] | None = None,
    out: Callable[[Tensor], Tensor] | None = None,
    pick: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One pre-norm residual block of open_clip on tokens x [..., N, d].

    ``attention`` gets queries, keys and values [..., heads, N, d / heads] and returns the queries' shape.
    ``pick`` chooses the tokens that are still needed, [..., M, d]: all attend, only they are computed.
    """
    attn = block.attn
    weight, bias, width = attn.in_proj_weight, attn.in_proj_bias, attn.embed_dim
    pick = pick or (lambda t: t)

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (attn.num_heads, -1)).transpose(-3, -2)

    h = block.ln_1(x)
    read = pick(x)
    if read is x:
        q, k, v = F.linear(h, weight, bias).chunk(3, dim=-1)
    else:
        q = F.linear(pick(h), weight[:width], bias[:width])
        k, v = F.linear(h, weight[width:], bias[width:]).chunk(2, dim=-1)
    inside, beside = hook(h) if hook else (None, None)
    if inside is not None:
        more_q, more_k, more_v = inside.chunk(3, dim=-1)
        q, k, v = q + pick(more_q), k + more_k, v + more_v
    attended = attention(heads(q), heads(k), heads(v)).transpose(-3, -2).flatten(-2)
    projected = attn.out_proj(attended)
    read = read + block.ls_1(projected if out is None else projected + out(attended))
    read = read + block.ls_2(block.mlp(block.ln_2(read)))
    return read if beside is None else read + pick(beside)


def _attend_packed(q: Tensor, k: Tensor, v: Tensor, layout: TextLayout) -> Tensor:
    """Causal attention over the packed sequence: q, k, v [heads, n_tokens, d] -> the same shape."""
    if layout.dense is not None:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=layout.dense)[0]
    (k0, *ks), (v0, *vs) = _groups(k, layout), _groups(v, layout)
    q0, *qs = _groups(q, layout)
    parts = [F.scaled_dot_product_attention(q0, k0, v0, is_causal=True)[0]]
    for query, key, value, mask in zip(qs, ks, vs, layout.masks, strict=True):
        out = F.scaled_dot_product_attention(query, _after(k0, key), _after(v0, value), attn_mask=mask)
        parts.append(out.transpose(0, 1).flatten(1, 2))
    return torch.cat(parts, dim=1)


def _attend_ends(q: Tensor, k: Tensor, v: Tensor, layout: TextLayout) -> Tensor:
    """Attention of the end tokens only: q [heads, C, d] in class order -> the same shape.

    An end token sees its whole sentence, so no mask is needed where sentences are apart.
    """
    if layout.dense_ends is not None:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=layout.dense_ends)[0]
    (k0, *ks), (v0, *vs) = _groups(k, layout), _groups(v, layout)
    queries = q[:, layout.order].split([count for _, count, _ in layout.groups], dim=1)
    parts = []
    for query, key, value in zip(queries, ks, vs, strict=True):
        query = query.transpose(0, 1)[:, :, None]
        out = F.scaled_dot_product_attention(query, _after(k0, key), _after(v0, value))
        parts.append(out[:, :, 0].transpose(0, 1))
    return torch.cat(parts, dim=1)[:, layout.back]


def _groups(t: Tensor, layout: TextLayout) -> list[Tensor]:
    """Cut [heads, n_tokens, d] into the prefix [1, heads, n_prefix, d] and per suffix length a batch
    [classes, heads, length, d]."""
    sizes = [count * length for _, count, length in layout.groups]
    prefix, *parts = t.split([layout.n_prefix, *sizes], dim=1)
    batches = [
        part.unflatten(1, (count, length)).transpose(0, 1)
        for part, (_, count, length) in zip(parts, layout.groups, strict=True)
    ]
    return [prefix[None], *batches]


def _after(prefix: Tensor, own: Tensor) -> Tensor:
    """Keys (or values) of a batch of suffixes behind those of the prefix they all share."""
    return torch.cat([prefix.expand(len(own), -1, -1, -1), own], dim=2)


def _call_block(
    transformer: Any,
    block: Any,
    x: Tensor,
    mask: Tensor | None,
    hook: Hook | None,
    out: OutHook | None,
    layer: int,
) -> Tensor:
    """open_clip's own block, whatever order of dimensions its transformer uses; with a hook, which
    open_clip has no place for, ours over the same tokens."""
    if hook or out:
        attention = partial(F.scaled_dot_product_attention, attn_mask=mask)
        after = partial(out, layer) if out else None
        return _block(block, x, attention, partial(hook, layer) if hook else None, after)
    if transformer.batch_first:
        return block(x, attn_mask=mask)
    return block(x.transpose(0, 1), attn_mask=mask).transpose(0, 1)
