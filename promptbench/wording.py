"""A comparison in words: who is highest, from whom the seeds do not tell it apart, who beats zero-shot.

A seed gives every method the same pictures in the same order, so methods are compared in pairs, seed by
seed, on the averages over datasets. Zero-shot has no seed: its one result stands in every pair.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from promptbench.compare import AVERAGE, harmonic_mean
from promptbench.trials import Trial

ZEROSHOT = "zeroshot"
SEEDLESS = -1  # in place of the seed of what is one trial, not one per seed
LEVEL = 0.05
TITLES = {"hm": "HM", "base": "Base classes", "novel": "Novel classes", "all": "Accuracy"}
Relation = dict[str, list[str]]  # "higher", "same", "lower", "untested" -> methods


@dataclass(frozen=True)
class Verdict:
    """One metric at one number of shots. ``others`` and ``against`` list methods by how they stand to the
    highest and to zero-shot; a key that nobody is in is not there."""

    metric: str
    shots: int
    best: str
    values: Mapping[str, float]
    std: float
    others: Relation
    against: Relation
    seeds: int  # most seeds that a pair has in common
    missing: list[str] = field(default_factory=list)

    @property
    def top(self) -> set[str]:
        """The highest and those within noise of it; empty where nothing could be tested."""
        return {self.best, *self.others.get("same", [])} if self.seeds > 1 else set()


def verdicts(table: pd.DataFrame, summary: pd.DataFrame) -> list[Verdict]:
    """Every metric of `compare.summarise` at every number of shots, HM or accuracy first."""
    each = per_seed(table)
    rows = summary[summary["dataset"] == AVERAGE]
    if rows.empty:
        rows = summary[~summary["dataset"].isin(summary.attrs["sources"])]
    return [
        _verdict(each, rows[rows["shots"].isin([0, shots])], metric, shots)
        for shots in sorted(set(rows["shots"]) - {0}) or [0]
        for metric in ("hm", "base", "novel", "all")
        if metric in rows and rows[rows["shots"].isin([0, shots])][metric].notna().any()
    ]


def per_seed(table: pd.DataFrame) -> pd.DataFrame:
    """Averages over the datasets, in percent: a row for each (method, shots, seed) that has them all, a
    column for each metric; HM is that of the averages."""
    targets = table[~table["source"]]
    targets = targets.assign(seed=targets["seed"].where(targets["shots"] > 0, SEEDLESS))
    wide = targets.pivot_table(
        index=["method", "shots", "seed"],
        columns=["classes", "dataset"],
        values="accuracy",
        aggfunc="first",
    ).dropna()
    each = wide.T.groupby(level="classes").mean().T
    if {"base", "novel"} <= set(each):
        pairs = zip(each["base"], each["novel"], strict=True)
        each["hm"] = [harmonic_mean(base, novel) for base, novel in pairs]
    return each


def _verdict(each: pd.DataFrame, rows: pd.DataFrame, metric: str, shots: int) -> Verdict:
    means = rows.set_index("method")[metric]
    values = means.dropna().sort_values(ascending=False, kind="stable")
    level = each.index.get_level_values("shots")
    mine = each[level.isin([0, shots])][metric].droplevel("shots")
    scores = {method: mine.loc[[method]].droplevel("method") for method in values.index}
    best = str(values.index[0])
    others, seeds = _relate(scores, best)
    against, more = _relate(scores, ZEROSHOT) if ZEROSHOT in scores else ({}, 0)
    return Verdict(
        metric,
        shots,
        best,
        {str(method): float(value) for method, value in values.items()},
        float(rows.set_index("method")[f"{metric}_std"][best]),
        others,
        against,
        max(seeds, more),
        sorted(means[means.isna()].index),
    )


def _relate(scores: Mapping[str, "pd.Series[float]"], to: str) -> tuple[Relation, int]:
    """How the others stand to one method, by paired t-tests that are Holm-corrected together; and the most
    seeds a pair has in common."""
    differences = {m: paired(s, scores[to]) for m, s in scores.items() if m != to}
    tested = [m for m, difference in differences.items() if len(difference) > 1]
    p_values = holm([_p_value(differences[m]) for m in tested])
    found: Relation = {}
    for method, difference in differences.items():
        if method not in tested:
            where = "untested"
        elif p_values[tested.index(method)] >= LEVEL:
            where = "same"
        else:
            where = "higher" if difference.mean() > 0 else "lower"
        found.setdefault(where, []).append(method)
    return found, max(map(len, differences.values()), default=0)


def paired(one: "pd.Series[float]", other: "pd.Series[float]") -> np.ndarray:
    """Differences seed by seed; what has no seed stands against every seed of the other."""
    if list(one.index) == [SEEDLESS]:
        return one.iloc[0] - other.to_numpy()
    if list(other.index) == [SEEDLESS]:
        return one.to_numpy() - other.iloc[0]
    return (one - other).dropna().to_numpy()


def _p_value(differences: np.ndarray) -> float:
    from scipy import stats

    if np.ptp(differences) < 1e-9:  # the same in every seed: no noise to tell it from
        return 1.0 if abs(differences[0]) < 1e-9 else 0.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of several p-values, in their order."""
    order = np.argsort(p_values, kind="stable")
    steps = [p_values[index] * (len(p_values) - rank) for rank, index in enumerate(order)]
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps)) if steps else []
    return corrected.tolist()


