"""Tables from records: mean and standard deviation over seeds, averages over datasets, harmonic means.

HM is the harmonic mean of the averaged base and the averaged novel accuracy, the papers' rule; the mean
of the datasets' HMs is given beside it, labelled. A method that lacks a dataset has no average.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from promptbench.errors import UserError, unknown
from promptbench.records import Record, read_records
from promptbench.trials import get_benchmark

AVERAGE = "average"
Format = Literal["table", "md", "csv", "latex", "json"]


def harmonic_mean(base: float, novel: float) -> float:
    """2 base novel / (base + novel), 0 if both are."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def load_frame(out: Path, benchmark: str = "base2novel", backbone: str | None = None) -> pd.DataFrame:
    """All comparable records under ``out`` as `frame`. Raises UserError as `load_records` and `frame`."""
    return frame(load_records(out, benchmark, backbone))


def load_records(out: Path, benchmark: str, backbone: str | None = None) -> list[Record]:
    """All comparable records of a benchmark under ``out``, without smoke runs (--limit) and other splits
    than test. Raises UserError if there are none, if one cannot be read, or if they mix backbones."""
    records, broken = read_records(out)
    if broken:
        raise UserError(
            f"{len(broken)} record(s) cannot be read, the first is {broken[0]}; delete it and run again."
        )
    found = [r for r in records if r.trial.split == "test" and r.trial.limit is None]
    aside = sum(r.trial.benchmark == benchmark for r in records)
    have = sorted({r.trial.benchmark for r in found})
    found = [r for r in found if r.trial.benchmark == benchmark]
    if not found:
        also = f" (there are records of {', '.join(have)})" if have else ""
        if aside:
            are = "record is a smoke run" if aside == 1 else "records are smoke runs"
            also += f": {aside} {are} (--limit) or of another split"
        raise UserError(
            f"No records of {benchmark} under {out}{also}; make some with "
            f"`promptbench run mmlop --benchmark {benchmark} --out {out}`."
        )
    backbones = sorted({r.trial.backbone for r in found})
    if backbone is None and len(backbones) > 1:
        raise UserError(f"{out} mixes backbones ({', '.join(backbones)}); choose one with --backbone.")
    if backbone is not None and backbone not in backbones:
        raise unknown("backbone among the records", backbone, backbones)
    return [r for r in found if backbone in (None, r.trial.backbone)]


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per record and evaluation: method, dataset, classes, shots, seed, accuracy (percent), costs.

    Raises UserError if two records answer the same question with different settings, or if records were
    made with different weights or different versions of a dataset.
    """
    _require_same("weights", [(r.trial.backbone, r.trial.weights, r.hash[:8]) for r in records])
    _require_same("data", [(r.trial.dataset, r.trial.data, r.hash[:8]) for r in records])
    mixed = len({r.trial.precision for r in records}) > 1
    rows = []
    for record in records:
        trial = record.trial
        for counts in record.evaluations:
            changed = " ".join(filter(None, (trial.variant, trial.precision if mixed else "")))
            rows.append(
                {
                    "method": f"{trial.method} ({changed})" if changed else trial.method,
                    "dataset": counts.dataset,
                    "source": counts.dataset == trial.dataset and get_benchmark(trial.benchmark).transfer,
                    "classes": counts.classes,
                    "shots": trial.shots,
                    "seed": trial.seed,
                    "accuracy": counts.accuracy,
                    "parameters": record.trainable_parameters,
                    "seconds": record.seconds.train,
                    "peak_bytes": record.peak_memory_bytes,
                    "hash": record.hash[:8],
                }
            )
    table = pd.DataFrame(rows)
    table.attrs["labels"] = sorted({label for record in records for label in record.labels})
    table.attrs["notes"] = sorted({note for record in records for note in record.notes})
    cell = ["method", "dataset", "classes", "shots", "seed"]
    double = table[table.duplicated(cell, keep=False)]
    if len(double):
        first = double.iloc[0]
        hashes = ", ".join(sorted(double[(double[cell] == first[cell]).all(axis=1)]["hash"]))
        raise UserError(
            f"Records {hashes} answer the same question ({first['method']} on {first['dataset']}) with "
            "different settings; delete one of the folders or keep them in apart --out folders."
        )
    return table


def _require_same(what: str, records: Sequence[tuple[str, str, str]]) -> None:
    """Raise UserError if a backbone comes with two weights, or a dataset in two versions; ``records`` are
    (its name, which version, hash of the record)."""
    groups: dict[str, dict[str, list[str]]] = {}
    for name, version, record in records:
        groups.setdefault(name, {}).setdefault(version, []).append(record)
    for name, versions in sorted(groups.items()):
        if len(versions) > 1:
            raise UserError(
                f"The records of {name} were made with different {what} and cannot be compared "
                f"({' against '.join(map(_few, versions.values()))}); keep them in apart --out folders or "
                "delete the old ones."
            )


def _few(hashes: Sequence[str]) -> str:
    more = f" and {len(hashes) - 3} more" if len(hashes) > 3 else ""
    return ", ".join(sorted(hashes)[:3]) + more


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Per method, shots and dataset, and for the average over datasets: mean and std (ddof 1) over seeds.

    Columns: dataset, method, shots, parameters, seeds, seconds, then ``<classes>`` and
    ``<classes>_std`` for each label space, and with base and novel ``hm``, ``hm_std`` and ``mean_hm``
    (average row only). Missing values are NaN.
    """
    spaces = [c for c in ("base", "novel", "all") if c in set(table["classes"])]
    sources = set(table[table["source"]]["dataset"])
    # What a transfer benchmark trains on comes first and is no part of the average.
    datasets = [*sorted(sources), *sorted(set(table["dataset"]) - sources)]
    averaged = len(datasets) - len(sources)
    wide = table.pivot_table(
        index=["method", "shots", "dataset", "seed"], columns="classes", values="accuracy", aggfunc="first"
    )
    rows = []
    for (method, shots), group in wide.groupby(level=["method", "shots"], sort=False):
        mine = table[(table["method"] == method) & (table["shots"] == shots)]
        common: dict[str, Any] = {"method": method, "shots": shots}
        per_dataset = []
        for dataset, cell in group.groupby(level="dataset", sort=True):
            seconds = mine[mine["dataset"] == dataset]["seconds"].mean()
            parameters = int(mine[mine["dataset"] == dataset]["parameters"].iloc[0])
            cell = cell.droplevel(["method", "shots", "dataset"])
            row = _row(cell, spaces)
            if dataset not in sources:
                per_dataset.append((row, cell))
            rows.append({"dataset": dataset, **common, "parameters": parameters, "seconds": seconds, **row})
        if averaged > 1:
            rows.append({"dataset": AVERAGE, **common, **_average(per_dataset, spaces, averaged, mine)})
    summary = pd.DataFrame(rows)
    order = {name: i for i, name in enumerate([*datasets, AVERAGE])}
    sizes = summary.groupby("method")["parameters"].max()
    keys = summary.assign(
        _dataset=summary["dataset"].map(order), _size=summary["method"].map(sizes)
    ).sort_values(["_dataset", "_size", "method", "shots"])
    summary = keys.drop(columns=["_dataset", "_size"]).reset_index(drop=True)
    summary.attrs = {key: table.attrs.get(key, []) for key in ("labels", "notes")}
    summary.attrs["sources"] = sorted(sources)
    return summary


