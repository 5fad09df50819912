"""How much each block's read-out is changed by the prompts, by tower."""

import pandas as pd

from promptbench.analysis.comparison import Material
from promptbench.reporting.plots._base import Drawing, declare, legend_below, line, new_figure

TOWERS = ("text", "vision")


@declare(
    "How much prompts change the read-out token after each block, mean over runs.",
    needs="records that hold the influence of prompts; run a method that prompts a tower",
    place=7,
)
def prompts(material: Material) -> Drawing:
    """One line per method: mean over records of the relative change of the read-out token after each block.

    Raises UserError if no record has it (records made before it was measured, methods that leave the towers
    alone).
    """
    rows = [
        (tower, material.labels[record.hash[:8]], block, change)
        for record in material.records
        for tower in TOWERS
        for block, change in enumerate(record.influence.get(tower, ()), 1)
    ]
    prompts.require(rows)
    table = pd.DataFrame(rows, columns=["tower", "method", "block", "change"])
    groups = table.groupby(["tower", "method", "block"], sort=False)["change"]
    data = groups.agg(change="mean", records="size").reset_index()
    towers = sorted(data["tower"].unique())
    figure = new_figure(height=3.2)
    axes = figure.subplots(1, len(towers), sharey=True, squeeze=False)[0]
    names = [name for name in material.summary["method"].unique() if name in set(data["method"])]
    for one, tower in zip(axes, towers, strict=True):
        for name in names:
            mine = data[(data["tower"] == tower) & (data["method"] == name)]
            if len(mine):
                one.plot(mine["block"], mine["change"], markersize=3.5, label=name, **line(material, name))
        one.set_title(f"{tower} tower")
        one.set_xlabel("After block")
        one.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("Relative change of the read-out")
    axes[0].set_ylim(bottom=0)
    legend_below(figure, axes)
    return Drawing("prompts", figure, data)
