"""Tables of a summary (`promptbench.analysis.summary.summarise`) for terminals, papers and programs."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from promptbench import console
from promptbench.analysis.vocabulary import (
    AVERAGE,
    METRICS,
    NO_AVERAGE,
    as_published,
    metrics_of,
    shots_text,
    span,
)

Format = Literal["table", "md", "csv", "latex", "json"]


def is_published(summary: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows are published numbers, not measured ones."""
    if "source" not in summary:
        return pd.Series(False, index=summary.index)
    return summary["source"].notna()


def clear_best(summary: pd.DataFrame, metric: str) -> "pd.Series[bool]":
    """Rows that are best in ``metric`` beyond doubt: of the measured methods on a dataset at equal shots (or
    without), the lower end of the interval lies above the upper end of every other's. One that has no
    interval (a single seed) leaves it in doubt."""
    best = pd.Series(False, index=summary.index)
    rows = summary[~is_published(summary) & summary[metric].notna()]
    for _, group in rows.groupby("dataset"):
        for shots in set(group["shots"]):
            family = group[group["shots"].isin([0, shots])] if shots else group
            first: Any = family[metric].idxmax()
            others = family.drop(index=first)[f"{metric}_high"]
            if family.loc[first, "shots"] == shots and len(others):
                best[first] = bool((family.loc[first, f"{metric}_low"] > others).all())
    return best


def _text(summary: pd.DataFrame, intervals: bool) -> pd.DataFrame:
    """The summary as people read it: one column per number."""
    shown = pd.DataFrame({"dataset": summary["dataset"], "method": summary["method"]})
    published = is_published(summary)
    shown["method"] = shown["method"].where(~published, shown["method"].map(as_published))
    if summary.loc[summary["shots"] > 0, "shots"].nunique() > 1:
        shown["shots"] = [str(int(n)) if n else "-" for n in summary["shots"]]
    for key in metrics_of(summary):
        shown[METRICS[key].short] = [_number(row, key, intervals) for row in summary.to_dict("records")]
    shown["parameters"] = ["-" if pd.isna(n) else f"{int(n):,}" for n in summary["parameters"]]
    shown["seeds"] = [str(int(n)) if n > 0 else "-" for n in summary["seeds"]]
    return shown


def _number(row: dict[Any, Any], key: str, intervals: bool) -> str:
    """ "mean ± std", of averages "mean [low, high]"."""
    return "-" if pd.isna(row[key]) else f"{row[key]:.2f} {spread(row, key, intervals)}".rstrip()


def spread(row: Mapping[Any, Any], key: str, intervals: bool = False) -> str:
    """What stands beside a mean: "± std" over seeds, of averages "[low, high]"; nothing if it has none."""
    if intervals or row["dataset"] == AVERAGE:
        low, high = row[f"{key}_low"], row[f"{key}_high"]
        return "" if pd.isna(low) or low == high else f"[{low:.1f}, {high:.1f}]"
    std = row[f"{key}_std"]
    return "" if pd.isna(std) else f"± {std:.2f}"


def caption(summary: pd.DataFrame) -> str:
    """Benchmark, backbone, shots, seeds and number of test images of the measured rows."""
    rows = summary[~is_published(summary)]
    parts = [
        f"Benchmark {summary.attrs.get('benchmark', '')}",
        f"backbone {summary.attrs.get('backbone', '')}",
    ]
    if rows.empty:
        return ", ".join([*parts, "published numbers only"])
    trained = rows[rows["shots"] > 0]
    if len(trained):
        shots = sorted(set(trained["shots"].astype(int)))
        parts.append(shots_text(shots, "/"))
        seeds = sorted(set(trained[trained["seeds"] > 0]["seeds"].astype(int)))
        if seeds:
            parts.append(span(seeds, "seed"))
    single = rows[rows["dataset"] != AVERAGE]
    n = int(single.groupby("dataset")["pictures"].max().sum()) if len(single) else int(rows["pictures"].max())
    return ", ".join([*parts, f"n = {n:,} test images"])


