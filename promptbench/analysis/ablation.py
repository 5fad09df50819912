"""Tables of a method's ablation: each step's measured averages, and its difference to the step before, beside
the published ones. Which recipes are steps of which table is declared in ``methods/recipes.yaml``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from promptbench.analysis import published
from promptbench.analysis.statistics import Runs, paired
from promptbench.analysis.vocabulary import METRICS, difference_text
from promptbench.errors import UserError
from promptbench.trials.benchmarks import get_benchmark, metrics_for
from promptbench.trials.record import Record
from promptbench.trials.trial import Trial

if TYPE_CHECKING:  # methods need torch, tables of measured numbers do not
    from promptbench.methods._registry import AblationStep, Recipe

Rows = list[dict[str, str]]


@dataclass
class Measured:
    """A step with what was measured: accuracy by label space, in percent, per (dataset, seed).

    ``planned`` is how many of these there should be, ``settings`` and ``shots`` are those of its trials.
    """

    step: "AblationStep"
    recipe: "Recipe"
    settings: Mapping[str, Any]
    shots: int
    parameters: int | None
    cells: dict[tuple[str, int], dict[str, float]]
    planned: int

    def mean(self, metric: str) -> float | None:
        """The average over datasets and seeds, None unless all were measured."""
        if not self.cells or len(self.cells) < self.planned:
            return None
        datasets, seeds = (sorted(set(names)) for names in zip(*self.cells, strict=True))
        return self._runs(datasets, seeds).headline[metric]

    def against(self, other: "Measured", metric: str) -> tuple[float, float, float] | None:
        """This minus ``other`` with its 95 % interval (`statistics.paired`), on the datasets that both have
        and the seeds that both have of each of these."""
        both = self.cells.keys() & other.cells.keys()
        datasets = sorted({dataset for dataset, _ in both})
        seeds = [s for s in sorted({s for _, s in both}) if all((name, s) in both for name in datasets)]
        if not seeds:
            return None
        row = paired([(self._runs(datasets, seeds), other._runs(datasets, seeds))], metric).iloc[0]
        return row["difference"], row["low"], row["high"]

    def _runs(self, datasets: Sequence[str], seeds: Sequence[int]) -> Runs:
        """The results of a grid of datasets and seeds, all of which there are."""
        grid = [[self.cells[dataset, seed] for seed in seeds] for dataset in datasets]
        values = {space: np.array([[cell[space] for cell in row] for row in grid]) for space in grid[0][0]}
        return Runs(self.recipe.name, self.shots, tuple(seeds), values)


@dataclass
class AblationTables:
    """One group: values of every step, differences to the step before, and what a reader must know."""

    values: Rows
    differences: Rows
    notes: list[str]


def steps_of(method: str) -> "dict[str, list[tuple[AblationStep, Recipe]]]":
    """The ablations of ``method`` by group, in the order of the recipes.

    Raises UserError for a name that does not exist or has none.
    """
    from promptbench.methods._registry import get_recipe, recipes

    get_recipe(method)
    found: dict[str, list[tuple[AblationStep, Recipe]]] = {}
    known = {step.of for recipe in recipes().values() for step in recipe.ablation}
    if method not in known:
        raise UserError(
            f"{method} has no ablation recipes in methods/recipes.yaml; there are some of "
            f"{', '.join(sorted(known))}."
        )
    for recipe in recipes().values():
        for step in recipe.ablation:
            if step.of == method:
                found.setdefault(step.group, []).append((step, recipe))
    return found


def measure(
    step: "AblationStep", recipe: "Recipe", trials: Sequence[Trial], records: Mapping[str, Record]
) -> Measured:
    """A step from the records (by hash) of its ``trials``; those without a record are missing."""
    cells: dict[tuple[str, int], dict[str, float]] = {}
    made = [records[trial.hash] for trial in trials if trial.hash in records]
    for record in made:
        for counts in sorted(record.evaluations, key=lambda one: one.classes):
            if _counts_for(record.trial, counts.dataset):
                cell = cells.setdefault((counts.dataset, record.trial.seed), {})
                cell[counts.classes] = counts.accuracy
    planned = {(e.dataset, t.seed) for t in trials for e in t.evaluations if _counts_for(t, e.dataset)}
    parameters = max((record.trainable_parameters for record in made), default=None)
    first = trials[0]
    return Measured(step, recipe, first.settings, first.shots, parameters, cells, len(planned))


def tabulate(steps: Sequence[Measured], trial: Trial) -> AblationTables:
    """The tables of one group; ``trial`` is any of its trials: what was measured on what."""
    metrics = metrics_for(dict.fromkeys(evaluation.classes for evaluation in trial.evaluations))
    theirs = [_published(one.step, trial) for one in steps]
    shown = [metric for metric in metrics if any(metric in values for values in theirs)]
    values: Rows = [
        {
            "step": one.step.step,
            "recipe": one.recipe.name,
            "parameters": "-" if one.parameters is None else f"{one.parameters:,}",
            **{METRICS[m].short: _number(one.mean(m)) for m in metrics},
            **{f"{METRICS[m].short}, published": _number(known.get(m)) for m in shown},
        }
        for one, known in zip(steps, theirs, strict=True)
    ]
    differences: Rows = []
    for i in range(1, len(steps)):
        ours = {m: steps[i].against(steps[i - 1], m) for m in metrics}
        both = [m for m in metrics if m in theirs[i] and m in theirs[i - 1]]
        away = {m: theirs[i][m] - theirs[i - 1][m] for m in both}
        row = {"step": steps[i].step.step, "after": steps[i - 1].step.step}
        row |= {
            f"{METRICS[m].short} [95 %]": difference_text(*one) if (one := ours[m]) else "-" for m in metrics
        }
        if shown:
            row["published"] = ", ".join(f"{METRICS[m].short} {away[m]:+.2f}" for m in both) or "-"
            row["direction"] = ", ".join(direction(ours[m], away[m]) for m in both) or "-"
        differences.append(row)
    return AblationTables(values, differences, _notes(steps, trial, bool(shown)))


def direction(ours: tuple[float, float, float] | None, theirs: float) -> str:
    """Whether a measured difference goes the way of the published one."""
    if ours is None:
        return "not measured"
    _, low, high = ours
    if not (low > 0 or high < 0) or theirs == 0:
        return "not distinguishable"
    return "agrees" if (low > 0) == (theirs > 0) else "does not agree"


def _counts_for(trial: Trial, dataset: str) -> bool:
    """What a transfer benchmark trains on is no part of averages."""
    return not (get_benchmark(trial.benchmark).transfer and dataset == trial.dataset)


def _rows(step: "AblationStep", trial: Trial) -> list[dict[str, Any]]:
    """The published rows of a step, none for a benchmark without published ablations or for other shots."""
    if not step.published:
        return []
    table = published.ablations(trial.benchmark)
    mine = table[
        (table["method"] == step.published["method"])
        & (table["setting"] == step.published["setting"])
        & table["setting"].str.match(rf"{trial.shots}-shot\b")
    ]
    return [{str(key): value for key, value in row.items()} for row in mine.to_dict("records")]


def _published(step: "AblationStep", trial: Trial) -> dict[str, float]:
    return {row["metric"]: float(row["value"]) for row in _rows(step, trial)}


def _notes(steps: Sequence[Measured], trial: Trial, compared: bool) -> list[str]:
    names = sorted({dataset for one in steps for dataset, _ in one.cells})
    seeds = sorted({seed for one in steps for _, seed in one.cells})
    notes = [
        f"Measured: {trial.backbone}, {trial.shots} shots, {len(names)} datasets ({', '.join(names)}), "
        f"seeds {', '.join(map(str, seeds))}; differences to the step before: mean over seeds "
        "[95 % t-interval]."
    ]
    if trial.limit is not None or trial.split != "test":
        notes.append("Not comparable: a smoke run (--limit) or another split than test.")
    if compared:
        rows = [row for one in steps for row in _rows(one.step, trial)]
        where = {f"{row['backbone']}, {row['dataset'].removeprefix('average')} datasets" for row in rows}
        sources = dict.fromkeys(row["source"] for row in rows)
        notes.append(f"Published: {'; '.join(sorted(where))} ({'; '.join(sources)}).")
    for one in steps:
        if len(one.cells) < one.planned:
            notes.append(f"{one.recipe.name}: {len(one.cells)} of {one.planned} results, so no average.")
    for before, after in pairwise(steps):
        if also := _also_changed(before, after):
            notes.append(f"From {before.recipe.name} to {after.recipe.name} {', '.join(also)} changes too.")
    return notes


def _also_changed(before: Measured, after: Measured) -> list[str]:
    """Settings of both that differ although neither recipe says so, such as a tuned learning rate."""
    said = {*before.recipe.settings, *after.recipe.settings}
    return [
        f"{key} ({before.settings[key]:g} -> {value:g})"
        if isinstance(value, int | float)
        else f"{key} ({before.settings[key]} -> {value})"
        for key, value in after.settings.items()
        if key not in said and key in before.settings and before.settings[key] != value
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
