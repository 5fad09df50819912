"""From records to a summary: means, deviations and intervals over seeds, averages over datasets.

HM is the harmonic mean of the averaged base and the averaged novel accuracy, the papers' rule; the mean
of the datasets' HMs is given beside it, labelled. A method that lacks a dataset has no average.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from promptbench.analysis.statistics import Runs, harmonic_mean, t_half_width
from promptbench.analysis.vocabulary import AVERAGE, SPACES, few
from promptbench.console import plain
from promptbench.errors import UserError
from promptbench.trials.benchmarks import get_benchmark, metrics_for
from promptbench.trials.record import Record


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per record and evaluation: method, dataset, classes, shots, seed, accuracy (percent), costs.

    Raises UserError if two records answer the same question with different settings, or if records were
    made with different weights or different versions of a dataset.
    """
    _require_same("weights", [(r.trial.backbone, r.trial.weights, r.hash[:8]) for r in records])
    _require_same("data", [(r.trial.dataset, r.trial.data, r.hash[:8]) for r in records])
    mixed = len({r.trial.precision for r in records}) > 1
    rows, names = [], []
    for record in records:
        trial = record.trial
        changed = " ".join(filter(None, (trial.variant, trial.precision if mixed else "")))
        names.append(plain(f"{trial.method} ({changed})" if changed else trial.method))
        for counts in record.evaluations:
            rows.append(
                {
                    "method": names[-1],
                    "dataset": plain(counts.dataset),
                    "source": counts.dataset == trial.dataset and get_benchmark(trial.benchmark).transfer,
                    "classes": counts.classes,
                    "shots": trial.shots,
                    "seed": trial.seed,
                    "accuracy": counts.accuracy,
                    "parameters": record.trainable_parameters,
                    "seconds": record.seconds.train,
                    "memory": record.peak_memory_bytes,
                    "pictures": counts.total,
                    "hash": record.hash[:8],
                }
            )
    table = pd.DataFrame(rows)
    table.attrs["benchmark"] = ", ".join(sorted({r.trial.benchmark for r in records}))
    table.attrs["backbone"] = ", ".join(sorted({plain(r.trial.backbone) for r in records}))
    table.attrs["labels"] = sorted({plain(label) for record in records for label in record.labels})
    table.attrs["notes"] = sorted({plain(note) for record in records for note in record.notes})
    table.attrs["provenance"] = list(map(plain, _provenance(names, records)))
    cell = ["method", "dataset", "classes", "shots", "seed"]
    double = table[table.duplicated(cell, keep=False)]
    if len(double):
        first = double.iloc[0]
        same = double[(double[cell] == first[cell]).all(axis=1)]
        hashes = ", ".join(sorted(same["hash"]))
        if same["hash"].nunique() == 1:
            raise UserError(
                f"There are {len(same)} records of the trial {first['hash']} ({first['method']} on "
                f"{first['dataset']}) with different results; keep one of the folders."
            )
        raise UserError(
            f"Records {hashes} answer the same question ({first['method']} on {first['dataset']}) with "
            "different settings; delete one of the folders or keep them in separate --out folders."
        )
    return table


def _provenance(names: Sequence[str], records: Sequence[Record]) -> list[str]:
    """What a reader must know about the code that made the records; ``names``: of each one's method."""
    versions: dict[str, set[str]] = {}
    for name, record in zip(names, records, strict=True):
        versions.setdefault(name, set()).add(record.hashes.get("code", "")[:8])
    lines = []
    if mixed := {name: codes for name, codes in versions.items() if len(codes) > 1}:
        each = "; ".join(f"{name} ({few(sorted(codes), 3)})" for name, codes in sorted(mixed.items()))
        lines.append(f"Means over records of several versions of the code: {each}.")
    elif len(codes := set().union(*versions.values())) > 1:
        lines.append(f"The methods were run with {len(codes)} versions of the code.")
    if old := sum(not record.proven for record in records):
        which = "All" if old == len(records) else f"{old:,} of {len(records):,}"
        lines.append(f"{which} records are of schema 1: without a digest or stored predictions as proof.")
    return lines


