"""CLIP-LoRA, MMA, MMRL, MMRL++, M2PT, VPT and PromptSRC against the equations of their method cards.

The forward here is written from the cards, in float64 and with nothing of the engine: pre-norm blocks with
queries, keys and values written out, over the whole padded context. Features, logits, loss and the
gradient of every learned tensor must agree, on each of the engine's ways through the text tower.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.clip import backbones
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.reference import ReferenceCLIP
from promptbench.data import dataset as data
from promptbench.data.classnames import Classes
from promptbench.methods._base import Batch, Method, trainable_parameters
from promptbench.methods._registry import get_method, resolve_settings
from promptbench.methods._templates import GENERIC_60
from promptbench.training.loop import Training, create, fit
from promptbench.training.schedule import aggregation_weights
from tests import plain
from tests.conftest import close

Learned = dict[str, Tensor]
Settings = dict[str, Any]
NAMES = ("golden retriever", "grand_piano", "ox", "Boeing 737-800")
# The template of a dataset: MMRL reads it, all others must not.
CLASSES = Classes(NAMES, "{} in a satellite picture.", "seen")
PHOTO = "a photo of a {}."
LAYERS, D_T, D_V, E = 4, 64, 128, 32
WAYS = ["packed", "recomputed", "reference"]


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The tiny CLIP with two heads in either tower and biases and norms that are not 0 and 1."""
    model = plain.tiny_model(text_cfg={**plain.CONFIG["text_cfg"], "heads": 2})
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "embedding" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return model


@pytest.fixture(scope="module")
def exact(tiny: Any) -> Any:
    """The same weights in float64, for the forward of this file."""
    return copy.deepcopy(tiny).double()


@pytest.fixture(scope="module")
def backbone(tiny: Any) -> FrozenCLIP:
    """One for all tests here, so that frozen features are computed once."""
    return FrozenCLIP(tiny, backbones.shape_of(plain.CONFIG))


@pytest.fixture
def clip(backbone: FrozenCLIP) -> FrozenCLIP:
    go(backbone, "packed")
    return backbone


# ---------------------------------------------------------------------- the forward, slow and obvious


@dataclass
class Change:
    """What a method does to a tower, for block i from 0: to the tokens before it, to its query, key, value
    and output weights, and what it adds to its output, given the normalised input."""

    before: Callable[[int, Tensor], Tensor] = lambda i, x: x
    weights: Callable[[int], Sequence[Any]] = lambda i: (0.0, 0.0, 0.0, 0.0)
    beside: Callable[[int, Tensor], Any] = lambda i, h: 0.0


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    away = x - x.mean(dim=-1, keepdim=True)
    return away / (away.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def linear(x: Tensor, p: Learned, name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def slow_block(block: Any, i: int, x: Tensor, change: Change, causal: bool) -> Tensor:
    """x + attn(ln_1 x), then x + mlp(ln_2 x), then what stands beside the block."""
    attn, n = block.attn, x.shape[1]
    h = layer_norm(x, block.ln_1)
    *inner, output = change.weights(i)
    parts = zip(attn.in_proj_weight.chunk(3), inner, attn.in_proj_bias.chunk(3), strict=True)
    q, k, v = (h @ (weight + more).T + bias for weight, more, bias in parts)
    mask = x.new_full((n, n), -math.inf).triu(1) if causal else x.new_zeros(n, n)
    size, heads = x.shape[-1] // attn.num_heads, []
    for start in range(0, x.shape[-1], size):
        own = slice(start, start + size)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(size) + mask
        heads.append(scores.softmax(dim=-1) @ v[..., own])
    x = x + torch.cat(heads, dim=-1) @ (attn.out_proj.weight + output).T + attn.out_proj.bias
    wide = layer_norm(x, block.ln_2) @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
    wide = wide * torch.sigmoid(1.702 * wide)
    return x + wide @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias + change.beside(i, h)


def slow_text(model: Any, sentences: list[str], change: Change, context: Tensor | None = None) -> Tensor:
    """Raw text features; ``context`` takes the place of the first words, before the positions are added."""
    tokens = plain.tokenize(sentences)
    x = model.token_embedding.weight[tokens]
    if context is not None:
        x = torch.cat([x[:, :1], context.expand(len(x), -1, -1), x[:, 1 + len(context) :]], dim=1)
    x = x + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        x = slow_block(block, i, change.before(i, x), change, causal=True)
    ends = tokens.argmax(dim=-1) + x.shape[1] - 77
    return layer_norm(x, model.ln_final)[torch.arange(len(x)), ends] @ model.text_projection


def slow_image(model: Any, images: Tensor | None, change: Change, prompts: Tensor | None = None) -> Tensor:
    """All tokens after ``ln_post``: [B, N, d_v]; ``prompts`` stand behind the patches before ``ln_pre``."""
    assert images is not None
    visual = model.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1)
    x = x + visual.positional_embedding
    if prompts is not None:
        x = torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1)
    x = layer_norm(x, visual.ln_pre)
    for i, block in enumerate(visual.transformer.resblocks):
        x = slow_block(block, i, change.before(i, x), change, causal=False)
    return layer_norm(x, visual.ln_post)


def sentences(names: Sequence[str], template: str = PHOTO) -> list[str]:
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(dim=-1, keepdim=True).sqrt()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return -(logits - logits.logsumexp(dim=-1, keepdim=True))[torch.arange(len(labels)), labels].mean()


def similarities(model: Any, image: Tensor, text: Tensor, scale: float | None = None) -> Tensor:
    """At the model's own scale unless another is given."""
    return (model.logit_scale.exp() if scale is None else scale) * unit(image) @ unit(text).T


