"""An independent, slow and obvious reading of the method cards, to test the engine against.

It runs open_clip's own modules over the full 77-token context, one class set at a time, with none of the
engine's code. `write_goldens` uses it to make parity folders for cases that the shipped ones lack.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor

TOKENIZER = SimpleTokenizer()
CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"layers": 4, "width": 128, "patch_size": 8, "image_size": 32, "head_width": 64},
    "text_cfg": {"layers": 4, "width": 64, "heads": 1, "context_length": 77, "vocab_size": 49408},
}


def tiny_model(seed: int = 0, **changes: Any) -> CLIP:
    """A random CLIP small enough for any test, with activations of ordinary size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**{**CONFIG, **changes})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2 and "conv1" not in name:
                    parameter.mul_(1.5)
            model.logit_scale.fill_(3.4)
    return model.eval().requires_grad_(False)


def tokenize(texts: list[str]) -> Tensor:
    """CLIP token rows padded with 0: [n, 77]."""
    rows = torch.zeros(len(texts), 77, dtype=torch.long)
    for i, text in enumerate(texts):
        ids = [49406, *TOKENIZER.encode(text), 49407]
        rows[i, : len(ids)] = torch.tensor(ids)
    return rows


def run_text(model: CLIP, embedded: Tensor, tokens: Tensor, deep: list[Tensor], n: int) -> Tensor:
    """Raw text features of embedded prompts [C, 77, d]; ``deep[i]`` overwrites 1..n before block i + 1."""
    x = embedded + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        if 1 <= i <= len(deep):
            x = x.clone()
            x[:, 1 : 1 + n] = deep[i - 1]
        x = block(x, attn_mask=model.attn_mask)
    x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)]
    return x @ model.text_projection


