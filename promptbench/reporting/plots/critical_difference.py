"""Critical-difference diagram: mean ranks over datasets, bars join what Nemenyi's test cannot tell apart."""

import pandas as pd

from promptbench.analysis.comparison import Material
from promptbench.analysis.ranks import CD_DATASETS, CD_METHODS, rank
from promptbench.analysis.summary import measured
from promptbench.analysis.vocabulary import METRICS, p_text
from promptbench.reporting.plots._base import WIDTH, Drawing, declare, look, new_figure


@declare(
    "Mean ranks over datasets, 1 is best.",
    needs=f"at least {CD_METHODS} methods on {CD_DATASETS} datasets (else `promptbench compare --pairs`)",
    place=4,
)
def critical_difference(material: Material) -> Drawing:
    """Ranks by the metric at the largest number of shots. Raises UserError for fewer than 5 methods or 6
    datasets."""
    metric = material.shown_metric
    runs = measured(material.table) if material.records else []
    most = max((one.shots for one in runs), default=0)
    runs = [one for one in runs if one.shots in (0, most)]
    datasets = len(runs[0].by_dataset(metric)) if runs else 0
    enough = len(runs) >= CD_METHODS and datasets >= CD_DATASETS
    critical_difference.require(enough, f"there are {len(runs)} on {datasets}")
    ranks = rank({one.method: one.by_dataset(metric) for one in runs})
    names, values = list(ranks.mean), list(ranks.mean.values())
    k, half = len(names), (len(names) + 1) // 2
    groups = ranks.groups
    top, row = 0.32 + 0.11 * len(groups), 0.24
    figure = new_figure(WIDTH, 0.9 + top + row * half)
    axes = figure.subplots()
    axes.axis("off")
    axes.set_xlim(1 - 0.42 * (k - 1) - 0.3, k + 0.42 * (k - 1) + 0.3)
    axes.set_ylim(-(top + row * (half + 0.3)), 0.75)
    axes.plot([1, k], [0, 0], color="k", linewidth=1)
    for tick in range(1, k + 1):
        axes.plot([tick, tick], [0, 0.06], color="k", linewidth=1)
        if k <= 12 or tick % 2:
            axes.text(tick, 0.1, str(tick), ha="center", fontsize=7)
    axes.plot([1, 1 + ranks.difference], [0.45, 0.45], "k|-", linewidth=1.2)
    axes.text(
        1 + ranks.difference / 2, 0.5, f"critical difference {ranks.difference:.2f}", ha="center", fontsize=7
    )
    left, right = axes.get_xlim()
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        first = i < half
        y = -(top + row * (i if first else k - 1 - i))
        end = 1 - 0.04 * (k - 1) if first else k + 0.04 * (k - 1)
        axes.plot([value, value, end], [0, y, y], color=look(material, name)["color"], linewidth=0.9)
        text = f"{name} ({value:.1f})" if first else f"({value:.1f}) {name}"
        axes.text(
            end,
            y,
            f"{text} " if first else f" {text}",
            ha="right" if first else "left",
            va="center",
            fontsize=7,
        )
    for i, group in enumerate(groups):
        y, reach = -(0.14 + 0.11 * i), 0.006 * (right - left)
        ends = [ranks.mean[group[0]] - reach, ranks.mean[group[-1]] + reach]
        axes.plot(ends, [y, y], color="k", linewidth=2.6, solid_capstyle="butt")
    p = p_text(ranks.p)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    of = f"{METRICS[metric].phrase}, {datasets} datasets"
    axes.set_title(f"Mean ranks by {of} (Friedman {p}; joined: not told apart at 5 %)")
    data = pd.DataFrame({"method": names, "rank": values, "critical_difference": ranks.difference})
    return Drawing(f"critical-difference-{metric}", figure, data)
