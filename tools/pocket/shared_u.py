"""Does MMLoP's U receive a gradient, and does it move? Two tables for docs/pocket/mmlop.md.

A prompt is the product U V, so what counts is how much the loss changes when a factor changes by a part of
its own size: the *relative gradient* |U| |dL/dU| (Frobenius norms, a mean over layers, steps and datasets of
the embedded suite, before anything is trained), of each factor and tower. A block's first LayerNorm removes
the size of a token, and with rank 1 all that U could change is sizes; a start so small that the norm's
epsilon counts does not have that property. How far the factors of finished trials moved from where their
seed put them, |after - before| / |before|, is read from the trials' prompts.

    python -m tools.pocket.shared_u RESULTS...   # folders with trials of mmlop, mmlop-small, ...-unshared
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

from promptbench.clip.cache import FeatureCache
from promptbench.clip.features import frozen_features
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.data.views import Views, epoch_order, load_batches
from promptbench.methods._base import Batch
from promptbench.methods._registry import get_method, get_recipe, resolve_settings
from promptbench.storage import default_folder
from promptbench.training.files import PROMPTS
from promptbench.training.loop import create
from promptbench.trials.plan import tuned_settings
from promptbench.trials.record import read_records

FACTORS = ("U", "U_vision", "V_text", "V_vision")
STARTS = {"matched": {"init": "matched"}, "small": {"init": "small"}}
STEPS, SEED, SHOTS = 8, 1, 16


def sizes(tensors: Any) -> torch.Tensor:
    """Frobenius norms of a list of factors: [layers]."""
    return torch.stack([tensor.detach().norm() for tensor in tensors])


def gradients() -> pd.DataFrame:
    """Relative gradients at the start: one row per start, sharing, dataset, factor and place."""
    clip = FrozenCLIP.load(cache=FeatureCache(default_folder()))
    recipe, rows = get_recipe("mmlop"), []
    for name in cards.suite("pocket"):
        dataset = data.load(name)
        classes, items = dataset.classes("base"), dataset.few_shot(SHOTS, SEED, "base")
        labels = torch.tensor([item.label for item in items])
        for start, given in STARTS.items():
            for shared in (True, False):
                tuned = tuned_settings("pocket", recipe)
                settings = resolve_settings(
                    recipe, "base2novel", SHOTS, name, tuned, {**given, "shared": shared}
                )
                method: Any = create(recipe.method, clip, settings, classes, SEED)
                views = Views(**clip.preprocess, crop_min=settings.crop_min, flip=dataset.card.flip)
                frozen = frozen_features(clip, dataset, items, views, (SEED, 0))
                batches = epoch_order(len(items), settings.batch_size, SEED, 0)[:STEPS]
                images = load_batches(dataset, items, views, batches, (SEED, 0), clip.device)
                for batch, pictures in zip(batches, images, strict=True):
                    method.zero_grad()
                    method.loss(Batch(labels[batch], pictures, frozen[batch]), classes).backward()
                    for factor in FACTORS:
                        if (own := getattr(method, factor)) is None:
                            continue
                        found = sizes(own) * sizes([p.grad for p in own])
                        common = {"start": start, "shared": shared, "dataset": name, "factor": factor}
                        rows += [
                            {**common, "where": "layer 1", "value": found[0].item()},
                            {**common, "where": "deeper", "value": found[1:].mean().item()},
                        ]
    return pd.DataFrame(rows)


def moves(out: Path) -> Iterator[dict[str, Any]]:
    """How far each factor of finished base2novel trials moved."""
    clip = FrozenCLIP.load()
    for record in read_records(out)[0]:
        trial = record.trial
        if trial.method != "mmlop" or trial.benchmark != "base2novel" or trial.settings["rank"] != 1:
            continue
        kind = get_method("mmlop")
        settings: Any = kind.Settings(**trial.settings)
        if settings.consistency != "both" or settings.drift != "both":
            continue
        classes = data.load(trial.dataset).classes("base")
        before = create(kind, clip, settings, classes, trial.seed).state_dict()
        after = load_file(trial.folder(out) / PROMPTS)
        for factor in FACTORS:
            keys = sorted(
                (k for k in before if k.startswith(f"{factor}.")), key=lambda k: int(k.split(".")[1])
            )
            if keys:
                moved = torch.stack([(after[k] - before[k]).norm() / before[k].norm() for k in keys])
                common = {"start": settings.init, "shared": settings.shared, "factor": factor}
                yield {**common, "where": "layer 1", "value": moved[0].item()}
                yield {**common, "where": "deeper", "value": moved[1:].mean().item()}


def show(rows: pd.DataFrame, digits: str) -> str:
    """Mean of ``value`` by start and sharing (rows), factor and place (columns), in Markdown."""
    rows = rows.assign(U=["shared" if shared else "one per tower" for shared in rows["shared"]])
    wide = rows.pivot_table(index=["start", "U"], columns=["factor", "where"], values="value")
    wide = wide[[(f, w) for f in FACTORS for w in ("layer 1", "deeper") if (f, w) in wide]]
    wide.columns = [", ".join(column) for column in wide.columns]
    return wide.reset_index().to_markdown(index=False, floatfmt=digits, missingval="-")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="+")
    folders = parser.parse_args().out
    torch.set_num_threads(1)
    print("Relative gradient |X| |dL/dX| before training\n")
    print(show(gradients(), ".4f"))
    print("\nRelative move |after - before| / |before| in training\n")
    print(show(pd.DataFrame(row for out in folders for row in moves(out)), ".4f"))
