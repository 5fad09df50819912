"""Accuracy against the number of shots, a panel per dataset and one for the average."""

from typing import Any

import pandas as pd

from promptbench.analysis.comparison import Material
from promptbench.analysis.vocabulary import as_published
from promptbench.reporting.plots._base import Drawing, bottom, declare, error_bars, legend_below, line, panels
from promptbench.reporting.tables import is_published

FEW = 8  # more methods have no error bars: they would hide each other


@declare(
    "Accuracy against the number of shots.",
    needs="at least two numbers of shots; run --shots 1,4,16",
    place=5,
)
def fewshot(material: Material) -> Drawing:
    """One line per method, 95 % intervals, methods without shots dotted, published numbers hollow and dashed.

    Raises UserError unless there are two numbers of shots.
    """
    metric, shown = material.shown_metric, material.shown
    shots = sorted({int(k) for k in shown["shots"] if k > 0})
    fewshot.require(len(shots) > 1)
    rows = shown.dropna(subset=[metric])
    names = list(rows["dataset"].unique())
    figure, axes = panels(len(names), 3)
    for one, dataset in zip(axes, names, strict=True):
        _panel(one, material, rows[rows["dataset"] == dataset], metric)
        one.set_xscale("log", base=2)
        one.set_xticks(shots, [str(k) for k in shots])
        one.minorticks_off()
        one.set_title(dataset)
    bottom(axes, "Shots per class")
    figure.supylabel("Accuracy (%)", fontsize=8)
    legend_below(figure, axes)
    return Drawing(f"fewshot-{metric}", figure, rows)


def _panel(axes: Any, material: Material, rows: pd.DataFrame, metric: str) -> None:
    crowded = material.summary["method"].nunique() > FEW
    published = is_published(rows)
    for hollow, part in ((False, rows[~published]), (True, rows[published])):
        for method, mine in part.groupby("method", sort=False):
            style = line(material, str(method))
            label = as_published(str(method)) if hollow else str(method)
            if not mine["shots"].max():
                dots = (0, (1, 4)) if hollow else ":"
                axes.axhline(mine[metric].iloc[0], color=style["color"], linestyle=dots, label=label)
                continue
            mine = mine.sort_values("shots")
            drawn = {"mfc": "white", "linestyle": "--"} if hollow else {}
            axes.plot(mine["shots"], mine[metric], label=label, **style | drawn)
            for row in [] if crowded else mine.to_dict("records"):
                if bars := error_bars(row, metric):
                    axes.errorbar(
                        row["shots"], row[metric], bars, color=style["color"], capsize=2, elinewidth=0.8
                    )
