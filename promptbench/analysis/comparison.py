"""What tables and figures are made of: the records of one benchmark and backbone, and published numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd

from promptbench.analysis import published
from promptbench.analysis.summary import frame, summarise
from promptbench.analysis.vocabulary import AVERAGE, METRICS, headline_metric, shots_text, span
from promptbench.errors import UserError, unknown
from promptbench.trials.benchmarks import BENCHMARKS, DEFAULT
from promptbench.trials.record import BriefRecord, Fault, Record, read_records
from promptbench.trials.trial import PRESETS

Source = Literal["measured", "published", "both"]


def load_frame(out: Path, benchmark: str = DEFAULT, backbone: str | None = None) -> pd.DataFrame:
    """All comparable records under ``out`` as `frame`. Raises UserError as `load_records` and `frame`."""
    return frame(load_records(out, benchmark, backbone))


def load_records(
    out: Path, benchmark: str, backbone: str | None = None, kind: type[Record] = Record
) -> list[Record]:
    """All comparable records of a benchmark under ``out``, without smoke runs (--limit) and other splits
    than test; ``kind`` as in `read_record`.

    Raises UserError if there are none, if one cannot be read, or if they mix backbones.
    """
    records, broken = read_records(out, kind)
    refuse_newer(broken)
    if broken:
        raise UserError(
            f"{len(broken)} record(s) cannot be read, the first is {broken[0].path} ({broken[0].why}); "
            "delete it and run again."
        )
    return comparable(records, out, benchmark, backbone)


def refuse_newer(faults: Sequence[Fault]) -> None:
    """Raise UserError if a newer version of the program made some of the records."""
    if newer := [fault.path for fault in faults if fault.newer]:
        raise UserError(
            f"{len(newer)} record(s) were made by a newer version of promptbench, the first is {newer[0]}; "
            "update promptbench to read them."
        )


def is_whole_test(record: Record) -> bool:
    """False for smoke runs (--limit), other splits than test, and evaluations that are not the benchmark's:
    no table counts them."""
    benchmark = BENCHMARKS.get(record.trial.benchmark)
    fits = benchmark is None or {one.classes for one in record.evaluations} <= set(benchmark.test)
    return record.trial.split == "test" and record.trial.limit is None and fits


def comparable(
    records: Sequence[Record], out: Path, benchmark: str, backbone: str | None = None
) -> list[Record]:
    """Of the ``records`` found under ``out`` those that `load_records` takes. Raises UserError as it does."""
    found = [r for r in records if is_whole_test(r)]
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


@dataclass(frozen=True)
class Material:
    """``records`` (none if only published numbers are asked for), the folder ``out`` they lie in, and what is
    to be shown: ``metric`` (hm, base, novel, all), ``cost`` (a column of the summary, or gflop) and
    ``source``. ``count_gflop`` gives the GFLOP of a record's training step (`checks.training_step`), for that
    cost only. Properties raise UserError as `summary.frame` and `published.rows`."""

    records: Sequence[Record]
    out: Path
    benchmark: str = DEFAULT
    backbone: str = PRESETS["paper"]["backbone"]
    metric: str = "hm"
    cost: str = "parameters"
    source: Source = "measured"
    count_gflop: Callable[[Record], float] | None = None

    @cached_property
    def table(self) -> pd.DataFrame:
        """`summary.frame` of the records."""
        return frame(self.records)

    @cached_property
    def labels(self) -> dict[str, str]:
        """How a record's method is called in tables, by the first 8 digits of its hash."""
        return dict(zip(self.table["hash"], self.table["method"], strict=True)) if self.records else {}

    @cached_property
    def summary(self) -> pd.DataFrame:
        """`summary.summarise` of them; without records a table without rows."""
        if self.records:
            return summarise(self.table)
        empty = pd.DataFrame(columns=["dataset", "method", "shots", "parameters", "seeds"])
        empty.attrs = {"benchmark": self.benchmark, "backbone": self.backbone, "sources": []}
        return empty

    @cached_property
    def published(self) -> pd.DataFrame:
        """`published.rows`, if asked for; beside records only what they can be compared with."""
        if self.source == "measured":
            return self.summary.iloc[:0].assign(source=None)
        rows = published.rows(self.benchmark, self.backbone)
        return published.beside(rows, self.summary, self.benchmark) if self.records else rows

    @cached_property
    def shown(self) -> pd.DataFrame:
        """Measured and published rows in one table, by dataset."""
        parts = [rows for rows in (self.summary, self.published) if len(rows)]
        if not len(self.published):
            return self.summary
        both = pd.concat([rows.dropna(axis="columns", how="all") for rows in parts])
        order = {name: i for i, name in enumerate(dict.fromkeys(both["dataset"])) if name != AVERAGE}
        both["_order"] = both["dataset"].map(order).fillna(len(order))
        both = both.sort_values(["_order", "parameters", "shots"], kind="stable", ignore_index=True)
        both = both.drop(columns="_order")
        for metric in METRICS:
            for end in ("_std", "_low", "_high"):
                if metric in both and metric + end not in both:
                    both[metric + end] = float("nan")
        both.attrs = dict(self.summary.attrs)
        return both

    @property
    def shown_metric(self) -> str:
        """The metric asked for or, if the benchmark has not got it, its own."""
        have = {*self.summary, *self.published}
        return headline_metric(have, self.metric)

    @cached_property
    def where(self) -> str:
        """The average over datasets if there are several, else the dataset; what a transfer benchmark trains
        on is not counted."""
        names = [name for name in self.shown["dataset"].unique() if name not in self.summary.attrs["sources"]]
        return AVERAGE if AVERAGE in names or not names else names[0]

    @cached_property
    def overall(self) -> pd.DataFrame:
        """The rows of the summary that say how good a method is overall, those of `where`."""
        return self.summary[self.summary["dataset"] == self.where]

    @cached_property
    def datasets(self) -> list[str]:
        """The datasets in the order of the tables, without the average."""
        return [name for name in self.shown["dataset"].unique() if name != AVERAGE]

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Of ``rows`` (the summary, the published or all) those of `where` that have a value, at the most
        shots and without shots."""
        if self.shown_metric not in rows:
            return rows.iloc[:0].assign(**{self.shown_metric: None})
        rows = rows[(rows["dataset"] == self.where) & rows["shots"].isin([0, self.shown["shots"].max()])]
        return rows.dropna(subset=[self.shown_metric]).reset_index(drop=True)

    @property
    def caption(self) -> str:
        """Where, shots, seeds and backbone: the title of a figure."""
        rows = self.headline(self.summary)
        if rows.empty:
            return f"{self.benchmark}, {self.backbone}, published numbers"
        targets = len(set(self.datasets) - set(self.summary.attrs["sources"]))
        parts = [f"average of {targets} datasets" if self.where == AVERAGE else self.where]
        seeds = sorted({int(n) for n in rows[rows["shots"] > 0]["seeds"]})
        if seeds:
            parts += [shots_text([int(rows["shots"].max())]), span(seeds, "seed")]
        return ", ".join([*parts, str(self.summary.attrs["backbone"])])


def load_material(
    out: Path,
    benchmark: str = DEFAULT,
    backbone: str | None = None,
    metric: str = "hm",
    cost: str = "parameters",
    source: Source = "measured",
    count_gflop: Callable[[Record], float] | None = None,
) -> Material:
    """The material of the records under ``out``; of published numbers alone no record is read.

    Raises UserError as `comparison.load_records`.
    """
    if source == "published":
        usual = PRESETS["paper"]["backbone"]
        return Material([], out, benchmark, backbone or usual, metric, cost, source, count_gflop)
    records = load_records(out, benchmark, backbone, BriefRecord)
    return Material(records, out, benchmark, records[0].trial.backbone, metric, cost, source, count_gflop)