def _row(cell: pd.DataFrame, spaces: Sequence[str]) -> dict[str, Any]:
    """Mean and std over seeds of ``cell`` [seeds x label spaces]."""
    row: dict[str, Any] = {"seeds": len(cell)}
    for space in spaces:
        row[space], row[f"{space}_std"] = cell[space].mean(), cell[space].std(ddof=1)
    if "base" in spaces and "novel" in spaces:
        row["hm"] = harmonic_mean(row["base"], row["novel"])
        each = [harmonic_mean(b, n) for b, n in zip(cell["base"], cell["novel"], strict=True)]
        row["hm_std"] = pd.Series(each, dtype=float).std(ddof=1)
    return row


def _average(
    per_dataset: Sequence[tuple[dict[str, Any], pd.DataFrame]],
    spaces: Sequence[str],
    n_datasets: int,
    mine: pd.DataFrame,
) -> dict[str, Any]:
    """The average over datasets of the seeds that all of them have; missing if a dataset or every seed is.

    Mean over seeds and datasets, std of the seeds' own averages.
    """
    sizes = mine["parameters"].unique()
    row: dict[str, Any] = {"parameters": int(sizes.max()), "seeds": 0}
    if len(per_dataset) < n_datasets:
        return row
    seeds = sorted(set.intersection(*(set(cell.index) for _, cell in per_dataset)))
    if not seeds:
        return row
    cells = [cell.loc[seeds] for _, cell in per_dataset]
    row |= _row(sum(cells) / n_datasets, spaces)  # type: ignore[arg-type]
    if "hm" in row:
        row["mean_hm"] = sum(_row(cell, spaces)["hm"] for cell in cells) / n_datasets
    row["seconds"] = mine.groupby("dataset")["seconds"].mean().mean()
    return row