@dataclass
class Expected:
    """Raw features, what is tested on the classes of training, and the terms of the loss."""

    text: Tensor
    image: Tensor
    logits: Tensor
    terms: dict[str, Tensor]


def plain_loss(model: Any, text: Tensor, image: Tensor, labels: Tensor) -> Expected:
    """logits = s f . t_c, loss = cross-entropy."""
    logits = similarities(model, image, text)
    return Expected(text, image, logits, {"ce": cross_entropy(logits, labels)})


# ---------------------------------------------------------------------- the cards


def card_clip_lora(model: Any, p: Learned, batch: Batch, s: Settings) -> Expected:
    """W' = W + alpha / sqrt(r) B A for the queries, keys and values (or other maps) of the chosen blocks."""
    params = s.get("params", "qkv")

    def change(tower: str) -> Change:
        blocks = s.get(f"{tower}_blocks", range(LAYERS))

        def low_rank(i: int) -> list[Any]:
            if i not in blocks:
                return [0.0] * 4
            j = blocks.index(i)
            downs, ups = p[f"A.{tower}.{j}"].chunk(len(params)), p[f"B.{tower}.{j}"]
            own = {
                key: s["alpha"] / math.sqrt(s["rank"]) * up @ down
                for key, up, down in zip(params, ups, downs, strict=True)
            }
            return [own.get(key, 0.0) for key in "qkvo"]

        return Change(weights=low_rank)

    text = slow_text(model, sentences(NAMES), change("text"))
    image = slow_image(model, batch.images, change("vision"))[:, 0] @ model.visual.proj
    return plain_loss(model, text, image, batch.labels)


def card_mma(model: Any, p: Learned, batch: Batch, s: Settings) -> Expected:
    """y = scale Up_m(S(Down_m(ln_1 x))) beside blocks first_layer.. of both towers, S shared by them."""

    def change(tower: str) -> Change:
        def adapter(i: int, h: Tensor) -> Any:
            j = i + 1 - s["first_layer"]
            if not 0 <= j <= s.get("last_layer", LAYERS) - s["first_layer"]:
                return 0.0
            hidden = linear(linear(h, p, f"down.{tower}.{j}").relu(), p, f"shared.{j}").relu()
            return s["scale"] * linear(hidden, p, f"up.{tower}.{j}")

        return Change(beside=adapter)

    text = slow_text(model, sentences(NAMES), change("text"))
    image = slow_image(model, batch.images, change("vision"))[:, 0] @ model.visual.proj
    return plain_loss(model, text, image, batch.labels)


def representation(model: Any, p: Learned, batch: Batch, s: Settings, maps: Any, proj: Tensor) -> Expected:
    """MMRL and MMRL++: K tokens inserted behind SOT and CLS at the first chosen block, then overwritten or,
    with b < 1, mixed with what came out of the block below; loss of two classifiers and two cosines. The
    logits' scale is 100."""
    n, b = s["tokens"], s.get("mix", 1.0)
    blocks = [layer - 1 for layer in s.get("layers", range(s["first_layer"], LAYERS + 1))]

    def change(tower: str) -> Change:
        def insert(i: int, x: Tensor) -> Tensor:
            if i not in blocks:
                return x
            new = maps(tower, blocks.index(i)).expand(len(x), -1, -1)
            if i == blocks[0]:
                return torch.cat([x[:, :1], new, x[:, 1:]], dim=1)
            return torch.cat([x[:, :1], b * new + (1 - b) * x[:, 1 : 1 + n], x[:, 1 + n :]], dim=1)

        return Change(before=insert)

    rows = sentences(NAMES, CLASSES.template)
    text = slow_text(model, rows, change("text"))
    states = slow_image(model, batch.images, change("vision"))
    assert states.shape[1] == 1 + n + 16
    image, tokens = states[:, 0] @ model.visual.proj, states[:, 1 : 1 + n].mean(dim=1) @ proj
    ours, theirs = (similarities(model, one, text, 100.0) for one in (image, tokens))
    z, g = (
        slow_image(model, batch.images, Change())[:, 0] @ model.visual.proj,
        slow_text(model, rows, Change()),
    )
    terms = {
        "class token": 0.7 * cross_entropy(ours, batch.labels),
        "tokens": 0.3 * cross_entropy(theirs, batch.labels),
        "image": s["weight"] * (1 - (unit(image) * unit(z)).sum(dim=-1).mean()),
        "text": s["weight"] * (1 - (unit(text) * unit(g)).sum(dim=-1).mean()),
    }
    return Expected(text, image, 0.7 * ours + 0.3 * theirs, terms)


def card_mmrl(model: Any, p: Learned, batch: Batch, s: Settings) -> Expected:
    """A linear map with bias for every block and tower, and a projection of the tokens' own."""
    return representation(
        model, p, batch, s, lambda tower, j: linear(p["tokens"], p, f"to_{tower}.{j}"), p["projection"]
    )


def card_mmrlpp(model: Any, p: Learned, batch: Batch, s: Settings) -> Expected:
    """Shared matrix + residual of rank r, B on the input's side + own bias; projection = CLIP's + product of
    low rank."""

    def maps(tower: str, j: int) -> Tensor:
        whole = p[f"shared.{tower}"] + p[f"A.{tower}"][j] @ p[f"B.{tower}"][j]
        return p["tokens"] @ whole.T + p[f"bias.{tower}"][j]

    proj = model.visual.proj + p["projection_A"] @ p["projection_B"]
    return representation(model, p, batch, s, maps, proj)


def over_context(tokens: Sequence[Tensor]) -> Change:
    """Deep text prompts: positions 1..n before blocks 2..J; the first ones are part of the input."""

    def put(i: int, x: Tensor) -> Tensor:
        if not 1 <= i < len(tokens):
            return x
        n = len(tokens[i])
        return torch.cat([x[:, :1], tokens[i].expand(len(x), -1, -1), x[:, 1 + n :]], dim=1)

    return Change(before=put)


