"""An independent, slow and obvious reading of the method cards, to test the engine against.

It runs open_clip's own modules over the full 77-token context, one class set at a time, with none of the
engine's code. `write_goldens` uses it to make parity folders for cases that the shipped ones lack.
"""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor

Arrays = dict[str, Tensor]
Case = dict[str, Any]

TOKENIZER = SimpleTokenizer()
CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"layers": 4, "width": 128, "patch_size": 8, "image_size": 32, "head_width": 64},
    "text_cfg": {"layers": 4, "width": 64, "heads": 1, "context_length": 77, "vocab_size": 49408},
}
D, D_T, D_V = CONFIG["embed_dim"], CONFIG["text_cfg"]["width"], CONFIG["vision_cfg"]["width"]

unit = partial(F.normalize, dim=-1)

# Templates from protocol.md 3.2 (the 7 "select" ones, and one more) and 3.3 (the 60 of PromptSRC).
FIXED = "a photo of a {}."
SELECT = """
itap of a {}. | a bad photo of the {}. | a origami {}. | a photo of the large {}. | a {} in a video game. |
art of the {}. | a photo of the small {}. | a photo of a {}.
"""
SIXTY = """
a bad photo of a {}. | a photo of many {}. | a sculpture of a {}. | a photo of the hard to see {}. |
a low resolution photo of the {}. | a rendering of a {}. | graffiti of a {}. | a bad photo of the {}. |
a cropped photo of the {}. | a tattoo of a {}. | the embroidered {}. | a photo of a hard to see {}. |
a bright photo of a {}. | a photo of a clean {}. | a photo of a dirty {}. | a dark photo of the {}. |
a drawing of a {}. | a photo of my {}. | the plastic {}. | a photo of the cool {}. |
a close-up photo of a {}. | a black and white photo of the {}. | a painting of the {}. | a painting of a {}. |
a pixelated photo of the {}. | a sculpture of the {}. | a bright photo of the {}. | a cropped photo of a {}. |
a plastic {}. | a photo of the dirty {}. | a jpeg corrupted photo of a {}. | a blurry photo of the {}. |
a photo of the {}. | a good photo of the {}. | a rendering of the {}. | a {} in a video game. |
a photo of one {}. | a doodle of a {}. | a close-up photo of the {}. | a photo of a {}. | the origami {}. |
the {} in a video game. | a sketch of a {}. | a doodle of the {}. | a origami {}. |
a low resolution photo of a {}. | the toy {}. | a rendition of the {}. | a photo of the clean {}. |
a photo of a large {}. | a rendition of a {}. | a photo of a nice {}. | a photo of a weird {}. |
a blurry photo of a {}. | a cartoon {}. | art of a {}. | a sketch of the {}. | a embroidered {}. |
a pixelated photo of a {}. | itap of the {}.
"""
ENSEMBLE, TEACHER = (" ".join(text.split()).split(" | ") for text in (SELECT, SIXTY))


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


def run_text(model: CLIP, embedded: Tensor, tokens: Tensor, deep: list[Tensor]) -> Tensor:
    """Raw text features of embedded prompts [C, 77, d]; ``deep[i]`` overwrites 1..n before block i + 1."""
    x = embedded + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        if 1 <= i <= len(deep):
            x = x.clone()
            x[:, 1 : 1 + len(deep[i - 1])] = deep[i - 1]
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


def features_and_logits(model: CLIP, text: Tensor, image: Tensor) -> Arrays:
    """Of raw image features [B, d] and text features [C, d], or [B, C, d] where each image has its own."""
    found = {"text_features_raw": text, "text_features": unit(text)}
    found |= {"image_features_raw": image, "image_features": unit(image)}
    similarity = (found["image_features"][:, None] * found["text_features"]).sum(dim=-1)
    return found | {"logits": model.logit_scale.exp() * similarity}


def frozen_arrays(model: CLIP, templates: list[str], names: list[str], images: Tensor, each: bool) -> Arrays:
    """What the frozen model gives; text is averaged over templates, ``each`` normalised before or not."""
    rows = [tokenize([template.format(name) for name in names]) for template in templates]
    text = torch.stack([run_text(model, model.token_embedding(row), row, []) for row in rows])
    text = (unit(text) if each else text).mean(dim=0)
    tokens = torch.stack(rows).squeeze(0)  # [C, 77], or [templates, C, 77]
    return {"tokens": tokens} | features_and_logits(model, text, run_image(model, images, []))


