"""Published numbers (``results/published.csv``: every row names its source) and how ours compare with them.

The bands in which an honest reproduction falls are decisions of this project, from what public
reproductions deviate; see docs/design.md.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from promptbench.analysis.compare import AVERAGE, frame, summarise
from promptbench.data import cards
from promptbench.errors import UserError
from promptbench.trials.record import Counts, Record

if TYPE_CHECKING:  # methods need torch, tables of measured numbers do not
    from promptbench.methods._base import Method

BACKBONES = {
    "ViT-B-16-quickgelu": "ViT-B/16",
    "ViT-B-32-quickgelu": "ViT-B/32",
    "ViT-L-14-quickgelu": "ViT-L/14",
}
WEIGHTS = "openai"
_SUITE = "standard"
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


@cache
def _comparable(benchmark: str, backbone: str) -> pd.DataFrame:
    """The rows of a benchmark and backbone that are the papers' own setting, with their number of shots."""
    rows = table()
    rows = rows[
        (rows["benchmark"] == benchmark)
        & (rows["backbone"] == BACKBONES.get(backbone))
        & ~rows["setting"].str.contains(_NOT_THE_PAPERS)
    ]
    transfer = benchmark in ("crossdataset", "domain")
    shots = rows["setting"].str.extract(r"^ImageNet (16)-shot source" if transfer else r"^(\d+)-shot\b")[0]
    zero = rows["setting"].str.startswith("zero-shot")
    return rows.assign(shots=shots.mask(zero, "0").astype(float)).dropna(subset=["shots"])


def lookup(
    method: str, benchmark: str, dataset: str, metric: str, shots: int, backbone: str
) -> dict[str, Any] | None:
    """The row to compare with; None if nothing was published. ``metric``: base, novel, hm or all."""
    from promptbench.methods._registry import get_method

    kind = get_method(method)
    rows = _comparable(benchmark, backbone)
    rows = rows[
        (rows["method"] == kind.published_name)
        & (rows["dataset"] == (_AVERAGES[benchmark] if dataset == AVERAGE else dataset))
        & (rows["metric"] == ("accuracy" if metric == "all" else metric))
        & (rows["shots"] == (shots if kind.uses_shots else 0))
    ]
    return {str(key): value for key, value in rows.iloc[0].items()} if len(rows) else None


def rows(benchmark: str, backbone: str) -> pd.DataFrame:
    """Published numbers in the columns of `compare.summarise`, and where they stand (source).

    Of the methods here, under their names here, with the parameters of their formula (NaN where these grow
    with the classes); and of others whose number of parameters was published. Seeds are 0, nothing was
    measured. Raises UserError if nothing was published for the backbone.
    """
    if backbone not in BACKBONES:
        raise UserError(
            f"Nothing was published for the backbone {backbone!r}; published numbers are of "
            f"{', '.join(BACKBONES)}: choose one with --backbone."
        )
    from promptbench.methods._registry import methods

    known = _comparable(benchmark, backbone)
    ours = {kind.published_name: kind for kind in methods().values() if kind.published_name}
    seedless = {name for name, kind in ours.items() if not kind.uses_shots}
    known = known[(known["shots"] == 0) == known["method"].isin(seedless)]
    sizes = table().dropna(subset=["trainable_params"]).groupby("method")["trainable_params"].first()
    known = known[known["method"].isin([*ours, *sizes.index])]
    found: list[dict[str, Any]] = []
    key: Any
    for key, group in known.groupby(["method", "shots", "dataset"], sort=False):
        name, shots, dataset = key
        first = group.drop_duplicates("metric").set_index("metric")
        row = {
            "dataset": AVERAGE if dataset == _AVERAGES[benchmark] else dataset,
            "method": ours[name].name if name in ours else name,
            "shots": int(shots),
            "parameters": _parameters(ours[name], benchmark, int(shots), backbone)
            if name in ours
            else sizes[name],
            "seeds": 0,
            "source": first["source"].iloc[0],
        }
        for metric, value in first["value"].items():
            key = "all" if metric == "accuracy" else str(metric)
            row |= {key: float(value)} | {f"{key}_{end}": float("nan") for end in ("std", "low", "high")}
        found.append(row)
    return pd.DataFrame(found)