def behind_patches(tokens: Sequence[Tensor]) -> Change:
    """Deep vision prompts: the last n tokens before blocks 2..J; the first ones are part of the input."""

    def put(i: int, x: Tensor) -> Tensor:
        if not 1 <= i < len(tokens):
            return x
        return torch.cat([x[:, : -len(tokens[i])], tokens[i].expand(len(x), -1, -1)], dim=1)

    return Change(before=put)


def card_vpt(model: Any, p: Learned, batch: Batch, s: Settings) -> Expected:
    """Vision tokens appended before ln_pre, replaced before blocks 2..J; frozen text."""
    tokens = [p[f"vision.{i}"] for i in range(s["depth_vision"])]
    states = slow_image(model, batch.images, behind_patches(tokens), tokens[0])
    text = slow_text(model, sentences(NAMES), Change())
    return plain_loss(model, text, states[:, 0] @ model.visual.proj, batch.labels)


def card_m2pt(model: Any, p: Learned, batch: Batch, s: Settings) -> Expected:
    """Vision tokens before CLS and behind ln_pre, in every layer; text tokens T_i + G(V_i)."""
    vision = [p[f"vision.{i}"] for i in range(s["depth"])]
    text = [p[f"text.{i}"] + linear(v, p, "interaction") for i, v in enumerate(vision)]
    n = len(vision[0])

    def put(i: int, x: Tensor) -> Tensor:
        if i >= len(vision):
            return x
        return torch.cat([vision[i].expand(len(x), -1, -1), x[:, n if i else 0 :]], dim=1)

    states = slow_image(model, batch.images, Change(before=put))
    raw = slow_text(model, sentences(NAMES), over_context(text), text[0])
    return plain_loss(model, raw, states[:, n] @ model.visual.proj, batch.labels)


def card_promptsrc(model: Any, p: Learned, batch: Batch, s: Settings) -> Expected:
    """IVLP's prompts; cross-entropy + 25 mean|t - g| + 10 mean|f - z| + KL(p_ref || p) / (B C)."""
    texts = [p[f"text.{i}"] for i in range(s["depth_text"])]
    visions = [p[f"vision.{i}"] for i in range(s["depth_vision"])]
    text = slow_text(model, sentences(NAMES), over_context(texts), texts[0])
    image = slow_image(model, batch.images, behind_patches(visions), visions[0])[:, 0] @ model.visual.proj
    z = slow_image(model, batch.images, Change())[:, 0] @ model.visual.proj
    g = s["anchors"]
    logits = similarities(model, image, text)
    ours, theirs = logits.softmax(dim=-1), similarities(model, z, g).softmax(dim=-1)
    terms = {
        "ce": cross_entropy(logits, batch.labels),
        "text": 25 * (unit(text) - g).abs().sum() / g.numel(),
        "image": 10 * (unit(image) - unit(z)).abs().sum() / z.numel(),
        "logits": (theirs * (theirs.log() - ours.log())).sum() / (len(image) * len(text)),
    }
    return Expected(text, image, logits, terms)


@torch.no_grad()
def generic_anchors(model: Any) -> Tensor:
    """Features of 60 templates, averaged as they come and normalised once."""
    raw = [slow_text(model, sentences(NAMES, template), Change()) for template in GENERIC_60]
    return unit(torch.stack(raw).sum(dim=0) / 60)


CARDS: dict[str, Callable[[Any, Learned, Batch, Settings], Expected]] = {
    "clip_lora": card_clip_lora,
    "mma": card_mma,
    "mmrl": card_mmrl,
    "mmrlpp": card_mmrlpp,
    "m2pt": card_m2pt,
    "vpt": card_vpt,
    "promptsrc": card_promptsrc,
}
REPRESENTATION = {"tokens": 5, "width": 24, "first_layer": 2, "weight": 0.8}
LOW_RANK = REPRESENTATION | {"rank": 4, "projection_rank": 6, "mix": 0.3}
CASES: list[tuple[str, Settings]] = [
    ("clip_lora", {"rank": 2, "alpha": 1.0}),
    ("clip_lora", {"rank": 3, "alpha": 2.0, "dropout": 0.0}),
    ("clip_lora", {"rank": 2, "alpha": 1.0, "params": "ko", "text_blocks": (0, 3), "vision_blocks": (1,)}),
    ("mma", {"first_layer": 2, "last_layer": 3, "hidden": 8, "scale": 0.01}),
    ("mma", {"first_layer": 2, "hidden": 8, "scale": 0.001}),
    ("mma", {"first_layer": 3, "hidden": 8, "scale": 0.3}),
    ("mmrl", REPRESENTATION),
    ("mmrl", REPRESENTATION | {"first_layer": LAYERS}),
    ("mmrl", REPRESENTATION | {"layers": (1, 2, 3, 4)}),
    ("mmrlpp", LOW_RANK | {"layers": (1, 3)}),
    ("mmrlpp", LOW_RANK),
    ("mmrlpp", LOW_RANK | {"mix": 1.0, "first_layer": 3}),
    ("m2pt", {"depth": LAYERS, "n_ctx": 4}),
    ("m2pt", {"depth": 3, "n_ctx": 2}),
    ("vpt", {"depth_vision": LAYERS, "n_ctx_vision": 8}),
    ("vpt", {"depth_vision": 1, "n_ctx_vision": 2}),
    ("promptsrc", {"depth_text": 3, "depth_vision": 3}),
    ("promptsrc", {"depth_text": LAYERS, "depth_vision": 2, "n_ctx": 2, "n_ctx_vision": 3}),
]


