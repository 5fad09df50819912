"""Choose the pocket backbone's learning rate and epochs per method, on validation pictures only.

The same small budget for every method that trains: the grid below, one seed that is not reported
elsewhere, all datasets of the suite, accuracy on the val split of the *base* half (the half that is
trained on; nothing about the novel classes is used). The mean over datasets decides; ties go to the
earlier, cheaper entry. Text-only methods train on cached features with batches of 32, so an epoch of
theirs is 8 times fewer steps; their grid of epochs is longer for that reason.

    python -m tools.pocket.tune run coop ivlp        # resumes; several processes may share the work
    python -m tools.pocket.tune write                # -> datasets/pocket/backbone/settings.yaml
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from promptbench import cards, data, weights
from promptbench.cache import FeatureCache, default_folder
from promptbench.execute import execute
from promptbench.method import get_method, methods
from promptbench.progress import PlainReporter
from promptbench.records import read_records
from promptbench.trials import BENCHMARKS, plan

SEED = 11
RATES = (0.00125, 0.005, 0.02, 0.08)
# For all methods alike: a crop of 8 % of a small drawing shows nothing of it. Tried on val, base half of
# icons and kinds, against the field's 0.08: CoOp 63.7 -> 66.6, IVLP 66.5 -> 66.6.
COMMON = {"crop_min": 0.5}
EPOCHS = {"image tower frozen": (20, 40), "image tower prompted": (3, 5)}


def grid(method: str) -> list[dict[str, Any]]:
    """The settings tried for a method, cheapest first."""
    kind = "prompted" if "vision" in get_method(method).trains else "frozen"
    return [{"epochs": e, "lr": lr} for e in EPOCHS[f"image tower {kind}"] for lr in RATES]


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
            for settings in (grid(name) if get_method(name).trains else [])
            if len(found := scores[name, settings["epochs"], settings["lr"]]) == len(suite)
        ]
        if rows:
            best = max(rows, key=lambda row: row["base_val"])
            chosen[name] = {"lr": best["lr"], "epochs": best["epochs"]}
            tried[name] = rows
    head = (
        "# Written by tools/pocket/tune.py: learning rate and epochs for this backbone, by the mean val\n"
        f"# accuracy of the base half over {', '.join(suite)} (seed {SEED}, 16 shots); `tried` is the grid.\n"
    )
    text = head + yaml.safe_dump(
        {"common": COMMON, "settings": chosen, "tried": tried}, sort_keys=False, default_flow_style=None
    )
    (weights.pocket_folder() / "settings.yaml").write_text(text)
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
