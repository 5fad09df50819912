"""A comparison in words: who is highest, from whom the seeds do not tell it apart, who beats zero-shot.

What stands apart is what `statistics.all_pairs` tells apart over seeds, as in `promptbench compare`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from promptbench.analysis.comparison import Material
from promptbench.analysis.statistics import ALPHA, MOST
from promptbench.analysis.vocabulary import (
    BY_WEIGHT,
    METRICS,
    NO_AVERAGE,
    ZEROSHOT,
    few,
    plural,
    ranges,
    shots_text,
)
from promptbench.console import fill
from promptbench.reporting.tables import spread

Relation = dict[str, list[str]]  # "higher", "same", "lower", "untested" -> methods


@dataclass(frozen=True)
class Verdict:
    """One metric at one number of shots. ``others`` and ``against`` list methods by how they stand to the
    highest and to zero-shot; a key that nobody is in is not there."""

    metric: str
    shots: int
    best: str
    values: Mapping[str, float]
    spread: str  # "[low, high]" or "± std" of the highest
    others: Relation
    against: Relation
    seeds: int  # most seeds that a pair has in common
    missing: list[str] = field(default_factory=list)

    @property
    def top(self) -> set[str]:
        """The highest and those within noise of it; empty where nothing could be tested."""
        return {self.best, *self.others.get("same", [])} if self.seeds > 1 else set()


def verdicts(material: Material, pairs: pd.DataFrame) -> list[Verdict]:
    """Every metric at every number of shots, HM or accuracy first, by ``pairs`` (`statistics.all_pairs`)."""
    rows = material.overall
    return [
        _verdict(pairs, rows[rows["shots"].isin([0, shots])], metric, shots)
        for shots in sorted(set(rows["shots"]) - {0}) or [0]
        for metric in BY_WEIGHT
        if metric in rows and rows[rows["shots"].isin([0, shots])][metric].notna().any()
    ]


def _verdict(pairs: pd.DataFrame, rows: pd.DataFrame, metric: str, shots: int) -> Verdict:
    rows = rows.set_index("method").sort_values(metric, ascending=False, kind="stable")
    values = {str(method): float(value) for method, value in rows[metric].dropna().items()}
    best, highest = next(iter(values)), rows.to_dict("records")[0]
    if len(pairs):
        pairs = pairs[(pairs["metric"] == metric) & pairs["shots"].isin([0, shots])]
    return Verdict(
        metric,
        shots,
        best,
        values,
        spread(highest, metric),
        _relate(pairs, best, values),
        _relate(pairs, ZEROSHOT, values) if ZEROSHOT in values else {},
        int(pairs["seeds"].max()) if len(pairs) else 0,
        sorted(rows.index[rows[metric].isna()]),
    )


def _relate(pairs: pd.DataFrame, to: str, methods: Iterable[str]) -> Relation:
    """How the other ``methods`` stand to one, by the corrected paired t-tests over seeds."""
    where: dict[str, str] = {}
    for row in pairs.to_dict("records"):
        if to not in (row["method"], row["other"]) or pd.isna(row["p_seeds"]):
            continue
        first = row["other"] == to
        above = (row["difference"] > 0) == first
        text = "same" if row["p_seeds"] >= ALPHA else "higher" if above else "lower"
        where[row["method"] if first else row["other"]] = text
    found: Relation = {}
    for method in methods:
        if method != to:
            found.setdefault(where.get(method, "untested"), []).append(method)
    return found


def sentence(verdict: Verdict) -> str:
    """The verdict for people, without its metric."""
    values, others = verdict.values, verdict.others

    def named(methods: Sequence[str]) -> str:
        return few([f"{method} {value:.2f}" for method, value in values.items() if method in methods])

    parts = [f"highest is {f'{verdict.best}, {values[verdict.best]:.2f} {verdict.spread}'.rstrip()}."]
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
        parts.append(f"Not ranked: {few(verdict.missing)}: {NO_AVERAGE}.")
    return " ".join(parts)


def title(verdict: Verdict, several_shots: bool) -> str:
    """What the verdict is about."""
    shots = f", {shots_text([verdict.shots])}" if several_shots else ""
    return METRICS[verdict.metric].heading + shots


def lead(material: Material) -> str:
    """What was compared: methods, datasets, shots, seeds and the backbone."""
    table, trial = material.table, material.records[0].trial
    methods = list(dict.fromkeys(material.summary["method"]))
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
        parts.append(shots_text(shots))
        word = "seed" if usual[0][0].isdigit() else "seeds"
        others = [f"{method}: {own}" for method, own in seeds.items() if own != usual[0][0]]
        parts.append(f"{word} {usual[0][0]}" + (f" ({few(others)})" if others else ""))
    seedless = list(dict.fromkeys(table[table["shots"] == 0]["method"]))
    if seedless and usual:
        parts.append(f"{', '.join(seedless)} without seeds, run once")
    weights = f", weights {trial.weights[:12]}" if trial.weights else ""
    return "; ".join([*parts, f"backbone {trial.backbone}{weights}"]) + "."


def _counted(n: int, noun: str, names: Sequence[str]) -> str:
    return f"{n} {plural(noun, n)} ({few(names, 24)})"


def caution(verdicts: Sequence[Verdict]) -> str:
    """How to read the verdicts."""
    seeds = max((verdict.seeds for verdict in verdicts), default=0)
    if seeds < 2:
        return (
            "No two methods have two seeds in common, so no difference here can be told from chance: the "
            "order of the methods is that of one draw of training images."
        )
    text = (
        "Within noise: a paired t-test over the common seeds does not tell the two apart (5 %, Holm's "
        "correction over all pairs of methods), which does not make them equal. Seeds vary shots, order and "
        "crops, not the datasets."
    )
    if max(len(verdict.values) for verdict in verdicts) > MOST:
        text += f" Of more than {MOST} methods only the highest is compared with the others."
    return text + (f" {seeds} seeds show large differences only." if seeds < 5 else "")


# ---------------------------------------------------------------------- pairs

_WINNERS = 5
#: what is asked, and the column of its corrected p-values
QUESTIONS = {
    "p_seeds": "on other draws of shots (paired t-test over seeds)",
    "p_datasets": "on other datasets (Wilcoxon signed-rank test over datasets)",
}


def pair_summary(pairs: pd.DataFrame) -> str:
    """Which pairs differ significantly, for the terminal: the two questions, under each a line per metric."""
    return "\n".join(fill(line, " " * 6) for line in pair_sentences(pairs))


def pair_sentences(pairs: pd.DataFrame) -> list[str]:
    """The lines of `pair_summary`, not wrapped."""
    if pairs.empty:
        return [
            "Which is better? Nothing to compare: it takes two methods with every dataset and a common seed."
        ]
    datasets = int(pairs["datasets"].max())
    average = f"average of {datasets} datasets, " if datasets > 1 else ""
    lines = [f"Which is better ({average}5 % after Holm's correction)?"]
    several = pairs["shots"].nunique() > 1
    for column, question in QUESTIONS.items():
        tested = pairs.dropna(subset=[column])
        if tested.empty:
            if column == "p_seeds":
                lines.append("  on other draws of shots: one seed cannot say; run more with --seeds 1,2,3.")
            continue
        count = int(tested.groupby(["shots", "metric"]).size().max())
        least = min(1, count * 2.0 ** (1 - datasets))
        if column == "p_datasets" and least >= ALPHA:
            lines.append(
                f"  {question}: no answer, with {datasets} datasets and {count} "
                f"pair{'s' * (count > 1)} p is at least {least:.2f}."
            )
            continue
        lines.append(f"  {question}:")
        for (shots, metric), group in tested.groupby(["shots", "metric"], sort=False):
            name = METRICS[str(metric)].short + (f", {shots_text([int(str(shots))])}" if several else "")
            lines.append(f"    {name}: {_winners(group, column)}.")
    return lines


def _winners(group: pd.DataFrame, column: str) -> str:
    """ "ivlp > coop, mmlop; maple > coop": the pairs that differ, by winner, best first."""
    found: dict[str, list[str]] = {}
    for row in group[group[column] < ALPHA].to_dict("records"):
        first, second = row["method"], row["other"]
        winner, loser = (first, second) if row["difference"] > 0 else (second, first)
        found.setdefault(winner, []).append(loser)
    if not found:
        return f"none of {len(group)} pairs differs" if len(group) > 1 else "the two do not differ"
    texts = [f"{winner} > {few(losers, _WINNERS)}" for winner, losers in found.items()]
    more = f"; {len(texts) - _WINNERS} more have such pairs (--pairs)" if len(texts) > _WINNERS else ""
    return "; ".join(texts[:_WINNERS]) + more
