"""Methods in pairs (`promptbench.analysis.statistics.all_pairs`): the table, and sentences that sum it up."""

import pandas as pd

from promptbench.analysis.statistics import ALPHA
from promptbench.analysis.vocabulary import METRICS, difference_text, few, p_text
from promptbench.console import fill
from promptbench.reporting.tables import Format, escape, markdown, terminal

FEW = 5
#: what is asked, and the column of its corrected p-values
QUESTIONS = {
    "p_seeds": "on other draws of shots (paired t-test over seeds)",
    "p_datasets": "on other datasets (Wilcoxon signed-rank test over datasets)",
}
NOTE = (
    "Difference of the averages over datasets, mean over common seeds [95 % t-interval]; improvement: "
    "probability that a run of the first beats one of the second on a dataset; p over seeds: paired t-test; "
    "p over datasets: Wilcoxon; both Holm-corrected over the pairs of one metric and number of shots."
)


def summary(pairs: pd.DataFrame) -> str:
    """Which pairs differ significantly, for the terminal: the two questions, under each a line per metric."""
    return "\n".join(fill(line, " " * 6) for line in sentences(pairs))


def sentences(pairs: pd.DataFrame) -> list[str]:
    """The lines of `summary`, not wrapped."""
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
            name = METRICS[str(metric)].short + (f", {shots} shots" if several else "")
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
    texts = [f"{winner} > {few(losers, FEW)}" for winner, losers in found.items()]
    more = f"; {len(texts) - FEW} more have such pairs (--pairs)" if len(texts) > FEW else ""
    return "; ".join(texts[:FEW]) + more


def render(pairs: pd.DataFrame, style: Format, title: str = "") -> str:
    """Every pair in one format."""
    if style == "csv":
        return pairs.to_csv(index=False)
    if style == "json":
        return pairs.to_json(orient="records", indent=1) + "\n"
    shown = pd.DataFrame({"metric": [METRICS[m].short for m in pairs["metric"]]})
    if pairs["shots"].nunique() > 1:
        shown["shots"] = pairs["shots"].astype(str)
    shown["method"], shown["other"] = pairs["method"], pairs["other"]
    numbers = zip(pairs["difference"], pairs["low"], pairs["high"], strict=True)
    shown["difference"] = [difference_text(*one) for one in numbers]
    shown["improvement"] = [f"{p:.2f}" for p in pairs["improvement"]]
    shown["p over seeds"] = [p_text(p) for p in pairs["p_seeds"]]
    shown["p over datasets"] = [p_text(p) for p in pairs["p_datasets"]]
    shown["seeds"] = [str(n) if n else "-" for n in pairs["seeds"]]
    text = ["metric", "shots", "method", "other"]
    align = ["left" if column in text else "right" for column in shown]
    if style == "md":
        shown[["method", "other"]] = shown[["method", "other"]].map(markdown)
        table = shown.to_markdown(index=False, colalign=align, disable_numparse=True)
        return f"{table}\n\n{NOTE}\n"
    if style == "latex":
        return (
            shown.map(escape)
            .style.hide(axis="index")
            .to_latex(
                hrules=True,
                position_float="centering",
                column_format="".join(side[0] for side in align),
                caption=escape(f"{title}. {NOTE}" if title else NOTE),
            )
        )
    return terminal(shown, title, [NOTE])
