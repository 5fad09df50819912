"""Tables that depend on settings alone, and files of the plain frozen model."""

import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.checks.parity.compare import Comparison, tolerances
from promptbench.checks.parity.folder import Folder
from promptbench.clip.tokens import template_rows
from promptbench.data.classnames import Classes
from promptbench.errors import UserError
from promptbench.methods._registry import get_method
from promptbench.methods._settings import Settings
from promptbench.training.schedule import aggregation_weights, learning_rate

EPOCHS = re.compile(r"lr([\d.e-]+)_epochs(\d+)")
STEPS = re.compile(r"lr([\d.e-]+)_iters(\d+)_shots(\d+)")
GPA = re.compile(r"gpa_weights\.epochs(\d+)_mean(-?[\d.]+)_std([\d.]+)")


def check_tables(compare: Comparison) -> None:
    """Arrays ``lr<base>_epochs<E>`` (the field's schedule), ``lr<base>_iters<n>_shots<K>`` (CLIP-LoRA's) and
    ``gpa_weights.epochs<E>_mean<m>_std<s>``, in whatever file they are."""
    for name in compare.arrays:
        if found := EPOCHS.fullmatch(name):
            settings = Settings(lr=float(found[1]), epochs=int(found[2]))
            ours = [learning_rate(settings, epoch) for epoch in range(int(found[2]))]
        elif found := STEPS.fullmatch(name):
            total = int(found[2]) * int(found[3])
            settings = get_method("clip_lora").Settings(lr=float(found[1]), steps=total)
            ours = [learning_rate(settings, step, total) for step in range(total)]
        elif found := GPA.fullmatch(name):
            mean, std = float(found[2]), float(found[3])
            ours = aggregation_weights(Settings(epochs=int(found[1]), gpa_mean=mean, gpa_std=std))
        else:
            continue
        compare.check(name, torch.tensor(ours, dtype=torch.float64))


def tables(folder: Folder) -> Iterator[tuple[str, str, Comparison]]:
    """Files of tables that are no case's: schedules and aggregation weights."""
    own = {case.get("file", f"{name}.safetensors") for name, case in folder.cases.items()}
    paths = [*folder.path.glob("lr_schedule*.safetensors"), *folder.path.glob("*gpa*.safetensors")]
    for path in sorted({path for path in paths if path.name not in own}):
        compare = Comparison(folder.read(path.name), tolerances())
        check_tables(compare)
        yield path.stem, "tables", compare


def zeroshot(folder: Folder) -> Iterator[tuple[str, str, Comparison]]:
    """``zeroshot_*`` files: plain frozen features with one template, or an ensemble of templates."""
    for path in sorted(folder.path.glob("zeroshot_*.safetensors")):
        names = folder.settings.get("zeroshot_classnames", {}).get(path.stem)
        if names is None:
            raise UserError(f"Case {path.stem}: cases.json has no class names for it.")
        yield path.stem, "zero-shot", _zeroshot(folder, path.stem, Classes(tuple(names)))


@torch.no_grad()
def _zeroshot(folder: Folder, stem: str, classes: Classes) -> Comparison:
    clip, compare = folder.clip(), Comparison(folder.read(f"{stem}.safetensors"), tolerances())
    ensemble = "ensemble" in stem
    templates = folder.settings["templates_zeroshot_ensemble"] if ensemble else ["a photo of a {}."]
    raw = clip.image_features(folder.images(stem))
    text, image = clip.frozen_text(classes, templates), F.normalize(raw, dim=-1)
    ours: dict[str, Tensor] = {"image_features_raw": raw, "image_features": image, "text_features": text}
    ours["logits"] = clip.logits(image, text)
    each = clip.frozen_text(classes, templates, normalise_mean=False)
    plain = clip.frozen_text(classes, templates, normalise_each=False, normalise_mean=False)
    compare.check_any("text_features_raw", [each, plain] if ensemble else [plain])
    for name, tensor in ours.items():
        compare.check(name, tensor)
    check_template_tokens(compare, "tokens", classes, templates)
    check_tables(compare)
    return compare


def check_template_tokens(compare: Comparison, name: str, classes: Classes, templates: list[str]) -> None:
    """Tokens of plain sentences: [C, 77], of several templates [C, T, 77] or [T, C, 77]."""
    if name not in compare:
        return
    target = compare.take(name)
    rows = torch.zeros(len(classes), len(templates), target.shape[-1], dtype=target.dtype)
    for j, template in enumerate(templates):
        for i, row in enumerate(template_rows(classes.names, template)):
            rows[i, j, : len(row)] = torch.tensor(row)
    orders = (rows, rows.transpose(0, 1), rows.squeeze(1))
    same = any(order.shape == target.shape and torch.equal(order, target) for order in orders)
    compare.measured(name, 0.0 if same else float("inf"))
