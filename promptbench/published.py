"""Published numbers (``results/published.csv``: every row names its source) and how ours compare with them.

The bands in which an honest reproduction falls are decisions of this project, from what public
reproductions deviate; see docs/design.md.
"""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from promptbench.compare import AVERAGE
from promptbench.method import get_method

BACKBONES = {
    "ViT-B-16-quickgelu": "ViT-B/16",
    "ViT-B-32-quickgelu": "ViT-B/32",
    "ViT-L-14-quickgelu": "ViT-L/14",
}
_AVERAGES = {
    "base2novel": "average11",
    "fewshot": "average11",
    "crossdataset": "average10",
    "domain": "average_ood4",
}
_NOT_THE_PAPERS = "re-run|unlabeled|CoOp paper|ensemble|supplement"
_ZERO_SHOT = 0.3
_BANDS = {"base": 1.0, "novel": 1.0, "hm": 1.0, "all": 1.0}
_AVERAGE_BANDS = {"base": 0.5, "novel": 0.7, "hm": 0.6, "all": 0.7}
_WIDER = {("eurosat", "novel"): 5.0, ("dtd", "novel"): 4.0, ("ucf101", "novel"): 2.5, ("eurosat", "all"): 5.0}


@cache
def table() -> pd.DataFrame:
    """All published rows: method, benchmark, dataset, setting, metric, value, unit, ..., source."""
    return pd.read_csv(Path(str(resources.files("promptbench.results"))) / "published.csv")


def lookup(
    method: str, benchmark: str, dataset: str, metric: str, shots: int, backbone: str
) -> dict[str, Any] | None:
    """The row to compare with; None if nothing was published. ``metric``: base, novel, hm or all."""
    kind = get_method(method)
    rows = table()
    rows = rows[
        (rows["method"] == kind.published_name)
        & (rows["benchmark"] == benchmark)
        & (rows["dataset"] == (_AVERAGES[benchmark] if dataset == AVERAGE else dataset))
        & (rows["metric"] == ("accuracy" if metric == "all" else metric))
        & (rows["backbone"] == BACKBONES.get(backbone))
        & ~rows["setting"].str.contains(_NOT_THE_PAPERS)
    ]
    if not kind.uses_shots:
        rows = rows[rows["setting"].str.startswith("zero-shot")]
    elif benchmark in ("crossdataset", "domain"):
        rows = rows[rows["setting"].str.startswith("ImageNet 16-shot source")]
    else:
        rows = rows[rows["setting"].str.match(rf"{shots}-shot\b")]
    if kind.published_setting:
        rows = rows[rows["setting"].str.contains(kind.published_setting, regex=False)]
    return {str(key): value for key, value in rows.iloc[0].items()} if len(rows) else None


def band(trains: bool, dataset: str, metric: str) -> float:
    """How far from the published value, in points, is still as published."""
    if not trains:
        return _ZERO_SHOT
    return _AVERAGE_BANDS[metric] if dataset == AVERAGE else _WIDER.get((dataset, metric), _BANDS[metric])


def verify(summary: pd.DataFrame, benchmark: str, backbone: str) -> pd.DataFrame:
    """One row per cell of ``summary`` (see `compare.summarise`) that was published too.

    Columns: method, dataset, shots, metric, ours, published, difference, band, verdict, source.
    """
    found = []
    for row in summary.to_dict("records"):
        method = str(row["method"]).partition(" (")[0]
        if method != row["method"]:
            continue  # settings of the user's own were never published
        for metric in ("base", "novel", "hm", "all"):
            ours = row.get(metric)
            if ours is None or pd.isna(ours):
                continue
            known = lookup(method, benchmark, row["dataset"], metric, row["shots"], backbone)
            if known is None:
                continue
            difference = ours - float(known["value"])
            allowed = band(get_method(method).uses_shots, row["dataset"], metric)
            found.append(
                {
                    "method": method,
                    "dataset": row["dataset"],
                    "shots": row["shots"],
                    "metric": metric,
                    "ours": round(ours, 2),
                    "published": float(known["value"]),
                    "difference": round(difference, 2),
                    "band": allowed,
                    "verdict": "pass"
                    if abs(difference) <= allowed + 1e-9
                    else f"off by {abs(difference):.2f}",
                    "source": known["source"],
                }
            )
    return pd.DataFrame(found)
