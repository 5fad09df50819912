"""Methods by datasets: how far each is from zero-shot."""

import numpy as np

from promptbench.analysis.comparison import Material
from promptbench.analysis.vocabulary import METRICS, ZEROSHOT
from promptbench.reporting.plots._base import WIDTH, Drawing, declare, new_figure


@declare("Points above zero-shot.", needs=f"records of {ZEROSHOT} and of another method; run both", place=3)
def heatmap(material: Material) -> Drawing:
    """Differences to zero-shot in points at the largest number of shots, with the numbers in the cells;
    missing cells are empty. Raises UserError without zero-shot or another method."""
    metric, summary = material.shown_metric, material.summary
    heatmap.require({ZEROSHOT} < set(summary["method"]))
    rows = summary[summary["shots"].isin([0, summary["shots"].max()])]
    wide = rows.pivot(index="method", columns="dataset", values=metric)
    wide = wide.loc[rows["method"].unique(), rows["dataset"].unique()]
    gain = wide.sub(wide.loc[ZEROSHOT], axis="columns").drop(index=ZEROSHOT)
    height = 0.21 * len(gain) + 1.1
    figure = new_figure(min(WIDTH, 1.8 + 0.55 * gain.shape[1] + 0.8), height)
    axes = figure.subplots()
    values = gain.to_numpy(dtype=float)
    most = max(1.0, float(np.nan_to_num(np.abs(values)).max(initial=0)))
    # Purple to orange: told apart with every common colour blindness.
    image = axes.imshow(values, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:+.1f}"
        axes.text(
            j, i, text, ha="center", va="center", fontsize=6.5, color="w" if abs(value) > 0.7 * most else "k"
        )
    axes.set_xticks(range(gain.shape[1]), gain.columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(gain)), gain.index)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.outline.set_visible(False)
    what = METRICS[metric].axis.removesuffix(" (%)")
    axes.set_title(f"{what}: points above zero-shot\n{_without_where(material)}")
    return Drawing(f"heatmap-{metric}", figure, gain.reset_index())


def _without_where(material: Material) -> str:
    """The caption without which datasets: those are the columns."""
    return material.caption.partition(", ")[2]
