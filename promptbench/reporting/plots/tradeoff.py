"""Accuracy against what a method costs, with the Pareto front and who dominates whom."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from promptbench.analysis.comparison import Material
from promptbench.analysis.costs import COSTS, step_gflop
from promptbench.analysis.vocabulary import METRICS
from promptbench.errors import UserError
from promptbench.reporting.plots._base import (
    Drawing,
    PlainLog,
    declare,
    error_bars,
    label_points,
    new_figure,
    point,
)

FEW = 8  # up to so many points the labels also hold the cost


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices of the points no other point beats: none cheaper or as cheap that is at least as good."""
    best, front = float("-inf"), []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        if values[i] > best:
            best = values[i]
            front.append(i)
    return front


def with_front(rows: pd.DataFrame, cost: str, metric: str) -> pd.DataFrame:
    """``rows`` by cost, with columns pareto, and dominated_by: the best of the front that beats it."""
    rows = rows.sort_values([cost, metric], kind="stable").reset_index(drop=True)
    costs, values = rows[cost].tolist(), rows[metric].tolist()
    front = pareto(costs, values)
    rows["pareto"] = rows.index.isin(front)
    winners = []
    for i in range(len(rows)):
        better = [j for j in front if costs[j] <= costs[i] and values[j] >= values[i]]
        best = max(better, key=lambda j: values[j])
        winners.append("" if i in front else rows["method"].iloc[best])
    rows["dominated_by"] = winners
    return rows


def sentence(rows: pd.DataFrame, cost: str, metric: str) -> str:
    """Who is on the front and who dominates the others."""
    front = ", ".join(rows[rows["pareto"]]["method"])
    losers = rows[~rows["pareto"]].groupby("dominated_by", sort=False)["method"]
    each = "; ".join(f"{winner} dominates {', '.join(names)}" for winner, names in losers)
    of = f"{METRICS[metric].phrase} over {COSTS[cost].short}"
    return f"Pareto front of {of}: {front}. {each or 'Nothing is dominated'}."


@declare(
    "Accuracy against trainable parameters.",
    needs="at least one trained method with all its datasets; run one",
    place=1,
)
def tradeoff(material: Material) -> Drawing:
    """Metric against cost (log x): 95 % intervals, Pareto front, what costs nothing as a line; published
    numbers hollow, on no front with measured ones. Raises UserError if no trained method has the metric."""
    metric, cost = material.shown_metric, material.cost
    measured, published = (material.headline(rows) for rows in (material.summary, material.published))
    if cost != "parameters" and measured.empty:
        raise UserError("Of published numbers only the trainable parameters are known; leave out --x.")
    if cost == "gflop":
        keys = zip(measured["method"], measured["shots"], strict=True)
        measured["gflop"] = [step_gflop(material, method, shots) for method, shots in keys]
    if cost != "parameters":
        published = published.iloc[:0].assign(**{cost: 0.0})
    said, lacking = [], published["parameters"].isna()
    if lacking.any():
        names = ", ".join(published[lacking]["method"])
        said = [f"Published without one number of parameters, left out: {names}."]
    main, beside = measured, published[~lacking]
    if main.empty:
        main, beside = beside, main
    tradeoff.require(len(main) and (main[cost] > 0).any())
    main = with_front(main, cost, metric)
    said = [sentence(main, cost, metric), *COSTS[cost].warnings(material.records), *said]
    figure = new_figure(height=3.6 if len(main) + len(beside) <= FEW else 4.8)
    axes = figure.subplots()
    _draw(axes, material, main, beside)
    axes.set_xlabel(COSTS[cost].label)
    axes.set_ylabel(METRICS[metric].axis)
    bars = "; bars: 95 % intervals" if any(error_bars(row, metric) for row in main.to_dict("records")) else ""
    axes.set_title(f"{material.caption}{bars}{'; hollow: published' if len(beside) else ''}")
    name = f"tradeoff-{metric}" + ("" if cost == "parameters" else f"-{cost}")
    return Drawing(name, figure, pd.concat([main, beside]) if len(beside) else main, said)


def _draw(axes: Any, material: Material, main: pd.DataFrame, beside: pd.DataFrame) -> None:
    metric, cost = material.shown_metric, material.cost
    points, free = main[main[cost] > 0], main[main[cost] == 0].sort_values(metric)
    beside = beside[beside[cost] > 0]
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(PlainLog())
    axes.xaxis.set_minor_formatter(PlainLog())
    axes.margins(x=0.1, y=0.12)
    front = points[points["pareto"]]
    axes.step(
        front[cost],
        front[metric],
        "--",
        where="post",
        color="0.6",
        linewidth=1,
        zorder=1,
        label="Pareto front",
    )
    avoid = []
    for row in [*points.to_dict("records"), *beside.to_dict("records")]:
        bars = error_bars(row, metric)
        axes.errorbar(
            row[cost], row[metric], bars, capsize=2, zorder=3, elinewidth=0.9, **point(material, row)
        )
        if bars:  # labels keep off the bars by points strewn along them
            low, high = row[metric] - bars[0][0], row[metric] + bars[1][0]
            avoid += [(row[cost], low + (high - low) * i / 12) for i in range(13)]
    place = np.log(points[cost].astype(float))
    place = (place - place.min()) / max(place.max() - place.min(), 1e-9)
    near = 0.06 * np.ptp([*main[metric], *beside[metric]])
    for row in free.to_dict("records"):
        # Left or right, above or below the line: where the fewest points are, and no other line.
        crowd = {}
        for right, below in product((False, True), repeat=2):
            gaps = (row[metric] - points[metric]) if below else (points[metric] - row[metric])
            lines = (row[metric] - free[metric]) if below else (free[metric] - row[metric])
            side = (place > 0.85) if right else (place < 0.15)
            crowd[right, below] = (
                gaps[side].between(-near / 3, near).sum() + 2 * lines.between(1e-9, near).sum()
            )
        right, below = min(crowd, key=lambda where: crowd[where])
        axes.axhline(row[metric], color="0.3", linewidth=1, linestyle=":", zorder=0)
        axes.annotate(
            f"{row['method']} ({row[metric]:.1f})",
            (1 if right else 0, row[metric]),
            xycoords=("axes fraction", "data"),
            xytext=(-3 if right else 3, -2 if below else 2),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top" if below else "baseline",
            fontsize=7,
            color="0.3",
        )
    if len(front) > 1:
        axes.legend(loc="lower right")
    both = pd.concat([points, beside]) if len(beside) else points
    names = list(both["method"])
    if len(both) <= FEW:
        names = [f"{name}\n{COSTS[cost].text(c)}" for name, c in zip(names, both[cost], strict=True)]
    label_points(axes, list(both[cost]), list(both[metric]), names, avoid)
