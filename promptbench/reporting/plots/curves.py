"""Training curves: loss by epoch and, where it was measured, validation accuracy."""

import json
from typing import Any

import pandas as pd

from promptbench.analysis.comparison import Material
from promptbench.console import plain
from promptbench.reporting.plots._base import COLOURS, LINES, Drawing, bottom, declare, legend_below, panels
from promptbench.training.files import METRICS

COLUMNS = {"loss": "training loss", "val_accuracy": "validation (%)"}


@declare(
    "Training loss by epoch and, where it was measured, validation accuracy; mean over seeds.",
    needs=f"{METRICS} of more than one epoch beside the records",
    place=8,
)
def curves(material: Material) -> Drawing:
    """A panel per method and measure, a line per dataset (mean over seeds), at the largest number of shots.

    Read from the metrics beside the records. Raises UserError where there are none.
    """
    data, broken = history(material)
    curves.require(len(data), f"there are none under {material.out}")
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
    said = [f"{broken} {METRICS} cannot be read and are no part of the curves."] if broken else []
    return Drawing("curves", figure, data, said)


def history(material: Material) -> tuple[pd.DataFrame, int]:
    """method, dataset, epoch, loss and, if any, val_accuracy: means over seeds, at the most shots; and
    how many files cannot be read."""
    most = max((record.trial.shots for record in material.records), default=0)
    rows: list[dict[str, Any]] = []
    broken = 0
    out = material.out.resolve()
    for record in material.records:
        if record.trial.shots != most or not most:
            continue
        path = record.trial.folder(material.out) / METRICS
        # A record may come from anybody: none names a file elsewhere.
        if not path.resolve().is_relative_to(out) or not path.is_file():
            continue
        about = {"method": material.labels[record.hash[:8]], "dataset": plain(record.trial.dataset)}
        try:
            rows += [about | _numbers(line) for line in path.read_text("utf-8").splitlines()]
        except (OSError, ValueError, TypeError, KeyError):
            broken += 1
    if not rows:
        return pd.DataFrame(), broken
    found = pd.DataFrame(rows).groupby(["method", "dataset", "epoch"], sort=False, as_index=False).mean()
    several = found.groupby("method")["epoch"].transform("max") > 1
    return found[several].dropna(axis="columns", how="all").reset_index(drop=True), broken


def _numbers(line: str) -> dict[str, float | None]:
    """Epoch and measures of a line. Raises ValueError, TypeError or KeyError if it is none."""
    row = json.loads(line)
    values = {key: None if (value := row.get(key)) is None else float(value) for key in COLUMNS}
    return {"epoch": int(row["epoch"]), **values}
