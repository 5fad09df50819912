"""Base against novel accuracy, with curves of equal harmonic mean."""

from typing import Any

import numpy as np
import pandas as pd

from promptbench.analysis.comparison import Material
from promptbench.analysis.vocabulary import METRICS
from promptbench.reporting.plots._base import Drawing, declare, error_bars, label_points, new_figure, point


@declare(
    "Base against novel accuracy; the curves are of equal harmonic mean (HM).",
    needs="base and novel accuracy of a method with all its datasets; choose --benchmark base2novel",
    place=2,
)
def base_novel(material: Material) -> Drawing:
    """One point per method with 95 % intervals; published numbers hollow. Raises UserError for benchmarks
    without base and novel classes."""
    rows = material.headline(material.shown)
    base_novel.require({"base", "novel"} <= set(rows) and len(rows))
    figure = new_figure(height=3.6 if len(rows) <= 8 else 4.8)
    axes = figure.subplots()
    axes.margins(0.1)
    avoid: list[tuple[float, float]] = []
    for row in rows.to_dict("records"):
        x, y = row["base"], row["novel"]
        across, up = error_bars(row, "base"), error_bars(row, "novel")
        axes.errorbar(x, y, up, across, elinewidth=0.7, zorder=3, **point(material, row))
        steps = np.linspace(0, 1, 5)
        for sign, side in ((-1, 0), (1, 1)):  # labels keep off the bars by points strewn along them
            avoid += [(x + sign * s * across[side][0], y) for s in steps] if across else []
            avoid += [(x, y + sign * s * up[side][0]) for s in steps] if up else []
    _levels(axes)
    axes.set_xlabel(METRICS["base"].axis)
    axes.set_ylabel(METRICS["novel"].axis)
    hollow = "; hollow: published" if len(material.published) and len(material.summary) else ""
    bars = "; bars: 95 % intervals" if avoid else ""
    axes.set_title(f"{material.caption}{bars}{hollow}")
    label_points(axes, list(rows["base"]), list(rows["novel"]), list(rows["method"]), avoid)
    return Drawing("base-novel", figure, pd.DataFrame(rows))


def _levels(axes: Any) -> None:
    """Curves of equal harmonic mean over the limits the points have set."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    corners = [2 * a * b / (a + b) for a in (left, right) for b in (low, high)]
    step = next(s for s in (0.5, 1, 2, 5, 10, 20) if (max(corners) - min(corners)) / s <= 8 or s == 20)
    x = np.linspace(left, right, 300)
    for level in np.arange(np.ceil(min(corners) / step) * step, max(corners), step):
        y = np.where(2 * x > level, level * x / np.maximum(2 * x - level, 1e-9), np.inf)
        inside = (y >= low) & (y <= high)
        if inside.sum() > 15:
            axes.plot(x[inside], y[inside], color="0.82", linewidth=0.8, zorder=0)
            end = (x[inside][-1], y[inside][-1])
            axes.text(*end, f"HM {level:g}", fontsize=6, color="0.5", ha="right", va="bottom")
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.grid(False)
