"""Choose the pocket backbone's learning rate per method, on validation pictures only.

The same small budget for every method that trains by gradient: five learning rates, each four times the
one before, around the rate that is usual for the optimiser; one seed that is not reported elsewhere; all
datasets of the suite; accuracy on the val split of the *base* half (the half that is trained on; nothing
about the novel classes is used). The mean over datasets decides; ties go to the smaller rate. Every
method sees every training picture equally often, except that text-only methods and heads, which train on
cached features, may look 8 times as often. Trainings of half that length were tried for CoOp, IVLP, MaPLe
and MMLoP at four rates each: the longer one was better for all of them.

    python -m tools.pocket.tune run coop ivlp        # resumes; several processes may share the work
    python -m tools.pocket.tune write                # -> datasets/pocket/backbone/settings.yaml
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from promptbench.clip import backbones
from promptbench.clip.cache import FeatureCache
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.execution.execute import execute
from promptbench.execution.progress import PlainReporter
from promptbench.methods._registry import get_method, methods
from promptbench.storage import default_folder
from promptbench.trials.benchmarks import BENCHMARKS
from promptbench.trials.plan import plan
from promptbench.trials.record import read_records

SEED = 11
RATES = {
    "sgd": (0.0003125, 0.00125, 0.005, 0.02, 0.08),
    "adam": (0.000125, 0.0005, 0.002, 0.008, 0.032),
    "adamw": (0.000125, 0.0005, 0.002, 0.008, 0.032),
}
# For all methods alike: a crop of 8 % of a small drawing shows nothing of it. Tried on val, base half of
# icons and kinds, against the field's 0.08: CoOp 63.7 -> 66.6, IVLP 66.5 -> 66.6.
COMMON = {"crop_min": 0.5}
FROZEN, PROMPTED = 40, 5  # epochs, with the image tower left alone and not


def grid(method: str) -> list[dict[str, Any]]:
    """The settings tried for a method, in the order of the learning rate; none if nothing is to tune."""
    kind = get_method(method)
    defaults = kind.Settings()
    if not defaults.epochs:
        return []
    # One step of CoCoOp runs the text tower for its one picture: not work that a cache saves.
    slow = "vision" in kind.trains or defaults.batch_size == 1
    found: dict[str, Any] = {"epochs": PROMPTED if slow else FROZEN}
    if defaults.gpa_std:  # where the papers' 15 of 20 epochs is
        found["gpa_mean"] = 0.75 * found["epochs"]
    return [found | {"lr": lr} for lr in RATES[defaults.optimizer]]


def run(names: list[str], out: Path) -> None:
    """Train and evaluate the grid of each method."""
    datasets = {name: data.load(name) for name in cards.suite("pocket")}
    for name in names:
        for settings in grid(name):
            trials = plan(
                BENCHMARKS["base2novel"],
                [get_method(name)],
                list(datasets.values()),
                seeds=(SEED,),
                overrides={name: COMMON | settings},
                split="val",
            )
            execute(trials, datasets, out, PlainReporter(), cache=FeatureCache(default_folder()))


def write(out: Path) -> None:
    """Write the chosen settings with the scores they were chosen by."""
    suite = cards.suite("pocket")
    scores: dict[tuple[str, int, float], dict[str, float]] = defaultdict(dict)
    for record in read_records(out)[0]:
        settings = record.trial.settings
        if record.trial.seed != SEED or not COMMON.items() <= settings.items():
            continue
        base = next(c for c in record.evaluations if c.classes == "base")
        key = (record.trial.method, settings["epochs"], settings["lr"])
        scores[key][record.trial.dataset] = base.accuracy
    chosen, tried = {}, {}
    for name in methods():
        rows = [
            {**settings, "base_val": round(sum(found.values()) / len(suite), 2)}
            for settings in grid(name)
            if len(found := scores[name, settings["epochs"], settings["lr"]]) == len(suite)
        ]
        if rows:
            best = max(rows, key=lambda row: row["base_val"])
            chosen[name] = {key: value for key, value in best.items() if key != "base_val"}
            tried[name] = rows
    head = (
        "# Written by tools/pocket/tune.py: learning rate and epochs for this backbone, by the mean val\n"
        f"# accuracy of the base half (seed {SEED}, 16 shots) over {', '.join(suite)};\n"
        "# `tried` is the grid.\n"
    )
    text = head + yaml.safe_dump(
        {"common": COMMON, "settings": chosen, "tried": tried}, sort_keys=False, default_flow_style=None
    )
    (backbones.pocket_folder() / "settings.yaml").write_text(text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "write"))
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("build/tune"))
    given = parser.parse_args()
    if given.what == "run":
        run(given.methods, given.out)
    else:
        write(given.out)
