"""The table of methods in pairs (`promptbench.analysis.statistics.all_pairs`)."""

import pandas as pd

from promptbench.analysis.vocabulary import METRICS, difference_text, p_text
from promptbench.reporting.tables import Format, escape, latex_table, markdown, markdown_table, terminal

NOTE = (
    "Difference of the averages over datasets, mean over common seeds [95 % t-interval]; improvement: "
    "probability that a run of the first beats one of the second on a dataset; p over seeds: paired t-test; "
    "p over datasets: Wilcoxon; both Holm-corrected over the pairs of one metric and number of shots."
)


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
    left = ("metric", "shots", "method", "other")
    if style == "md":
        shown[["method", "other"]] = shown[["method", "other"]].map(markdown)
        return f"{markdown_table(shown, left)}\n\n{NOTE}\n"
    if style == "latex":
        return latex_table(shown.map(escape), escape(f"{title}. {NOTE}" if title else NOTE), left)
    return terminal(shown, title, [NOTE])