def build(name: str, clip: FrozenCLIP, settings: Settings, classes: Classes = CLASSES) -> Any:
    """The method as it starts."""
    kind = get_method(name)
    return create(kind, clip, kind.Settings(**settings), classes, seed=1)


def moved(name: str, clip: FrozenCLIP, settings: Settings) -> Any:
    """The method away from its start, where nothing learned is zero."""
    method, g = build(name, clip, settings), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return method


def leaves(method: Method) -> Learned:
    """The learned tensors in float64, to be differentiated."""
    return {name: value.detach().double().requires_grad_() for name, value in method.state_dict().items()}


@pytest.fixture
def batch(clip: FrozenCLIP) -> Batch:
    g = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, 32, 32, generator=g)
    return Batch(torch.tensor([0, 1, 2, 3, 1]), images, clip.image_features(images))


@pytest.fixture(scope="module")
def anchors(exact: Any) -> Tensor:
    return generic_anchors(exact)


def doubled(batch: Batch) -> Batch:
    assert batch.images is not None
    return Batch(batch.labels, batch.images.double())


def go(clip: FrozenCLIP, way: str) -> FrozenCLIP:
    """The engine's way through the text tower."""
    clip.memory.bytes = 0 if way == "recomputed" else 1 << 40
    return ReferenceCLIP(clip) if way == "reference" else clip


def same_gradient(found: Tensor | None, expected: Tensor) -> bool:
    assert found is not None
    largest = expected.abs().max().item()
    return largest > 0 and (found - expected).abs().max().item() <= 1e-4 * largest


# ---------------------------------------------------------------------- features, logits, loss, gradients


def test_the_forward_here_is_open_clips(tiny: Any, exact: Any, batch: Batch) -> None:
    """Without a method: the features of open_clip itself."""
    text = slow_text(exact, sentences(NAMES), Change())
    image = slow_image(exact, doubled(batch).images, Change())[:, 0] @ exact.visual.proj
    assert close(tiny.encode_text(plain.tokenize(sentences(NAMES))), text)
    assert close(tiny.encode_image(batch.images), image)
    assert batch.frozen is not None
    assert close(batch.frozen, image)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_method_is_its_card(
    clip: FrozenCLIP, exact: Any, anchors: Tensor, batch: Batch, name: str, settings: Settings
) -> None:
    """Raw and normalised features and logits in testing; loss and all gradients."""
    p = leaves(moved(name, clip, settings))
    expected = CARDS[name](exact, p, doubled(batch), settings | {"anchors": anchors})
    total = torch.stack(list(expected.terms.values())).sum()
    assert min(expected.terms.values()).item() > 1e-3  # a term that is zero here would prove nothing
    gradients = dict(zip(p, torch.autograd.grad(total, list(p.values())), strict=True))
    for way in WAYS:
        here = go(clip, way)
        method = moved(name, here, settings).eval()
        with torch.no_grad():
            assert batch.images is not None
            assert close(method.text_features(CLASSES), unit(expected.text)), way
            assert close(method.image_features(batch), unit(expected.image)), way
            assert close(method.raw_text_features(CLASSES), expected.text), way
            assert close(here.image_features(batch.images, method.prompts()), expected.image), way
            assert close(method.logits(batch, method.classifier(CLASSES)), expected.logits, 1e-4), way
        if name != "clip_lora":  # whose dropout belongs to training
            method.train()
        loss = method.loss(batch, CLASSES)
        assert loss.item() == pytest.approx(total.item(), rel=1e-4), way
        loss.backward()
        found = {key: parameter.grad for key, parameter in method.named_parameters()}
        assert found.keys() == gradients.keys()
        # MMA's adapters learn as if their scale were 1.
        factor = 1 / settings["scale"] if name == "mma" else 1.0
        for key, gradient in gradients.items():
            assert same_gradient(found[key], factor * gradient), (way, key)


# ---------------------------------------------------------------------- CLIP-LoRA


def test_lora_starts_at_clip_and_drops_only_the_branch(clip: FrozenCLIP, batch: Batch) -> None:
    """B = 0 leaves CLIP as it is even while training: nothing else is dropped; A is Kaiming-uniform."""
    method = build("clip_lora", clip, {"rank": 8}).train()
    assert batch.frozen is not None
    assert torch.allclose(method.text_features(CLASSES), clip.frozen_text(CLASSES, (PHOTO,)), atol=1e-6)
    assert torch.allclose(method.image_features(batch), F.normalize(batch.frozen, dim=-1), atol=1e-6)
    for tower, width in (("text", D_T), ("vision", D_V)):
        a, b = torch.cat(list(method.A[tower])), torch.cat(list(method.B[tower]))
        assert a.shape == (LAYERS * 3 * 8, width)
        assert not b.any()
        # a = sqrt 5: uniform on +- sqrt(6 / (1 + 5) / d)
        assert 0.98 * width**-0.5 < a.abs().max() <= width**-0.5
        assert a.std().item() == pytest.approx((3 * width) ** -0.5, rel=0.05)