def notes(summary: pd.DataFrame, datasets: Sequence[str] | None = None, intervals: bool = False) -> list[str]:
    """What a reader must know to read the table, or its rows of ``datasets``, right."""
    average = summary[(summary["dataset"] == AVERAGE) & ~is_published(summary)]
    lines = ["Accuracy in percent: mean ± standard deviation (ddof 1) over seeds."]
    if intervals:
        lines = ["Accuracy in percent: mean [95 % t-interval over seeds]."]
    if datasets is not None and set(datasets) == {AVERAGE}:
        lines = ["Accuracy in percent."]
    spread = any((average[f"{key}_low"] < average[f"{key}_high"]).any() for key in metrics_of(summary))
    if spread and (datasets is None or AVERAGE in datasets):
        lines.append("Averages: [95 % interval, seeds resampled within datasets].")
    if "hm" in summary:
        lines.append("HM: harmonic mean of the mean base and the mean novel accuracy.")
    if "mean_hm" in summary and average["mean_hm"].notna().any():
        means = average.dropna(subset=["mean_hm"])
        each = ", ".join(f"{m} {v:.2f}" for m, v in zip(means["method"], means["mean_hm"], strict=True))
        lines.append(f"Mean of the datasets' HMs, for comparison: {each}.")
    if sources := summary.attrs.get("sources"):
        lines.append(f"Trained on {', '.join(sources)}, which is no part of the average.")
    if labels := summary.attrs.get("labels"):
        names = ", ".join(label.partition(": ")[0] for label in labels)
        lines.append(f"Non-standard splits, not comparable with published numbers: {names}.")
    if more := summary.attrs.get("notes"):
        lines.append(f"{'; '.join(more)}.")
    lines += summary.attrs.get("provenance", [])
    lacking = average[average["seeds"] == 0]["method"].unique()
    if len(lacking):
        lines.append(f"No average for {', '.join(lacking)}: {NO_AVERAGE}.")
    full = average[average["seeds"] > 0]
    most = summary[summary["dataset"] != AVERAGE].groupby(["method", "shots"])["seeds"].max()
    fewer = [
        m
        for m, k, n in zip(full["method"], full["shots"], full["seeds"], strict=True)
        if n < most.get((m, k), 0)
    ]
    if fewer:
        lines.append(f"Average of {', '.join(fewer)}: only over the seeds that all its datasets have.")
    if (published := is_published(summary)).any():
        shown = published if datasets is None else published & summary["dataset"].isin(datasets)
        rows = summary[shown].drop_duplicates(["method", "source"])
        each = "; ".join(f"{m}: {source}" for m, source in zip(rows["method"], rows["source"], strict=True))
        lines.append(f"Published, not measured here, no part of any statistic: {each}.")
    return lines


def render(
    summary: pd.DataFrame,
    style: Format,
    title: str = "",
    datasets: Sequence[str] | None = None,
    intervals: bool = False,
) -> str:
    """The table in one format, of all rows or only those of ``datasets`` ("average" is one).

    ``intervals``: 95 % intervals instead of ± std in every row. In Markdown and LaTeX a clear best is bold.
    """
    rows = summary if datasets is None else summary[summary["dataset"].isin(datasets)]
    rows = rows.reset_index(drop=True)
    if style == "csv":
        return rows.to_csv(index=False)
    if style == "json":
        return rows.to_json(orient="records", indent=1) + "\n"
    shown, said = _text(rows, intervals), notes(summary, datasets, intervals)
    if style == "table":
        return terminal(shown, title, said)
    names = [str(name) for name in shown][: 2 if style == "md" else None]
    shown[names] = shown[names].map(escape if style == "latex" else markdown)
    bold = r"\textbf{{{}}}" if style == "latex" else "**{}**"
    best = {METRICS[key].short: clear_best(rows, key) for key in metrics_of(rows)}
    for column, clear in best.items():
        shown[column] = shown[column].where(~clear, shown[column].map(bold.format))
    if any(clear.any() for clear in best.values()):
        said.append("Bold: best, with an interval above every other's.")
    text = " ".join([f"{caption(summary)}.", *said])
    if style == "latex":
        return _latex(shown, escape(text))
    return f"{markdown_table(shown, ('dataset', 'method'))}\n\n{markdown(text)}\n"


def _latex(shown: pd.DataFrame, caption: str) -> str:
    """The table with a rule between datasets."""
    text = latex_table(shown, caption, ("dataset", "method"))
    before, rule, body = text.partition("\\midrule\n")
    lines = body.splitlines(keepends=True)
    for i in range(len(shown) - 1, 0, -1):
        if shown["dataset"].iloc[i] != shown["dataset"].iloc[i - 1]:
            lines.insert(i, rule)
    return before + rule + "".join(lines)


def markdown_table(shown: pd.DataFrame, left: Collection[str]) -> str:
    """A Markdown table of cells that are Markdown; all but the columns ``left`` are aligned right."""
    align = ["left" if column in left else "right" for column in shown]
    return shown.to_markdown(index=False, colalign=align, disable_numparse=True)


def latex_table(shown: pd.DataFrame, caption: str, left: Collection[str]) -> str:
    """A booktabs table of cells that are LaTeX; all but the columns ``left`` are aligned right."""
    align = "".join("l" if column in left else "r" for column in shown)
    return shown.style.hide(axis="index").to_latex(
        hrules=True, position_float="centering", column_format=align, caption=caption
    )


def escape(text: str) -> str:
    """Plain text as LaTeX."""
    special: dict[str, str | int | None] = {char: f"\\{char}" for char in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "<": "$<$", ">": "$>$"}
    # LaTeX would take it for the option of the line break before it
    guard = "{}" if text.startswith(("[", "*")) else ""
    return guard + text.translate(str.maketrans(special))


def markdown(text: str) -> str:
    """Plain text as Markdown, in a table's cell too. What our own sentences and names hold stays as it is."""
    special: dict[str, str | int | None] = {char: f"\\{char}" for char in "\\`*<|$~"}
    return text.translate(str.maketrans(special)).replace("](", "]\\(")


def terminal(shown: pd.DataFrame, title: str, said: list[str]) -> str:
    """For the screen: the first column is written once per group."""
    words = {"dataset", "metric", "method", "other"}
    columns = [str(column) for column in shown.columns]
    rows = shown.values.tolist()
    drawn = console.table(columns, rows, title, right=set(columns) - words, grouped=True)
    return drawn + "\n".join(map(console.fill, said)) + "\n"
