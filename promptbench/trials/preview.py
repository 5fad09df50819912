"""What a command would run, without running it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptbench.clip.memory import estimate
from promptbench.clip.weights import backbone_shape
from promptbench.data.dataset import Dataset
from promptbench.methods._registry import get_method
from promptbench.trials.record import RECORD
from promptbench.trials.trial import Trial

FEW = 200  # so many trials have a row each


def preview(
    trials: Sequence[Trial], datasets: Mapping[str, Dataset], out: Path
) -> tuple[list[dict[str, str]], str]:
    """One row per trial or, for many trials, per group that differs only in the seed; and a closing sentence
    with the numbers of finished and remaining trials in the results folder ``out``."""
    groups: dict[Any, list[Trial]] = {}
    for trial in trials:
        kind = (trial.benchmark, trial.method, trial.variant, trial.dataset, trial.shots)
        groups.setdefault(kind if len(trials) > FEW else trial.hash, []).append(trial)
    finished = {folder for folder, _, files in os.walk(out / "runs") if RECORD in files}
    rows, all_done = [], 0
    for group in groups.values():
        first = group[0]
        names = datasets[first.dataset].classes(first.train_classes).names
        trains, shape = get_method(first.method).trains, backbone_shape(first.backbone)
        memory = estimate(first.settings, trains, shape, names, first.precision)
        done = sum(str(trial.folder(out)) in finished for trial in group)
        all_done += done
        several = len(group) > 1
        steps, epochs = first.settings["steps"], first.settings["epochs"]
        rows.append(
            {
                "trial": f"{first.label.rpartition(', ')[0]}, {len(group)} seeds" if several else first.label,
                "epochs": f"{steps} steps" if steps else str(epochs),
                "lr": f"{first.settings['lr']:g}" if epochs else "-",
                "memory": f"{memory / 2**30:.1f} GiB",
                "hash": "" if several else first.hash[:8],
                "state": f"{done} done" if several else "done" if done else "to run",
            }
        )
    left = len(trials) - all_done
    return rows, f"{len(trials)} trials, {all_done} done, {left} to run; memory is an estimate"