def test_lora_dropout_acts_on_the_branchs_input(clip: FrozenCLIP) -> None:
    """Mean and variance of the change over many masks: those of dropout on h, before A."""
    p, n = 0.25, 4000
    method = moved("clip_lora", clip, {"rank": 2, "dropout": p}).train()
    g = torch.Generator().manual_seed(4)
    h = torch.randn(1, D_T, generator=g)
    torch.manual_seed(5)
    drawn = method.change("text", 1, h.expand(n, 1, D_T))[0].detach()[:, 0]
    a, b = method.A["text"][1].detach().chunk(3), method.B["text"][1].detach()
    whole = torch.cat([up @ down for up, down in zip(b, a, strict=True)]) / math.sqrt(2)  # [3 d, d]
    mean = whole @ h[0]
    variance = p / (1 - p) * (whole * h).square().sum(dim=-1)
    assert ((drawn.mean(dim=0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    assert (drawn.var(dim=0) / variance - 1).abs().max() < 0.25
    assert (drawn.var(dim=0) / variance).mean().item() == pytest.approx(1, abs=0.05)


def test_lora_training_differs_and_agrees_on_average(clip: FrozenCLIP) -> None:
    method = build("clip_lora", clip, {})
    g = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for b in (*method.B["text"], *method.B["vision"]):
            b.add_(0.02 * torch.randn(b.shape, generator=g))  # small, so that towers are nearly linear in it
        tested = method.eval().raw_text_features(CLASSES)
        torch.manual_seed(7)
        drawn = torch.stack([method.train().raw_text_features(CLASSES) for _ in range(64)])
    away = (drawn - tested).norm(dim=-1).mean()
    assert away > 1e-3
    assert (drawn.mean(dim=0) - tested).norm(dim=-1).mean() < 0.3 * away


def test_lora_masks_survive_recomputation(clip: FrozenCLIP, batch: Batch) -> None:
    """Blocks run again in the backward pass draw the masks of the forward pass."""
    gradients = []
    for way in ("packed", "recomputed"):
        method = moved("clip_lora", go(clip, way), {}).train()
        torch.manual_seed(8)
        method.loss(batch, CLASSES).backward()
        gradients.append([parameter.grad for parameter in method.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("dataset", ["imagenet", "eurosat"])
def test_lora_steps(shots: int, dataset: str) -> None:
    assert resolve_settings(get_method("clip_lora"), "fewshot", shots, dataset).steps == 500 * shots


@pytest.mark.parametrize("batch_size", [4, 8])
def test_lora_takes_all_its_steps(clip: FrozenCLIP, colours: data.Dataset, batch_size: int) -> None:
    """The number of steps does not depend on how a batch divides the pictures (here 20), and the rate of
    step i of T is the cosine's at i / T, down to lr_min."""
    settings = {"steps": 9, "batch_size": batch_size, "lr": 2e-4}
    classes = colours.classes()
    method = build("clip_lora", clip, settings, classes)
    progress = fit(method, Training(colours, colours.few_shot(4, 1, "all"), classes, seed=1))
    assert progress.steps == 9
    per_epoch = math.ceil(20 / batch_size)  # a short last batch is a step
    last = [min(per_epoch * (epoch + 1), 9) - 1 for epoch in range(math.ceil(9 / per_epoch))]
    rates = [1e-6 + (2e-4 - 1e-6) * (1 + math.cos(math.pi * i / 9)) / 2 for i in last]
    assert [row["lr"] for row in progress.history] == pytest.approx(rates)


# ---------------------------------------------------------------------- MMA


@pytest.mark.parametrize(("scale", "size"), [(0.001, 30.0), (0.3, 1.0)])
def test_mma_gradient_below_is_the_true_one(
    clip: FrozenCLIP, exact: Any, batch: Batch, scale: float, size: float
) -> None:
    """Pictures and positions, which lie below all adapters, see the loss with its scale as it is."""
    settings = {"first_layer": 1, "hidden": 8, "scale": scale}
    method = moved("mma", clip, settings)
    with torch.no_grad():
        for layer in method.up.values():  # large enough that its part of the gradient counts
            for one in layer:
                one.weight.mul_(size)
    slow, p = doubled(batch), {key: value.double() for key, value in method.state_dict().items()}
    silent = {key: torch.zeros_like(value) if key.startswith("up.") else value for key, value in p.items()}

    def below(model: Any, pictures: Tensor, loss: Callable[[], Tensor]) -> list[Tensor]:
        inputs = [pictures.requires_grad_(), model.positional_embedding.requires_grad_()]
        found = torch.autograd.grad(loss(), inputs)
        model.positional_embedding.requires_grad_(False)
        return list(found)

    assert batch.images is not None
    assert slow.images is not None
    expected = below(exact, slow.images, lambda: card_mma(exact, p, slow, settings).terms["ce"])
    without = below(exact, slow.images, lambda: card_mma(exact, silent, slow, settings).terms["ce"])
    for one, other in zip(without, expected, strict=True):  # the adapters' part is seen
        assert (one - other).abs().max() > 0.05 * other.abs().max()
    for way in WAYS:
        method.clip = go(clip, way)
        found = below(clip.model, batch.images, lambda: method.loss(batch, CLASSES))
        for one, other in zip(found, expected, strict=True):
            assert same_gradient(one, other), way


def test_mma_start(clip: FrozenCLIP) -> None:
    """Kaiming-normal by fan out, biases zero: std sqrt(2 / rows), Up included."""
    method = build("mma", clip, {"first_layer": 1})
    assert len(method.shared) == len(method.up["text"]) == LAYERS
    for maps, rows in (
        (method.down["text"], 32),
        (method.down["vision"], 32),
        (method.shared, 32),
        (method.up["text"], D_T),
        (method.up["vision"], D_V),
    ):
        values = torch.cat([one.weight.flatten() for one in maps])
        assert values.std().item() == pytest.approx(math.sqrt(2 / rows), rel=0.05)
        assert not any(one.bias.any() for one in maps)


# ---------------------------------------------------------------------- MMRL, MMRL++


@pytest.mark.parametrize(("name", "settings"), [("mmrl", REPRESENTATION), ("mmrlpp", LOW_RANK)])
def test_representation_tokens_speak_only_on_the_classes_of_training(
    clip: FrozenCLIP, exact: Any, batch: Batch, name: str, settings: Settings
) -> None:
    """0.7 / 0.3 there; the class token alone for novel classes and for another dataset of the same ones."""
    method = moved(name, clip, settings).eval()
    expected = CARDS[name](exact, leaves(method), doubled(batch), settings)
    alone = similarities(exact, expected.image, expected.text, 100.0)
    assert not close(alone, expected.logits, 1e-2)
    with torch.no_grad():
        for classes, logits in (
            (CLASSES, expected.logits),
            (Classes(NAMES, CLASSES.template, "variant"), alone),
            (Classes(NAMES[2:], CLASSES.template, "seen"), alone[:, 2:]),
        ):
            assert close(method.logits(batch, method.classifier(classes)), logits, 1e-4)


def test_mmrlpp_mixes_by_target_in_testing_only(clip: FrozenCLIP, exact: Any, batch: Batch) -> None:
    """A target's own b in both towers; training, and datasets without one, have b."""
    settings = LOW_RANK | {"mix": 0.9, "target_mix": {"far": 0.2}}
    method = moved("mmrlpp", clip, settings)
    for dataset, mix in (("far", 0.2), ("near", 0.9)):
        classes = Classes(NAMES, CLASSES.template, dataset)
        for way in ("packed", "reference"):
            method.clip = go(clip, way)
            with torch.no_grad():
                training = method.train().logits(batch, method.classifier(classes))
                testing = method.eval().logits(batch, method.classifier(classes))
            for logits, share in ((training, 0.9), (testing, mix)):
                slow = card_mmrlpp(exact, leaves(method), doubled(batch), LOW_RANK | {"mix": share})
                assert close(logits, similarities(exact, slow.image, slow.text, 100.0), 1e-4)


def test_mmrl_scale_of_the_backbone(clip: FrozenCLIP, batch: Batch) -> None:
    logits = []
    for scale in (100.0, 0.0):
        method = moved("mmrl", clip, REPRESENTATION | {"logit_scale": scale}).eval()
        logits.append(method.logits(batch, method.classifier(CLASSES)))
    assert close(logits[0], logits[1] * 100 / clip.scale, 1e-4)


def test_mmrl_start(clip: FrozenCLIP) -> None:
    """Tokens N(0, 0.02), maps cloned within a family, projection N(0, 1 / d_v) and not CLIP's."""
    method = build("mmrl", clip, {"first_layer": 2, "width": 512})
    assert method.tokens.shape == (5, 512)
    assert method.tokens.std().item() == pytest.approx(0.02, rel=0.1)
    for family, width in ((method.to_text, D_T), (method.to_vision, D_V)):
        assert len(family) == LAYERS - 1
        assert all(torch.equal(one.weight, family[0].weight) for one in family)
        assert all(torch.equal(one.bias, family[0].bias) for one in family)
        assert len({one.weight.data_ptr() for one in family}) == len(family)  # copies, not one layer
        assert family[0].weight.shape == (width, 512)
    assert method.projection.std().item() == pytest.approx(D_V**-0.5, rel=0.05)
    assert not torch.allclose(method.projection, clip.model.visual.proj, atol=0.1)


def test_mmrlpp_start(clip: FrozenCLIP) -> None:
    """The tokens' projection starts at CLIP's own and all blocks share their map; A is uniform within
    1 / sqrt(r), on the output's side, B zero, and every bias that of the shared map."""
    wide = build("mmrlpp", clip, LOW_RANK | {"width": 512, "projection_rank": 64})
    for tower, width in (("text", D_T), ("vision", D_V)):
        a, b, bias = wide.A[tower], wide.B[tower], wide.bias[tower]
        assert a.shape == (LAYERS - 1, width, 4)
        assert 0.98 * 0.5 < a.abs().max() <= 0.5
        assert not torch.equal(a[0], a[1])
        assert b.shape == (LAYERS - 1, 4, 512)
        assert not b.any()
        assert (bias == bias[0]).all()
        assert 0.9 * 512**-0.5 < bias.abs().max() <= 512**-0.5
    assert 0.98 / 8 < wide.projection_A.abs().max() <= 1 / 8
    assert not wide.projection_B.any()
    method = build("mmrlpp", clip, LOW_RANK)
    assert torch.equal(method.token_projection(), clip.model.visual.proj)
    prompts = method.prompts()
    for tokens in (prompts.text, prompts.vision):
        assert tokens[0] is None
        assert all(torch.allclose(one, tokens[1]) for one in tokens[1:])


# ---------------------------------------------------------------------- M2PT, VPT


def test_m2pt_starts_without_interaction(clip: FrozenCLIP) -> None:
    """G = 0: the text prompts are T_i, T_1 the words; yet G gets a gradient."""
    method = build("m2pt", clip, {"depth": LAYERS})
    assert all(torch.equal(a, b) for a, b in zip(method.prompts().text, method.text, strict=True))
    assert torch.equal(method.text[0], clip.embed("a photo of a"))
    for tokens in (*method.text[1:], *method.vision):
        assert tokens.abs().max() <= math.sqrt(6 / sum(tokens.shape))  # Xavier-uniform
    method.text_features(CLASSES).sum().backward()
    assert method.interaction.weight.grad.abs().max() > 0


def test_vpt_has_vision_tokens_only(clip: FrozenCLIP, batch: Batch) -> None:
    method = build("vpt", clip, {"depth_vision": LAYERS})
    assert [tuple(p.shape) for p in method.parameters()] == [(8, D_V)] * LAYERS
    assert not method.text_features(CLASSES).requires_grad
    other = Classes(NAMES, "a drawing of a {}.", "other")
    assert torch.equal(method.text_features(CLASSES), method.text_features(other))


# ---------------------------------------------------------------------- PromptSRC


def test_promptsrc_terms(clip: FrozenCLIP, exact: Any, anchors: Tensor, batch: Batch) -> None:
    """Each of the four weighted terms by itself."""
    settings = {"depth_text": 3, "depth_vision": 3}
    method = moved("promptsrc", clip, settings)
    given = settings | {"anchors": anchors}
    expected = card_promptsrc(exact, leaves(method), doubled(batch), given).terms
    found = method.loss_terms(batch, CLASSES)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].item() == pytest.approx(value.item(), rel=1e-4), key


def test_promptsrc_anchors(clip: FrozenCLIP, anchors: Tensor) -> None:
    """60 templates averaged before normalisation, which is not the mean of normalised ones."""
    found = build("promptsrc", clip, {"depth_text": 3, "depth_vision": 3}).anchors(CLASSES)
    assert close(found, anchors)
    assert not close(clip.frozen_text(CLASSES, GENERIC_60), anchors, 1e-4)
    assert not found.requires_grad


def test_promptsrc_aggregation() -> None:
    """The card's weights of epochs 13..18, and the normal density in every benchmark."""
    kind = get_method("promptsrc")
    found = aggregation_weights(resolve_settings(kind, "base2novel", 16, "dtd"))
    assert found[12:18] == pytest.approx([0.054, 0.242, 0.399, 0.242, 0.054, 0.004], abs=5e-4)
    for benchmark, dataset, n, mean, std in (
        ("crossdataset", "imagenet", 20, 6, 10),
        ("fewshot", "food101", 50, 30, 30),
        ("fewshot", "eurosat", 50, 45, 5),
    ):
        found = aggregation_weights(resolve_settings(kind, benchmark, 16, dataset))
        heights = [math.exp(-((e - mean) ** 2) / (2 * std**2)) for e in range(1, n + 1)]
        assert found == pytest.approx([height / sum(heights) for height in heights])


# ---------------------------------------------------------------------- settings of the cards

SGD: Settings = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "warmup_epochs": 1,
    "warmup_lr": 1e-5,
    "schedule": "epoch",
    "lr_min": 0.0,
    "steps": 0,
    "gpa_std": 0.0,
    "crop_min": 0.08,
}
VPT = SGD | {"lr": 2.5e-3, "batch_size": 4, "epochs": 5, "n_ctx_vision": 8, "depth_vision": 12}
SRC = SGD | {"lr": 2.5e-3, "batch_size": 4, "n_ctx": 4, "n_ctx_vision": 4, "ctx_init": "a photo of a"}
SRC |= {"text_weight": 25, "image_weight": 10, "logit_weight": 1}
NINE, THREE = {"depth_text": 9, "depth_vision": 9}, {"depth_text": 3, "depth_vision": 3}
EARLY, LATE = {"gpa_mean": 30, "gpa_std": 30}, {"gpa_mean": 45, "gpa_std": 5}
LORA = SGD | {"optimizer": "adamw", "lr": 2e-4, "weight_decay": 1e-2, "lr_min": 1e-6, "schedule": "step"}
LORA |= {"warmup_epochs": 0, "batch_size": 32, "rank": 2, "alpha": 1, "dropout": 0.25}
ADAPTER = SGD | {"lr": 1.5e-3, "batch_size": 16, "epochs": 5, "warmup_epochs": 0}
ADAPTER |= {"first_layer": 5, "hidden": 32, "scale": 0.001}
TOKENS = SGD | {"optimizer": "adamw", "lr": 1e-3, "crop_min": 0.5, "tokens": 5, "first_layer": 6}
TOKENS |= {"share": 0.7, "width": 512}
TRANSFER = TOKENS | {"batch_size": 32, "epochs": 1, "warmup_epochs": 0, "weight": 0.2}
PLUS = {"rank": 4, "projection_rank": 64, "target_mix": {}, "logit_scale": 100}
# MMRL++'s card: weight and mix per dataset, and the mix of a target in transfer.
CHOSEN = {
    "imagenet": (0.2, 0.9),
    "fgvc_aircraft": (2, 0.9),
    "ucf101": (3, 0.9),
    "dtd": (7, 0.9),
    "oxford_pets": (0.01, 0.7),
    "stanford_cars": (6, 0.7),
    "caltech101": (3, 0.6),
    "sun397": (3, 0.5),
    "oxford_flowers": (7, 0.4),
    "eurosat": (0.01, 0.2),
    "food101": (1, 0.1),
    "anything else": (1.0, 0.9),
}
TARGETS = {
    "imagenetv2": 0.9,
    "imagenet_r": 0.9,
    "fgvc_aircraft": 0.9,
    "ucf101": 0.9,
    "imagenet_a": 0.8,
    "imagenet_sketch": 0.7,
    "sun397": 0.7,
    "oxford_pets": 0.6,
    "caltech101": 0.6,
    "dtd": 0.5,
    "oxford_flowers": 0.4,
    "stanford_cars": 0.3,
    "eurosat": 0.3,
    "food101": 0.3,
}
M2PT = SGD | {"lr": 2.5e-3, "batch_size": 4, "epochs": 20, "n_ctx": 4, "depth": 12}


@pytest.mark.parametrize(
    ("name", "benchmark", "dataset", "expected"),
    [
        ("vpt", "base2novel", "dtd", VPT),
        ("vpt", "crossdataset", "imagenet", VPT),
        ("promptsrc", "base2novel", "dtd", SRC | NINE | {"epochs": 20, "gpa_mean": 15, "gpa_std": 1}),
        ("promptsrc", "crossdataset", "imagenet", SRC | THREE | {"epochs": 20, "gpa_mean": 6, "gpa_std": 10}),
        ("promptsrc", "domain", "imagenet", SRC | THREE | {"epochs": 20, "gpa_mean": 6, "gpa_std": 10}),
        *[
            ("promptsrc", "fewshot", dataset, SRC | NINE | EARLY | {"epochs": 50})
            for dataset in ("imagenet", "caltech101", "oxford_pets", "food101", "ucf101", "sun397")
        ],
        *[
            ("promptsrc", "fewshot", dataset, SRC | NINE | LATE | {"epochs": 50})
            for dataset in ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")
        ],
        ("clip_lora", "fewshot", "eurosat", LORA | {"steps": 8000}),
        ("mma", "base2novel", "dtd", ADAPTER),
        ("mma", "base2novel", "imagenet", ADAPTER | {"batch_size": 128}),
        ("mma", "crossdataset", "imagenet", ADAPTER | {"batch_size": 128}),
        ("mmrl", "base2novel", "dtd", TOKENS | {"batch_size": 4, "epochs": 10, "weight": 6}),
        ("mmrl", "base2novel", "imagenet", TOKENS | {"batch_size": 32, "epochs": 5, "weight": 0.5}),
        (
            "mmrl",
            "base2novel",
            "eurosat",
            TOKENS | {"batch_size": 4, "epochs": 10, "weight": 0.01, "width": 2048},
        ),
        ("mmrl", "fewshot", "dtd", TOKENS | {"batch_size": 32, "epochs": 50, "weight": 6}),
        ("mmrl", "fewshot", "imagenet", TOKENS | {"batch_size": 32, "epochs": 5, "weight": 0.5}),
        ("mmrl", "crossdataset", "imagenet", TRANSFER),
        ("mmrl", "domain", "imagenet", TRANSFER),
        ("mmrl", "crossdataset", "eurosat", TRANSFER),
        ("mmrlpp", "base2novel", "dtd", TOKENS | PLUS | {"batch_size": 4, "epochs": 10, "weight": 7}),
        ("mmrlpp", "base2novel", "imagenet", TOKENS | PLUS | {"batch_size": 32, "epochs": 5}),
        ("mmrlpp", "fewshot", "dtd", TOKENS | PLUS | {"batch_size": 32, "epochs": 100, "lr": 2e-3}),
        ("mmrlpp", "fewshot", "imagenet", TOKENS | PLUS | {"batch_size": 32, "epochs": 5, "lr": 1e-3}),
        (
            "mmrlpp",
            "crossdataset",
            "imagenet",
            TRANSFER | PLUS | {"weight": 0.1, "mix": 0.9, "target_mix": TARGETS},
        ),
        (
            "mmrlpp",
            "domain",
            "imagenet",
            TRANSFER | PLUS | {"weight": 0.1, "mix": 0.9, "target_mix": TARGETS},
        ),
        ("m2pt", "base2novel", "dtd", M2PT),
    ],
)
def test_settings_of_the_cards(name: str, benchmark: str, dataset: str, expected: Settings) -> None:
    found = resolve_settings(get_method(name), benchmark, 16, dataset).model_dump()
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("dataset", "weight"),
    [
        ("stanford_cars", 7),
        ("fgvc_aircraft", 6),
        ("sun397", 6),
        ("dtd", 6),
        ("food101", 5),
        ("oxford_flowers", 4),
        ("ucf101", 3),
        ("imagenet", 0.5),
        ("caltech101", 0.5),
        ("oxford_pets", 0.2),
        ("eurosat", 0.01),
    ],
)
def test_mmrl_weight_per_dataset(dataset: str, weight: float) -> None:
    """In both benchmarks that train on the dataset itself."""
    for benchmark in ("base2novel", "fewshot"):
        assert resolve_settings(get_method("mmrl"), benchmark, 16, dataset).weight == weight


def test_mmrl_weight_of_other_datasets() -> None:
    """That of the YAML of the benchmark."""
    for benchmark, weight in (("base2novel", 1.0), ("fewshot", 0.5)):
        assert resolve_settings(get_method("mmrl"), benchmark, 16, "anything else").weight == weight


@pytest.mark.parametrize("dataset", CHOSEN)
def test_mmrlpp_weight_and_mix_per_dataset(dataset: str) -> None:
    for benchmark in ("base2novel", "fewshot"):
        s = resolve_settings(get_method("mmrlpp"), benchmark, 16, dataset)
        assert (s.weight, s.mix, s.width, s.target_mix) == (*CHOSEN[dataset], 512, {})
        shape = backbones.backbone_shape("ViT-B-16-quickgelu")
        assert get_method("mmrlpp").parameter_count(s, shape, 50) == 813_312


@pytest.mark.parametrize(
    ("name", "changes", "count"),
    [
        ("vpt", {"n_ctx_vision": 2, "depth_vision": 1}, 1_536),
        ("vpt", {}, 73_728),
        ("promptsrc", {}, 46_080),
        ("promptsrc", THREE, 15_360),
        ("clip_lora", {}, 12 * 3 * 2 * (2 * 512) + 12 * 3 * 2 * (2 * 768)),
        ("mma", {}, 8 * 84_320),
        ("mmrl", {}, 4_992_256),
        ("mmrl", {"width": 2048}, 18_762_496),
        ("mmrlpp", {}, 813_312),
        ("m2pt", {}, 12 * 4 * 768 + 12 * 4 * 512 + 393_728),
    ],
)
def test_counts_of_the_cards(name: str, changes: Settings, count: int) -> None:
    kind = get_method(name)
    shape = backbones.backbone_shape("ViT-B-16-quickgelu")
    assert kind.parameter_count(kind.Settings(**changes), shape, 50) == count


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_formula_counts_the_tensors(clip: FrozenCLIP, name: str, settings: Settings) -> None:
    method = build(name, clip, settings)
    counted = method.parameter_count(method.settings, clip.shape, len(NAMES))
    assert trainable_parameters(method) == counted == sum(p.numel() for p in method.state_dict().values())