def beside(rows: pd.DataFrame, summary: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """Of published ``rows`` those that stand beside measured ones: of the same datasets and shots, and the
    average only if the measured one is over the very datasets of the published."""
    datasets_here = set(summary["dataset"])
    if (
        not set(datasets(benchmark)[1]) <= datasets_here
        or len(datasets_here) > len(datasets(benchmark)[1]) + 2
    ):
        datasets_here -= {AVERAGE}
    return rows[rows["dataset"].isin(datasets_here) & rows["shots"].isin({0, *summary["shots"]})]


def _parameters(kind: "type[Method]", benchmark: str, shots: int, backbone: str) -> float:
    """By the method's formula, in the paper's setting; NaN where it depends on the number of classes."""
    from promptbench.clip.weights import backbone_shape
    from promptbench.methods._registry import resolve_settings

    settings = resolve_settings(kind, benchmark, shots, "")
    one, two = (kind.parameter_count(settings, backbone_shape(backbone), n) for n in (1, 2))
    return one if one == two else float("nan")


def band(trains: bool, dataset: str, metric: str) -> float:
    """How far from the published value, in points, is still as published."""
    if not trains:
        return _ZERO_SHOT
    return _AVERAGE_BANDS[metric] if dataset == AVERAGE else _WIDER.get((dataset, metric), _BANDS[metric])


def datasets(benchmark: str) -> tuple[str | None, tuple[str, ...]]:
    """What the published numbers of a benchmark are of: the dataset trained on, in transfer benchmarks, and
    the datasets that are averaged over."""
    if benchmark in ("crossdataset", "domain"):
        return cards.transfer(_SUITE, benchmark)
    return None, tuple(cards.suite(_SUITE))


def verify(records: Sequence[Record], benchmark: str, backbone: str) -> pd.DataFrame:
    """One row per result of ``records`` (of one benchmark and backbone) that was published too.

    Columns: method, dataset, shots, metric, ours, published, difference, band, verdict, source.
    ``attrs["notes"]`` says in lines what is not compared, and why: non-standard splits, weights other than
    OpenAI's, datasets other than the published ones, averages that lack a dataset. A dataset of the user's
    own that has the name of a published one is known by its number of test pictures and by nothing else,
    since a record does not name its card.
    Raises UserError as `compare.frame`.
    """
    source, averaged = datasets(benchmark)
    left: Counter[str] = Counter()
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        kept = []
        for counts in record.evaluations:
            if reason := _not_comparable(record, counts, source, averaged):
                left[f"{counts.dataset}: not comparable: {reason}"] += 1
            else:
                kept.append(counts)
        if kept:
            # Weights from a tag and from a file are compared apart; so are transfers to other targets.
            key = (record.trial.weights, record.trial.data if source else "")
            groups.setdefault(key, []).append(record.model_copy(update={"evaluations": kept}))
    notes = [f"{text} ({n} result{'s' if n > 1 else ''})" for text, n in sorted(left.items())]
    if any(weights != WEIGHTS for weights, _ in groups):
        notes.append("weights from a file: assumed OpenAI's")
    rows: list[dict[str, Any]] = []
    lacking: dict[str, None] = {}
    for group in groups.values():
        summary = summarise(frame(group))
        rows += _cells(summary, benchmark, backbone, averaged)
        lacking |= dict.fromkeys(_without_average(summary, averaged))
    if lacking:
        what = f"all of {', '.join(averaged)}"
        notes.append(f"average left out for {', '.join(lacking)}: it needs {what} with a seed in common")
    found = pd.DataFrame(rows).drop_duplicates(ignore_index=True)
    found.attrs["notes"] = notes
    return found


def _not_comparable(record: Record, counts: Counts, source: str | None, averaged: Sequence[str]) -> str:
    """Why an evaluation has no published number to stand beside; empty if it may have one."""
    trial = record.trial
    weights = trial.weights.partition("=")[0]
    if {trial.dataset, counts.dataset} & {label.partition(": ")[0] for label in record.labels}:
        return "non-standard split"
    if len(weights) != 64 and weights != WEIGHTS:  # 64: the hash of a file
        return f"weights {weights!r} instead of {WEIGHTS!r}"
    if trial.dataset != (source or counts.dataset) or counts.dataset not in {source, *averaged}:
        return f"not what was published for {trial.benchmark}"
    card = cards.cards()[counts.dataset][0]
    total = card.sizes["test"] if card.sizes else None
    if counts.classes != "all":
        total = (card.halves or {}).get(counts.classes)
    return "" if total in (None, counts.total) else f"{counts.total} test pictures instead of {total}"


def _complete(summary: pd.DataFrame, row: Any, averaged: Sequence[str]) -> bool:
    """Whether an average row is over all of ``averaged``."""
    mine = summary[(summary["method"] == row["method"]) & (summary["shots"] == row["shots"])]
    return row["seeds"] > 0 and set(averaged) <= set(mine["dataset"])


def _without_average(summary: pd.DataFrame, averaged: Sequence[str]) -> list[str]:
    """Methods whose average is not the published one."""
    rows = summary[summary["dataset"] == AVERAGE].to_dict("records")
    with_it = {(r["method"], r["shots"]) for r in rows if _complete(summary, r, averaged)}
    return [
        f"{method} ({shots} shots)" if shots else method
        for method, shots in dict.fromkeys(zip(summary["method"], summary["shots"], strict=True))
        if (method, shots) not in with_it
    ]


def _cells(
    summary: pd.DataFrame, benchmark: str, backbone: str, averaged: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of `verify` for one summary (see `compare.summarise`)."""
    from promptbench.methods._registry import get_method

    found = []
    for row in summary.to_dict("records"):
        method = str(row["method"]).partition(" (")[0]
        if method != row["method"]:
            continue  # settings of the user's own were never published
        if row["dataset"] == AVERAGE and not _complete(summary, row, averaged):
            continue
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
    return found
