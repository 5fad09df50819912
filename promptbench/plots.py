"""Figures from summaries of records: each is written as PNG and PDF, with the CSV of what it shows."""

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from promptbench.compare import AVERAGE
from promptbench.errors import UserError
from promptbench.files import write_atomic

matplotlib.use("Agg")  # no display is needed, or wanted, on a server

# Okabe and Ito's palette: told apart with every common colour blindness, and in grey by the markers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: Any = {"font.size": 9, "pdf.fonttype": 42, "axes.spines.top": False, "axes.spines.right": False}
NAMES = {"hm": "Harmonic mean of base and novel accuracy (%)", "all": "Accuracy, all classes (%)"}


def pareto(costs: list[float], values: list[float]) -> list[int]:
    """Indices of the points no other point beats: none cheaper or as cheap that is at least as good."""
    best, front = float("-inf"), []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        if values[i] > best:
            best = values[i]
            front.append(i)
    return front


def tradeoff(summary: pd.DataFrame, folder: Path, metric: str = "hm") -> list[Path]:
    """Accuracy against trainable parameters (log x): error bars over seeds, Pareto front, zero-shot a line.

    Uses the average over datasets if there are several, at the largest number of shots. Raises UserError
    if no trained method has the metric.
    """
    data = AVERAGE if AVERAGE in set(summary["dataset"]) else summary["dataset"].iloc[0]
    shown = summary[summary["dataset"] == data]
    if metric not in shown:
        metric = "all" if "all" in shown else "hm"
    shown = shown[shown["shots"].isin([0, shown["shots"].max()])].dropna(subset=[metric])
    points = shown[shown["parameters"] > 0].sort_values("parameters").reset_index(drop=True)
    lines = shown[shown["parameters"] == 0]
    if points.empty:
        raise UserError(
            "The trade-off plot needs at least one trained method with all its datasets; run one."
        )
    # Zero-shot costs nothing: what is no better than it is on no front.
    front = [
        i
        for i in pareto(points["parameters"].tolist(), points[metric].tolist())
        if not points[metric].iloc[i] <= lines[metric].max()
    ]
    points["pareto"] = points.index.isin(front)
    with matplotlib.rc_context(STYLE):
        figure = _draw_tradeoff(points, lines, front, metric, data, summary)
        return _save(figure, folder, f"tradeoff-{metric}", pd.concat([lines, points]))


def _draw_tradeoff(
    points: pd.DataFrame, lines: pd.DataFrame, front: list[int], metric: str, data: str, summary: pd.DataFrame
) -> Any:
    import matplotlib.pyplot as plt
    from adjustText import adjust_text

    figure, axes = plt.subplots(figsize=(5.5, 3.7), layout="constrained")
    x, y = points["parameters"], points[metric]
    axes.set_xscale("log")
    axes.step(
        x[front],
        y[front],
        where="post",
        color="0.6",
        linewidth=1,
        linestyle="--",
        zorder=1,
        label="Pareto front",
    )
    names = list(points["method"])
    for i, (_, point) in enumerate(points.iterrows()):
        error = point[f"{metric}_std"]
        axes.errorbar(
            point["parameters"],
            point[metric],
            yerr=None if pd.isna(error) else error,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=7,
            capsize=3,
            linewidth=1.2,
            zorder=3,
        )
    bars = points[f"{metric}_std"].fillna(0)
    for _, line in lines.iterrows():
        # On the side whose point is farther from the line.
        gaps = (y - line[metric]).abs() - bars
        right = gaps.iloc[-1] > gaps.iloc[0]
        axes.axhline(line[metric], color="0.3", linewidth=1, linestyle=":", zorder=0)
        axes.annotate(
            f"{line['method']} ({line[metric]:.1f})",
            (1 if right else 0, line[metric]),
            xycoords=("axes fraction", "data"),
            xytext=(-3 if right else 3, 3),
            textcoords="offset points",
            ha="right" if right else "left",
            color="0.3",
        )
    axes.margins(x=0.15, y=0.18)
    axes.set_xlabel("Trainable parameters")
    axes.set_ylabel(NAMES.get(metric, f"{metric.capitalize()} accuracy (%)"))
    count = summary[summary["dataset"] != AVERAGE]["dataset"].nunique()
    where = f"average of {count} datasets" if data == AVERAGE else data
    seeds = int(points["seeds"].max())
    axes.set_title(
        f"{where}, {int(points['shots'].max())} shots, {seeds} seed{'s' if seeds > 1 else ''}"
        + (" (bars: ± std)" if seeds > 1 else ""),
        fontsize=9,
        loc="left",
    )
    if len(front) > 1:
        axes.legend(frameon=False, loc="best", fontsize=8)
    axes.grid(True, axis="y", color="0.92", zorder=0)
    figure.canvas.draw()
    labels = [
        axes.text(a, b, f"{name}\n{_short(int(a))}", fontsize=8.5, ha="center", linespacing=1.1)
        for name, a, b in zip(names, x, y, strict=True)
    ]
    # Labels keep off the points and, by points strewn along them, off the error bars.
    steps = [i / 10 for i in range(-10, 11)]
    adjust_text(
        labels,
        x=[a for a in x for _ in steps],
        y=[b + step * bar for b, bar in zip(y, bars, strict=True) for step in steps],
        target_x=list(x),
        target_y=list(y),
        ax=axes,
        objects=[text for text in axes.texts if text not in labels] or None,
        expand=(1.3, 1.3),
        ensure_inside_axes=True,
        arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.6},
    )
    return figure


def _short(n: int) -> str:
    """11556 -> "11.6K"."""
    for size, unit in ((1e6, "M"), (1e3, "K")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)


def _save(figure: Any, folder: Path, name: str, data: pd.DataFrame) -> list[Path]:
    import matplotlib.pyplot as plt

    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf", "csv")]
    # No dates: the same records give the same files.
    write_atomic(paths[0], lambda file: figure.savefig(file, format="png", dpi=200))
    write_atomic(paths[1], lambda file: figure.savefig(file, format="pdf", metadata={"CreationDate": None}))
    write_atomic(paths[2], data.to_csv(index=False))
    plt.close(figure)
    return paths
