"""Records beside published numbers (`promptbench.analysis.published`): within the band, or off by how much.

The bands in which an honest reproduction falls are decisions of this project, from what public
reproductions deviate; see docs/design.md.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from promptbench.analysis.published import WEIGHTS, datasets, lookup
from promptbench.analysis.summary import frame, summarise
from promptbench.analysis.vocabulary import AVERAGE, METRICS, plural
from promptbench.data import cards
from promptbench.training.counts import Counts
from promptbench.trials.record import Record

_ZERO_SHOT = 0.3
_BANDS = {"base": 1.0, "novel": 1.0, "hm": 1.0, "all": 1.0}
_AVERAGE_BANDS = {"base": 0.5, "novel": 0.7, "hm": 0.6, "all": 0.7}
_WIDER = {("eurosat", "novel"): 5.0, ("dtd", "novel"): 4.0, ("ucf101", "novel"): 2.5, ("eurosat", "all"): 5.0}


def band(trains: bool, dataset: str, metric: str) -> float:
    """How far from the published value, in points, is still as published."""
    if not trains:
        return _ZERO_SHOT
    return _AVERAGE_BANDS[metric] if dataset == AVERAGE else _WIDER.get((dataset, metric), _BANDS[metric])


def verify(records: Sequence[Record], benchmark: str, backbone: str) -> pd.DataFrame:
    """One row per result of ``records`` (of one benchmark and backbone) that was published too.

    Columns: method, dataset, shots, metric, ours, published, difference, band, verdict, source.
    ``attrs["notes"]`` says in lines what is not compared, and why: non-standard splits, weights other than
    OpenAI's, datasets other than the published ones, averages that lack a dataset. A dataset of the user's
    own that has the name of a published one is known by its number of test images and by nothing else,
    since a record does not name its card.
    Raises UserError as `summary.frame`.
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
    notes = [f"{text} ({n} {plural('result', n)})" for text, n in sorted(left.items())]
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
    return "" if total in (None, counts.total) else f"{counts.total} test images instead of {total}"


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
    """The rows of `verify` for one summary (see `summary.summarise`)."""
    from promptbench.methods._registry import get_method

    found = []
    for row in summary.to_dict("records"):
        method = str(row["method"]).partition(" (")[0]
        if method != row["method"]:
            continue  # settings of the user's own were never published
        if row["dataset"] == AVERAGE and not _complete(summary, row, averaged):
            continue
        for metric in METRICS:
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
