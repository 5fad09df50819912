"""Training curves: loss by epoch and, where it was measured, validation accuracy."""

import json

import pandas as pd

from promptbench.plots.base import COLOURS, LINES, Drawing, Material, bottom, legend_below, need, panels
from promptbench.records import METRICS

COLUMNS = {"loss": "training loss", "val_accuracy": "validation (%)"}


def curves(material: Material) -> Drawing:
    """A panel per method and measure, a line per dataset (mean over seeds), at the largest number of shots.

    Read from the metrics beside the records. Raises UserError where there are none.
    """
    data = history(material)
    need(
        len(data),
        f"No {METRICS} of more than one epoch lie beside the records under {material.out}; curves need them.",
    )
    shown = [
        (column, str(method))
        for column in COLUMNS
        if column in data
        for method in data.dropna(subset=[column])["method"].unique()
    ]
    figure, axes = panels(len(shown), 4, height=1.35)
    datasets = list(data["dataset"].unique())
    for one, (column, method) in zip(axes, shown, strict=True):
        for dataset, rows in data[data["method"] == method].dropna(subset=[column]).groupby("dataset"):
            i = datasets.index(dataset)
            style = LINES[(i // len(COLOURS)) % len(LINES)]
            one.plot(
                rows["epoch"],
                rows[column],
                style,
                color=COLOURS[i % len(COLOURS)],
                linewidth=1,
                label=dataset,
            )
        one.set_title(f"{method}: {COLUMNS[column]}", fontsize=7)
        one.tick_params(labelsize=6.5)
        one.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    bottom(axes, "Epoch")
    legend_below(figure, axes)
    return Drawing("curves", figure, data)


def history(material: Material) -> pd.DataFrame:
    """method, dataset, epoch, loss and, if any, val_accuracy: means over seeds, at the most shots."""
    most = max((record.trial.shots for record in material.records), default=0)
    rows = []
    for record in material.records:
        if record.trial.shots != most or not most:
            continue
        path = record.trial.folder(material.out) / METRICS
        if not path.exists():
            continue
        for line in path.read_text().splitlines():
            row = json.loads(line)
            values = {key: row.get(key) for key in COLUMNS}
            rows.append(
                {
                    "method": material.labels[record.hash[:8]],
                    "dataset": record.trial.dataset,
                    "epoch": row["epoch"],
                    **values,
                }
            )
    if not rows:
        return pd.DataFrame()
    found = pd.DataFrame(rows).groupby(["method", "dataset", "epoch"], sort=False, as_index=False).mean()
    several = found.groupby("method")["epoch"].transform("max") > 1
    return found[several].dropna(axis="columns", how="all").reset_index(drop=True)
