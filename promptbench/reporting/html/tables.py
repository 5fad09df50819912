"""The tables of a report, as values for its template."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from promptbench.analysis.vocabulary import AVERAGE, METRICS, few, metrics_of, plural
from promptbench.reporting.tables import spread
from promptbench.trials.record import Record

MAX_VALUES = 4  # of one setting


class Cell(NamedTuple):
    """What a cell says, the spread beside it, its shade (0 to 9, by the table's scale), and thumbnails as
    (number, description)."""

    text: str
    spread: str | None = None  # "" keeps its place free, so that numbers stand below each other
    shade: int | None = None
    images: Sequence[tuple[int, str]] = ()
    strong: bool = False
    wide: bool = False  # the place of the spread is that of an interval


@dataclass
class Table:
    """A table. The first ``words`` columns are text, the others numbers. ``bodies`` are (heading or "",
    rows): rows are sorted within them. The first cell of a row is its heading. ``scale`` names the colours
    of the shades."""

    label: str
    columns: Sequence[str]
    bodies: Sequence[tuple[str, Sequence[Sequence[Cell]]]]
    words: int = 1
    scale: str = ""
    remark: str = ""


@dataclass
class Fold:
    """Something to unfold: its title, what the title hints at, and tables."""

    title: str
    hint: str = ""
    tables: list[Table] = field(default_factory=list)
    remark: str = ""


def averages(rows: pd.DataFrame, strong: set[tuple[str, int, str]]) -> Table:
    """A row per method and number of shots: ``rows`` (`Material.overall`) with accuracies and costs.

    ``strong``: (method, shots, metric) of the numbers to stress.
    """
    several = _several_shots(rows)
    keys = metrics_of(rows)
    made = [
        [
            Cell(row["method"]),
            *([_shots(row["shots"])] if several else []),
            *(
                _number(row, key, _has_spread(rows, key))._replace(
                    strong=(row["method"], row["shots"], key) in strong
                )
                for key in keys
            ),
            Cell(f"{int(row['parameters']):,}"),
            Cell(str(int(row["seeds"])) if row["seeds"] else "-"),
            Cell("-" if pd.isna(row["seconds"]) else f"{row['seconds']:,.1f}"),
            Cell("-" if pd.isna(row["memory"]) else f"{row['memory'] / 2**20:,.0f}"),
        ]
        for row in rows.to_dict("records")
    ]
    columns = ["method", *(["shots"] if several else []), *(METRICS[key].short for key in keys)]
    columns += ["parameters", "seeds", "training s", "memory MiB"]
    return Table("Averages", columns, [("", made)])


def by_dataset(summary: pd.DataFrame) -> list[Fold]:
    """For each metric a table of methods by datasets; none where there is one dataset."""
    datasets = list(dict.fromkeys(summary["dataset"]))
    if len(datasets) < 2:
        return []
    several = _several_shots(summary)
    cells = {(row["method"], row["shots"], row["dataset"]): row for row in summary.to_dict("records")}
    rows = list(dict.fromkeys(zip(summary["method"], summary["shots"], strict=True)))
    sources = summary.attrs["sources"]
    names = [f"{name} (source)" if name in sources else name for name in datasets]
    folds = []
    for key in metrics_of(summary):
        with_spread = _has_spread(summary, key)
        made = [
            [
                Cell(method),
                *([_shots(shots)] if several else []),
                *(_number(cells.get((method, shots, name), {}), key, with_spread) for name in datasets),
            ]
            for method, shots in rows
        ]
        columns = ["method", *(["shots"] if several else []), *names]
        title = f"{METRICS[key].heading} by dataset"
        folds.append(Fold(title, tables=[Table(title, columns, [("", made)])]))
    return folds


def _several_shots(summary: pd.DataFrame) -> bool:
    return summary.loc[summary["shots"] > 0, "shots"].nunique() > 1


def _shots(shots: int) -> Cell:
    return Cell(str(shots) if shots else "-")


def _number(row: Mapping[Any, Any], key: str, with_spread: bool) -> Cell:
    """The mean and, if any cell of the table has one, its spread."""
    known = key in row and not pd.isna(row[key])
    beside = (spread(row, key) if known else "") if with_spread else None
    return Cell(f"{row[key]:.2f}" if known else "-", beside, wide=row.get("dataset") == AVERAGE)


def _has_spread(rows: pd.DataFrame, key: str) -> bool:
    return bool(rows[f"{key}_std"].notna().any())


# ---------------------------------------------------------------------- settings and environment


def settings(records: Iterable[tuple[str, Record]]) -> Fold:
    """How the runs of each method, by name, were made: what is equal for all in words, the rest a table."""
    values: dict[str, dict[str, set[str]]] = {}
    seen: set[tuple[str, str]] = set()
    for method, record in records:
        made = {**record.trial.settings, "precision": record.trial.precision}
        if (method, text := str(made)) in seen:
            continue
        seen.add((method, text))
        mine = values.setdefault(method, {})
        for key, value in made.items():
            mine.setdefault(key, set()).add(str(value))
    keys = list(dict.fromkeys(key for mine in values.values() for key in mine))
    texts = {key: [_values(mine.get(key)) for mine in values.values()] for key in keys}
    same = {key: row[0] for key, row in texts.items() if len(set(row)) == 1 and len(row) > 1}
    rows = [[Cell(key), *map(Cell, row)] for key, row in texts.items() if key not in same]
    table = Table("Settings", ["setting", *values], [("", rows)], words=1 + len(values))
    remark = f"Equal for all: {', '.join(f'{k} {v}' for k, v in same.items())}." if same else ""
    return Fold("Settings of the runs", tables=[table] if rows else [], remark=remark)


def _values(found: set[str] | None) -> str:
    return few(sorted(found, key=_natural), MAX_VALUES) if found else "-"


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return 0.0, text


def environments(records: Sequence[Record]) -> Table:
    """One column per machine and software that records were made with."""
    found: dict[int, tuple[dict[str, str], int]] = {}
    for record in records:  # equal ones are one object
        flat, count = found.get(id(record.environment), (None, 0))
        found[id(record.environment)] = flat or _flat(record.environment), count + 1
    keys = list(dict.fromkeys(key for flat, _ in found.values() for key in flat))
    rows = [[Cell(key), *(Cell(flat.get(key, "-")) for flat, _ in found.values())] for key in keys]
    columns = ["what", *(f"{count:,} {plural('record', count)}" for _, count in found.values())]
    return Table("Environment", columns, [("", rows)], words=len(columns))


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in environment.items():
        if isinstance(value, dict):
            flat |= {str(name): str(version) for name, version in value.items()}
        elif value != "":
            flat[key] = str(value)
    return flat


def hashes(records: Sequence[Record]) -> Table:
    """Which weights, data and code the records depend on."""

    def rows(pairs: Iterable[tuple[Hashable, str]], what: str) -> list[list[Cell]]:
        counts = Counter(pairs)
        return [
            [Cell(what), Cell(str(name)), Cell(value[:16]), Cell(f"{n:,}")]
            for (name, value), n in counts.items()
        ]

    listed = [
        *rows(((r.trial.backbone, r.hashes.get("weights", r.trial.weights)) for r in records), "weights"),
        *rows(
            ((str(r.environment.get("promptbench", "")), r.hashes.get("code", "-")) for r in records), "code"
        ),
        *rows(
            (("+".join(sorted({e.dataset for e in r.evaluations})), r.trial.data) for r in records), "data"
        ),
    ]
    return Table("Hashes", ["what", "of", "SHA-256, its start", "records"], [("", listed)], words=3)