def run_image(model: CLIP, images: Tensor, prompts: list[Tensor]) -> Tensor:
    """Raw image features with prompts appended behind the patches."""
    visual: Any = model.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1)
    x = x + visual.positional_embedding
    if prompts:
        x = torch.cat([x, prompts[0].expand(len(images), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    for i, block in enumerate(visual.transformer.resblocks):
        if 1 <= i < len(prompts):
            x = torch.cat([x[:, : -len(prompts[i])], prompts[i].expand(len(images), -1, -1)], dim=1)
        x = block(x)
    return visual.ln_post(x[:, 0]) @ visual.proj


def coop_embedded(
    model: CLIP, tokens: Tensor, ctx: Tensor, n: int, position: str, names: list[str]
) -> Tensor:
    """The token sequence of CoOp: the n placeholders give way to ctx, the name stands at ``position``."""
    frozen = model.token_embedding(tokens)
    rows = []
    for c, name in enumerate(names):
        own = ctx[c] if ctx.ndim == 3 else ctx
        start, rest = frozen[c, :1], frozen[c, 1 + n :]
        length = len(TOKENIZER.encode(name))
        if position == "end":
            parts = [start, own, rest]
        elif position == "middle":
            parts = [start, own[: n // 2], rest[:length], own[n // 2 :], rest[length:]]
        else:
            parts = [start, rest[:length], own, rest[length:]]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


class Golden:
    """One case: learnable parameters under their official names and the features they give."""

    def __init__(self, model: CLIP, case: dict[str, Any], seed: int) -> None:
        self.model, self.case = model, case
        self.names = [name.replace("_", " ") for name in case["classnames"]]
        g = torch.Generator().manual_seed(seed)
        kind, d_t, d_v = case["method"], CONFIG["text_cfg"]["width"], CONFIG["vision_cfg"]["width"]
        self.n = case["n_ctx_text"] if kind == "IVLP" else case["n_ctx"]
        words = case["ctx_init"] if case["ctx_init"] and self.n <= 4 else " ".join(["X"] * self.n)
        self.tokens = tokenize([f"{words} {name}." for name in self.names])
        p: dict[str, Tensor] = {}

        def new(name: str, *size: int) -> None:
            p[name] = (torch.randn(*size, generator=g) * 0.05).requires_grad_()

        block = "transformer.resblocks.{}.VPT_shallow"
        if kind == "CoOp":
            own = (len(self.names),) if case["class_specific_context"] else ()
            new("prompt_learner.ctx", *own, self.n, d_t)
        elif kind == "IVLP":
            if self.n:
                new("prompt_learner.ctx", self.n, d_t)
                for i in range(1, case["depth_text"]):
                    new(f"text_encoder.{block.format(i)}", self.n, d_t)
            if case["n_ctx_vision"]:
                new("image_encoder.VPT", case["n_ctx_vision"], d_v)
                for i in range(1, case["depth_vision"]):
                    new(f"image_encoder.{block.format(i)}", case["n_ctx_vision"], d_v)
        else:
            new("prompt_learner.ctx", self.n, d_t)
            new("prompt_learner.proj.weight", d_v, d_t)
            new("prompt_learner.proj.bias", d_v)
            for j in range(case["depth"] - 1):
                new(f"prompt_learner.compound_prompts_text.{j}", self.n, d_t)
                new(f"prompt_learner.compound_prompt_projections.{j}.weight", d_v, d_t)
                new(f"prompt_learner.compound_prompt_projections.{j}.bias", d_v)
        self.parameters = p

    def features(self, p: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw text and image features at parameters ``p``."""
        kind, case = self.case["method"], self.case
        ctx = p.get("prompt_learner.ctx", torch.zeros(0, CONFIG["text_cfg"]["width"]))
        deep: list[Tensor] = []
        vision: list[Tensor] = []
        if kind == "IVLP":
            deep = [v for k, v in p.items() if k.startswith("text_encoder.")]
            vision = [v for k, v in p.items() if k.startswith("image_encoder.")]
        elif kind == "MaPLe":
            deep = [p[f"prompt_learner.compound_prompts_text.{j}"] for j in range(case["depth"] - 1)]
            stem = "prompt_learner.compound_prompt_projections."
            vision = [ctx @ p["prompt_learner.proj.weight"].T + p["prompt_learner.proj.bias"]]
            for j, prompt in enumerate(deep):
                vision.append(prompt @ p[f"{stem}{j}.weight"].T + p[f"{stem}{j}.bias"])
        position = case.get("class_token_position", "end")
        embedded = coop_embedded(self.model, self.tokens, ctx, self.n, position, self.names)
        text = run_text(self.model, embedded, self.tokens, deep, self.n)
        return text, run_image(self.model, images, vision)

    def loss(self, p: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(p, images), labels)

    def logits(self, p: dict[str, Tensor], images: Tensor) -> Tensor:
        text, image = self.features(p, images)
        return self.model.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T

    def arrays(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Everything a case file holds."""
        p = self.parameters
        text, image = self.features(p, images)
        loss = self.loss(p, images, labels)
        found = {
            "tokens": self.tokens,
            "text_features_raw": text,
            "text_features": F.normalize(text, dim=-1),
            "image_features_raw": image,
            "image_features": F.normalize(image, dim=-1),
            "logits": self.logits(p, images),
            "loss": loss,
        }
        gradients = torch.autograd.grad(loss, list(p.values()))
        for (name, value), gradient in zip(p.items(), gradients, strict=True):
            found |= {f"param.{name}": value, f"grad.{name}": gradient}
        values = {name: value.detach().clone().requires_grad_() for name, value in p.items()}
        speed = {name: torch.zeros_like(value) for name, value in p.items()}
        losses = []
        for step in (1, 2, 3):  # SGD by hand: lr 0.0025, momentum 0.9, weight decay 5e-4
            loss = self.loss(values, images, labels)
            losses.append(loss.detach())
            steps = torch.autograd.grad(loss, list(values.values()))
            with torch.no_grad():
                for (name, value), gradient in zip(values.items(), steps, strict=True):
                    gradient = gradient + 5e-4 * value
                    speed[name] = gradient if step == 1 else 0.9 * speed[name] + gradient
                    value -= 0.0025 * speed[name]
                    found[f"step{step}.{name}"] = value.clone()
        found["loss_per_step"] = torch.stack(losses)
        found["logits_after"] = self.logits(values, images)
        return {key: value.detach().contiguous() for key, value in found.items()}


def write_goldens(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """A parity folder with one random frozen CLIP and the given cases."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model(seed=3)
    g = torch.Generator().manual_seed(5)
    images, labels = torch.randn(6, 3, 32, 32, generator=g), torch.tensor([0, 1, 2, 0, 1, 2])
    save_file({"images": images, "labels": labels}, folder / "inputs_T.safetensors")
    used: set[int] = set()
    for i, (name, case) in enumerate(cases.items()):
        case |= {"file": f"{name}.safetensors", "inputs": "inputs_T.safetensors"}
        golden = Golden(model, case, seed=100 + i)
        save_file(golden.arrays(images, labels), folder / case["file"])
        used |= set(golden.tokens.flatten().tolist())
    ids = torch.tensor(sorted(used))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    state |= {"token_embedding.ids": ids, "token_embedding.rows": state.pop("token_embedding.weight")[ids]}
    save_file(state, folder / "frozen_clip.safetensors")
    (folder / "cases.json").write_text(json.dumps({"cases": cases}))