def _text(summary: pd.DataFrame, plus_minus: str) -> pd.DataFrame:
    """The summary as people read it: one column per number, "mean +- std"."""
    shown = pd.DataFrame({"dataset": summary["dataset"], "method": summary["method"]})
    if summary.loc[summary["shots"] > 0, "shots"].nunique() > 1:
        shown["shots"] = [str(n) if n else "-" for n in summary["shots"]]
    for key, title in (("base", "base"), ("novel", "novel"), ("hm", "HM"), ("all", "accuracy")):
        if key in summary:
            shown[title] = [
                _number(mean, std, plus_minus)
                for mean, std in zip(summary[key], summary[f"{key}_std"], strict=True)
            ]
    shown["parameters"] = [f"{int(n):,}" for n in summary["parameters"]]
    shown["seeds"] = [str(int(n)) if n else "-" for n in summary["seeds"]]
    return shown


def _number(mean: float, std: float, plus_minus: str) -> str:
    if pd.isna(mean):
        return "-"
    return f"{mean:.2f}" if pd.isna(std) else f"{mean:.2f} {plus_minus} {std:.2f}"


def notes(summary: pd.DataFrame) -> list[str]:
    """What a reader must know to read the table right."""
    lines = ["Accuracy in percent: mean ± standard deviation (ddof 1) over seeds."]
    if "hm" in summary:
        lines.append("HM: harmonic mean of the mean base and the mean novel accuracy.")
    if "mean_hm" in summary and summary["mean_hm"].notna().any():
        means = summary[summary["dataset"] == AVERAGE].dropna(subset=["mean_hm"])
        each = ", ".join(f"{m} {v:.2f}" for m, v in zip(means["method"], means["mean_hm"], strict=True))
        lines.append(f"Mean of the datasets' HMs, for comparison: {each}.")
    if sources := summary.attrs.get("sources"):
        lines.append(f"Trained on {', '.join(sources)}, which is no part of the average.")
    if labels := summary.attrs.get("labels"):
        names = ", ".join(label.partition(": ")[0] for label in labels)
        lines.append(f"Non-standard splits, not comparable with published numbers: {names}.")
    if more := summary.attrs.get("notes"):
        lines.append(f"{'; '.join(more)}.")
    lacking = summary[(summary["dataset"] == AVERAGE) & (summary["seeds"] == 0)]["method"].unique()
    if len(lacking):
        lines.append(f"No average for {', '.join(lacking)}: a dataset, or a seed common to all, is missing.")
    full = summary[(summary["dataset"] == AVERAGE) & (summary["seeds"] > 0)]
    most = summary[summary["dataset"] != AVERAGE].groupby(["method", "shots"])["seeds"].max()
    fewer = [
        m for m, k, n in zip(full["method"], full["shots"], full["seeds"], strict=True) if n < most[m, k]
    ]
    if fewer:
        lines.append(f"Average of {', '.join(fewer)}: only over the seeds that all its datasets have.")
    return lines


def render(summary: pd.DataFrame, style: Format, title: str = "") -> str:
    """The table in one format. "table" is drawn with rich, the others are plain text for files."""
    if style == "csv":
        return summary.to_csv(index=False)
    if style == "json":
        return summary.to_json(orient="records", indent=1) + "\n"
    if style == "latex":
        shown = _text(summary, "±")
        styled = shown.style.hide(axis="index").format(escape="latex")
        text = styled.to_latex(
            hrules=True, column_format="ll" + "r" * (shown.shape[1] - 2), caption=title or None
        )
        return text.replace("±", r"$\pm$")
    if style == "md":
        right = ["right"] * (len(_text(summary, "±").columns) - 2)
        table = _text(summary, "±").to_markdown(
            index=False, colalign=("left", "left", *right), disable_numparse=True
        )
        return table + "\n\n" + " ".join(notes(summary)) + "\n"
    return _terminal(summary, title)


def _terminal(summary: pd.DataFrame, title: str) -> str:
    import rich.box
    from rich.console import Console
    from rich.table import Table

    shown = _text(summary, "±")
    table = Table(title=title or None, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for column in shown.columns:
        left = column in ("dataset", "method")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    datasets = list(shown["dataset"])
    for i, row in enumerate(shown.itertuples(index=False)):
        first = i == 0 or datasets[i - 1] != datasets[i]
        end = i + 1 == len(datasets) or datasets[i + 1] != datasets[i]
        table.add_row(row[0] if first else "", *row[1:], end_section=end)
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(table)
    for line in notes(summary):
        console.print(line)
    return console.file.getvalue()  # type: ignore[attr-defined]