def parameter_sizes(case: Case) -> dict[str, tuple[int, ...]]:
    """The official names of a case's learnable parameters, shallow before deep."""
    sizes: dict[str, tuple[int, ...]] = {}

    def add_prompts(at_input: str, tower: str, n: int, depth: int, width: int) -> None:
        deeper = [f"{tower}.transformer.resblocks.{i}.VPT_shallow" for i in range(1, depth)]
        sizes.update({name: (n, width) for name in [at_input, *deeper] if n})

    def add_linear(name: str, n_in: int, n_out: int) -> None:
        sizes.update({f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)})

    ctx = "prompt_learner.ctx"
    match case["method"]:
        case "CoOp":
            own = [len(case["classnames"])] if case["class_specific_context"] else []
            sizes[ctx] = (*own, case["n_ctx"], D_T)
        case "CoCoOp":
            sizes[ctx] = (case["n_ctx"], D_T)
            add_linear("prompt_learner.meta_net.linear1", D, D // 16)
            add_linear("prompt_learner.meta_net.linear2", D // 16, D_T)
        case "VPT":
            add_prompts("image_encoder.VPT", "image_encoder", case["n_ctx_vision"], case["depth_vision"], D_V)
        case "IVLP" | "PromptSRC":
            add_prompts(ctx, "text_encoder", case["n_ctx_text"], case["depth_text"], D_T)
            add_prompts("image_encoder.VPT", "image_encoder", case["n_ctx_vision"], case["depth_vision"], D_V)
        case "MaPLe":
            sizes[ctx] = (case["n_ctx"], D_T)
            add_linear("prompt_learner.proj", D_T, D_V)
            for j in range(case["depth"] - 1):
                sizes[f"prompt_learner.compound_prompts_text.{j}"] = (case["n_ctx"], D_T)
                add_linear(f"prompt_learner.compound_prompt_projections.{j}", D_T, D_V)
    return sizes


def linear(p: Arrays, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def deep_text_prompts(p: Arrays) -> list[Tensor]:
    """The text prompts of blocks 1, 2, ..."""
    stems = ("text_encoder.", "prompt_learner.compound_prompts_text.")
    return [value for name, value in p.items() if name.startswith(stems)]


def vision_prompts(p: Arrays) -> list[Tensor]:
    """The vision prompts at the input and of blocks 1, 2, ...; MaPLe's are images of its text prompts."""
    if "prompt_learner.proj.weight" not in p:
        return [value for name, value in p.items() if name.startswith("image_encoder.")]
    maps = [f"prompt_learner.compound_prompt_projections.{j}" for j in range(len(deep_text_prompts(p)))]
    first = linear(p, "prompt_learner.proj", p["prompt_learner.ctx"])
    return [first, *(linear(p, maps[j], prompt) for j, prompt in enumerate(deep_text_prompts(p)))]


def cocoop_shifts(p: Arrays, image: Tensor) -> Tensor:
    """What CoCoOp adds to every context vector of an image: [B, d]."""
    hidden = linear(p, "prompt_learner.meta_net.linear1", unit(image)).relu()
    return linear(p, "prompt_learner.meta_net.linear2", hidden)


def promptsrc_terms(case: Case, teacher: Arrays, found: Arrays) -> Arrays:
    """What PromptSRC adds to cross-entropy."""
    text = (found["text_features"] - teacher["text_features"]).abs().mean()
    image = (found["image_features"] - teacher["image_features"]).abs().mean()
    log_p, log_q = found["logits"].log_softmax(dim=-1), teacher["logits"].log_softmax(dim=-1)
    return {
        "loss_text_l1_x25": case["text_loss_weight"] * text,
        "loss_image_l1_x10": case["image_loss_weight"] * image,
        "loss_kl_logits": (log_q.exp() * (log_q - log_p)).sum() / log_p.numel(),
    }


def gaussian_weights(epochs: int, mean: float, std: float) -> Tensor:
    """PromptSRC's weights of the parameters after epoch 1, 2, ...: [epochs] float64."""
    density = [math.exp(-((e - mean) ** 2) / (2 * std**2)) for e in range(1, epochs + 1)]
    return torch.tensor([x / sum(density) for x in density], dtype=torch.float64)


def schedule(base: float, epochs: int) -> Tensor:
    """The learning rate in each epoch: one at 1e-5, then the cosine from its start: [epochs] float64."""
    cosine = [base * (1 + math.cos(math.pi * (e - 1) / epochs)) / 2 for e in range(1, epochs)]
    return torch.tensor([1e-5, *cosine], dtype=torch.float64)


class Golden:
    """One case: learnable parameters under their official names, and everything its file holds."""

    def __init__(self, model: CLIP, case: Case, inputs: Arrays, seed: int) -> None:
        self.model, self.case = model, case
        self.images, self.labels = inputs["images"], inputs["labels"]
        self.names = [name.replace("_", " ") for name in case["classnames"]]
        n = case.get("n_ctx_text") or case.get("n_ctx") or 0  # VPT has neither these nor words of its own
        words = case.get("ctx_init", "a photo of a")
        words = words if words and n <= 4 else " ".join(["X"] * n)
        self.tokens = tokenize([f"{words} {name}." for name in self.names])
        g = torch.Generator().manual_seed(seed)
        self.parameters: Arrays = {}
        for name, size in parameter_sizes(case).items():
            scale = 0.5 if "meta_net" in name else 0.05
            self.parameters[name] = (torch.randn(*size, generator=g) * scale).double().requires_grad_()
        self.teacher = {}
        if case["method"] == "PromptSRC":  # templates are averaged as they are and normalised once
            self.teacher = frozen_arrays(model, TEACHER, self.names, self.images, each=False)

    def text(self, ctx: Tensor, deep: list[Tensor]) -> Tensor:
        """Raw text features: ctx in place of n placeholders, the name behind, amid or before it."""
        frozen, n, rows = self.model.token_embedding(self.tokens), ctx.shape[-2], []
        before = {"end": n, "middle": n // 2, "front": 0}[self.case.get("class_token_position", "end")]
        for c, name in enumerate(self.names):
            start, rest, length = frozen[c, :1], frozen[c, 1 + n :], len(TOKENIZER.encode(name))
            own = ctx[c] if ctx.ndim == 3 else ctx
            rows.append(torch.cat([start, own[:before], rest[:length], own[before:], rest[length:]]))
        return run_text(self.model, torch.stack(rows), self.tokens, deep)

    def outputs(self, p: Arrays) -> Arrays:
        """Features and logits at parameters ``p``."""
        image = run_image(self.model, self.images, vision_prompts(p))
        ctx, deep = p.get("prompt_learner.ctx", torch.zeros(0, D_T).double()), deep_text_prompts(p)
        if self.case["method"] == "CoCoOp":
            text = torch.stack([self.text(ctx + shift, deep) for shift in cocoop_shifts(p, image)])
        else:
            text = self.text(ctx, deep)
        return features_and_logits(self.model, text, image)

    def terms(self, found: Arrays) -> Arrays:
        """The loss and, in PromptSRC, its terms."""
        loss = F.cross_entropy(found["logits"], self.labels)
        if not self.teacher:
            return {"loss": loss}
        terms = {"loss_ce": loss} | promptsrc_terms(self.case, self.teacher, found)
        return {"loss": torch.stack(list(terms.values())).sum()} | terms

    def sgd(self, steps: int) -> Iterator[tuple[Arrays, Arrays]]:
        """Loss terms before, and parameters after, each step: lr 0.0025, momentum 0.9, weight decay 5e-4."""
        values = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        speed = {name: torch.zeros_like(value) for name, value in values.items()}
        for _ in range(steps):
            terms = self.terms(self.outputs(values))
            gradients = torch.autograd.grad(terms["loss"], list(values.values()))
            for (name, value), gradient in zip(values.items(), gradients, strict=True):
                speed[name] = 0.9 * speed[name] + gradient + 5e-4 * value.detach()
                values[name] = (value.detach() - 0.0025 * speed[name]).requires_grad_()
            yield terms, dict(values)

    def training(self) -> Arrays:
        """The arrays of every training case, and PromptSRC's further ones."""
        p, found = self.parameters, self.outputs(self.parameters)
        found["loss"] = self.terms(found)["loss"]
        gradients = torch.autograd.grad(found["loss"], list(p.values()))
        found |= {f"param.{name}": value for name, value in p.items()}
        found |= {f"grad.{name}": gradient for name, gradient in zip(p, gradients, strict=True)}
        steps = list(self.sgd(3))
        for k, (_, values) in enumerate(steps, start=1):
            found |= {f"step{k}.{name}": value for name, value in values.items()}
        for name in steps[0][0]:
            found[f"{name}_per_step"] = torch.stack([terms[name] for terms, _ in steps])
        found |= {"tokens": self.tokens, "logits_after": self.outputs(steps[-1][1])["logits"]}
        if self.teacher:
            names = ("text_features_raw", "text_features", "image_features", "logits")
            found |= {f"teacher_{name}": self.teacher[name] for name in names}
            found["logits_train"] = found["logits"].clone()
        return found

    def aggregation(self) -> Arrays:
        """The arrays of an aggregation run, which starts at the initial parameters; none in other cases."""
        if "gpa_mean" not in self.case:
            return {}
        epochs, batches = self.case["epochs"], self.case["batches_per_epoch"]
        weights = gaussian_weights(epochs, self.case["gpa_mean"], self.case["gpa_std"])
        ends = [values for _, values in self.sgd(epochs * batches)][batches - 1 :: batches]
        mixed = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        found: Arrays = {}
        for k, (weight, end) in enumerate(zip(weights.tolist(), ends, strict=True), start=1):
            found |= {f"epoch{k}.{name}": value for name, value in end.items()}
            mixed = {name: mixed[name] + weight * value for name, value in end.items()}
        found |= {f"gpa.{name}": value for name, value in mixed.items()}
        return found | {"gpa_weights": weights, "logits_gpa": self.outputs(mixed)["logits"]}


def single(array: Tensor) -> Tensor:
    """float64 as float32, other types as they are."""
    return array.float() if array.dtype == torch.float64 else array


def write_goldens(
    folder: Path,
    cases: dict[str, Case],
    zeroshot: dict[str, list[str]] | None = None,
    tables: dict[str, Arrays] | None = None,
) -> None:
    """A parity folder: one random frozen CLIP, inputs_T and inputs_U, the given cases (on T unless they say).

    ``zeroshot`` gives class names by file stem, zeroshot_<X> or zeroshot_ensemble_<X>, on inputs_<X>.
    ``tables`` gives further arrays by file stem; those of a case join its file.
    """
    model = (
        tiny_model(seed=3).half().double()
    )  # float16 holds every value; float64 leaves rounding to the engine
    used: set[int] = set()
    model.token_embedding.register_forward_hook(lambda _, args, __: used.update(args[0].flatten().tolist()))
    found = {**(tables or {})}
    for x, seed in {"T": 5, "U": 6}.items():
        images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).double()
        found[f"inputs_{x}"] = {"images": images, "labels": torch.tensor([0, 1, 2, 0, 1, 2]).roll(seed)}
    settings: dict[str, Any] = {"cases": {}, "zeroshot_classnames": zeroshot or {}}
    settings |= {"templates_promptsrc_teacher": TEACHER, "templates_zeroshot_ensemble": ENSEMBLE}
    for seed, (name, case) in enumerate(cases.items(), start=100):
        case = {"inputs": "inputs_T.safetensors"} | case | {"file": f"{name}.safetensors"}
        golden = Golden(model, case, found[Path(case["inputs"]).stem], seed)
        found[name] = golden.training() | golden.aggregation() | found.get(name, {})
        settings["cases"][name] = case
    for stem, names in settings["zeroshot_classnames"].items():
        ensemble, images = "ensemble" in stem, found[f"inputs_{stem[-1]}"]["images"]
        names = [name.replace("_", " ") for name in names]
        found[stem] = frozen_arrays(model, ENSEMBLE if ensemble else [FIXED], names, images, each=ensemble)
    state, ids = model.half().state_dict(), torch.tensor(sorted(used))
    rows = state.pop("token_embedding.weight")[ids]
    found["frozen_clip"] = state | {"token_embedding.ids": ids, "token_embedding.rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    for stem, arrays in found.items():
        exact = {key: v if key.startswith(("gpa_weights", "lr")) else single(v) for key, v in arrays.items()}
        save_file({key: v.detach().contiguous() for key, v in exact.items()}, folder / f"{stem}.safetensors")
    (folder / "cases.json").write_text(json.dumps(settings, indent=1))