def _require_same(what: str, records: Sequence[tuple[str, str, str]]) -> None:
    """Raise UserError if a backbone comes with two weights, or a dataset in two versions; ``records`` are
    (its name, which version, hash of the record)."""
    groups: dict[str, dict[str, list[str]]] = {}
    for name, version, record in records:
        groups.setdefault(name, {}).setdefault(version, []).append(record)
    for name, versions in sorted(groups.items()):
        if len(versions) > 1:
            against = " against ".join(few(sorted(hashes), 2) for hashes in versions.values())
            raise UserError(
                f"The records of {name} were made with different {what} and cannot be compared "
                f"({against}); keep them in separate --out folders or delete the old ones."
            )


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracies by method, shots, dataset and seed (index) and label space (columns)."""
    index = ["method", "shots", "dataset", "seed"]
    wide = table.pivot(index=index, columns="classes", values="accuracy")
    return wide[[space for space in SPACES if space in wide]]


def measured(table: pd.DataFrame) -> list[Runs]:
    """What can be averaged and compared: methods that have every dataset (sources of transfers apart) with
    a seed in common, in the order of the table."""
    targets = table[~table["source"]]
    names = sorted(set(targets["dataset"]))
    found = []
    wide = _wide(targets)
    rows: dict[Any, dict[str, dict[int, Any]]] = {}
    for (method, shots, dataset, seed), accuracies in zip(wide.index, wide.to_numpy(), strict=True):
        rows.setdefault((method, shots), {}).setdefault(dataset, {})[seed] = accuracies
    for (method, shots), cells in rows.items():
        if len(cells) < len(names):
            continue
        seeds = tuple(sorted(set.intersection(*(set(cell) for cell in cells.values()))))
        full = np.array([[cells[name][seed] for seed in seeds] for name in names])
        if seeds and not np.isnan(full).any():
            values = {str(space): full[:, :, i] for i, space in enumerate(wide)}
            found.append(Runs(method, shots, seeds, values))
    return found


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Per method, shots and dataset, and for the average over datasets: mean and std (ddof 1) over seeds.

    Columns: dataset, method, shots, parameters, seeds, seconds, memory (peak bytes), pictures (test images),
    then ``<metric>``, ``<metric>_std``, ``<metric>_low`` and ``<metric>_high`` (95 % interval) for each label
    space and, with base and novel, for ``hm``; and ``mean_hm`` (average row only). Missing values are NaN.
    Intervals are t-intervals over seeds; of averages, stratified bootstrap intervals.
    """
    keys = ["method", "shots", "dataset"]
    wide = _wide(table)
    spaces = [str(space) for space in wide]
    metrics = metrics_for(spaces)
    if "hm" in metrics:
        wide["hm"] = harmonic_mean(wide["base"].to_numpy(), wide["novel"].to_numpy())
    groups = wide.groupby(level=keys, sort=False)
    rows = groups.mean()
    if "hm" in metrics:
        rows["hm"] = harmonic_mean(rows["base"].to_numpy(), rows["novel"].to_numpy())
    rows["seeds"] = groups.size()
    # What has no seed has no spread: its interval is a point.
    point = rows.index.get_level_values("shots") == 0
    for metric in metrics:
        rows[f"{metric}_std"] = groups[metric].std(ddof=1)
        half = np.where(point, 0.0, t_half_width(rows[f"{metric}_std"], rows["seeds"]))
        rows[f"{metric}_low"], rows[f"{metric}_high"] = rows[metric] - half, rows[metric] + half
    costs = table.groupby(keys, sort=False).agg(
        parameters=("parameters", "first"), seconds=("seconds", "mean"), memory=("memory", "mean")
    )
    tested = table.drop_duplicates([*keys, "classes"]).groupby(keys, sort=False)["pictures"].sum()
    rows = rows.join(costs).join(tested).reset_index()
    sources = sorted(set(table[table["source"]]["dataset"]))
    # What a transfer benchmark trains on comes first and is no part of the average.
    datasets = [*sources, *sorted(set(table["dataset"]) - set(sources))]
    if len(datasets) - len(sources) > 1:
        rows = pd.concat([rows, _averages(rows[~rows["dataset"].isin(sources)], measured(table))])
    order = {name: i for i, name in enumerate([*datasets, AVERAGE])}
    sizes = rows.groupby("method")["parameters"].max()
    rows = rows.assign(_dataset=rows["dataset"].map(order), _size=rows["method"].map(sizes))
    rows = rows.sort_values(["_dataset", "_size", "method", "shots"])
    numbers = [f"{metric}{end}" for metric in metrics for end in ("", "_std", "_low", "_high")]
    first = ["dataset", "method", "shots", "parameters", "seeds", "seconds", "memory", "pictures"]
    more = ["mean_hm"] if "mean_hm" in rows else []
    summary = rows[[*first, *numbers, *more]].reset_index(drop=True)
    summary.attrs = {**table.attrs, "sources": sources}
    return summary


def _averages(rows: pd.DataFrame, runs: Sequence[Runs]) -> pd.DataFrame:
    """One row per method and shots: averages of the seeds that all datasets have; missing if a dataset or
    every seed is.

    Mean over seeds and datasets, std of the seeds' own averages. Costs are averages over datasets; of
    parameters, which differ where they depend on the classes, the largest.
    """
    complete = {(one.method, one.shots): one for one in runs}
    found = []
    key: Any
    for key, mine in rows.groupby(["method", "shots"], sort=False):
        method, shots = key
        row = {"dataset": AVERAGE, "method": method, "shots": shots, "seeds": 0}
        row["parameters"] = mine["parameters"].max()
        if one := complete.get((method, shots)):
            row |= {"seeds": len(one.seeds), "pictures": mine["pictures"].sum()}
            row |= {cost: mine[cost].mean() for cost in ("seconds", "memory")}
            for metric in one.metrics:
                row[metric] = one.headline[metric]
                each = one.by_seed(metric)
                row[f"{metric}_std"] = each.std(ddof=1) if len(each) > 1 else np.nan
                row[f"{metric}_low"], row[f"{metric}_high"] = one.interval(metric)
            if "hm" in one.metrics:
                row["mean_hm"] = float(one.by_dataset("hm").mean())
        found.append(row)
    return pd.DataFrame(found)