def ranges(numbers: Iterable[int]) -> str:
    """[1, 2, 3, 5] -> "1-3, 5"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def few(names: Sequence[str], most: int = 8) -> str:
    """The names, or the first of them and how many more there are (never a single one)."""
    most = most if len(names) > most + 1 else len(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def sentence(verdict: Verdict) -> str:
    """The verdict for people, without its metric."""
    values, others = verdict.values, verdict.others

    def named(methods: Sequence[str]) -> str:
        return few([f"{method} {value:.2f}" for method, value in values.items() if method in methods])

    spread = "" if pd.isna(verdict.std) else f" ± {verdict.std:.2f}"
    parts = [f"highest is {verdict.best}, {values[verdict.best]:.2f}{spread}."]
    words = {"same": "Within noise of it", "lower": "Lower, beyond noise", "untested": "Below it, not tested"}
    parts += [f"{text}: {named(others[key])}." for key, text in words.items() if key in others]
    # lower in the table and higher in the tests: where a pair does not share all the seeds of the means
    if "higher" in others:
        parts.append(f"On the seeds they share, above it: {named(others['higher'])}.")
    words = {"higher": "above", "same": "within noise", "lower": "below"}
    stand = [f"{text}: {few(verdict.against[key])}" for key, text in words.items() if key in verdict.against]
    if stand and verdict.best != ZEROSHOT:
        parts.append(f"Against {ZEROSHOT} ({values[ZEROSHOT]:.2f}): {'; '.join(stand)}.")
    if verdict.missing:
        parts.append(f"Not ranked, as a dataset or a seed common to all is missing: {few(verdict.missing)}.")
    return " ".join(parts)


def title(verdict: Verdict, several_shots: bool) -> str:
    """What the verdict is about."""
    shots = f", {verdict.shots} shot{'s' if verdict.shots > 1 else ''}" if several_shots else ""
    return TITLES[verdict.metric] + shots


def lead(table: pd.DataFrame, summary: pd.DataFrame, trial: Trial) -> str:
    """What was compared: methods, datasets, shots, seeds, and the backbone of ``trial``, one of them all."""
    methods = list(dict.fromkeys(summary["method"]))
    targets = list(dict.fromkeys(table[~table["source"]]["dataset"]))
    sources = list(dict.fromkeys(table[table["source"]]["dataset"]))
    drawn = table[table["shots"] > 0]
    seeds = {str(method): ranges(mine) for method, mine in drawn.groupby("method", sort=False)["seed"]}
    usual = Counter(seeds.values()).most_common(1)
    parts = [
        _counted(len(methods), "method", methods),
        _counted(len(targets), "dataset", targets)
        + (f" after training on {', '.join(sources)}" if sources else ""),
    ]
    if usual:
        shots = sorted(set(drawn["shots"]))
        parts.append(f"{', '.join(map(str, shots))} shot{'s' if shots != [1] else ''}")
        word = "seed" if usual[0][0].isdigit() else "seeds"
        others = [f"{method}: {own}" for method, own in seeds.items() if own != usual[0][0]]
        parts.append(f"{word} {usual[0][0]}" + (f" ({few(others)})" if others else ""))
    seedless = list(dict.fromkeys(table[table["shots"] == 0]["method"]))
    if seedless and usual:
        parts.append(f"{', '.join(seedless)} without seeds, run once")
    weights = f", weights {trial.weights[:12]}" if trial.weights else ""
    return "; ".join([*parts, f"backbone {trial.backbone}{weights}"]) + "."


def _counted(n: int, noun: str, names: Sequence[str]) -> str:
    return f"{n} {noun}{'s' if n > 1 else ''} ({few(names, 24)})"


def caution(verdicts: Sequence[Verdict]) -> str:
    """How the verdicts are to be read."""
    seeds = max((verdict.seeds for verdict in verdicts), default=0)
    if seeds < 2:
        return (
            "No two methods have two seeds in common, so nothing here can be told from the luck of the draw: "
            "the order of the methods is that of one draw of training pictures."
        )
    text = (
        "Within noise: a paired t-test over the common seeds does not tell the two apart (5 %, Holm's "
        "correction over the comparisons with one method), which does not make them equal. Seeds vary shots, "
        "order and crops, not the datasets."
    )
    return text + (f" {seeds} seeds show large differences only." if seeds < 5 else "")
