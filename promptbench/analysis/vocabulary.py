"""The words that tables, figures and sentences share: metrics, label spaces, lists, counts, p-values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

AVERAGE = "average"  # stands in the place of a dataset
ZEROSHOT = "zeroshot"  # the method that others are compared with

NO_AVERAGE = "a dataset, or a seed common to all, is missing"  # why a method has none


@dataclass(frozen=True)
class Metric:
    """How a metric is called: as the head of a column, as a heading, at an axis, and within a sentence."""

    short: str
    heading: str
    axis: str
    phrase: str


#: by name, in the order of columns
METRICS = {
    "base": Metric("base", "Base classes", "Base accuracy (%)", "base accuracy"),
    "novel": Metric("novel", "Novel classes", "Novel accuracy (%)", "novel accuracy"),
    "hm": Metric("HM", "HM", "Harmonic mean of base and novel accuracy (%)", "HM"),
    "all": Metric("accuracy", "Accuracy", "Accuracy, all classes (%)", "accuracy"),
}
#: the same, with the one that sums up a benchmark first
BY_WEIGHT = ("hm", "base", "novel", "all")
#: label spaces: what accuracy is measured among
SPACES = {"base": "base classes", "novel": "novel classes", "all": "all classes"}


def metrics_of(columns: Iterable[object]) -> list[str]:
    """The metrics among the columns of a summary, in the order of tables."""
    have = set(columns)
    return [metric for metric in METRICS if metric in have]


def headline_metric(columns: Iterable[object], wanted: str = "hm") -> str:
    """The metric ``wanted`` or, where a summary has no such column, the one that sums it up."""
    have = set(columns)
    return next((metric for metric in (wanted, "hm", "all") if metric in have), "all")


def few(names: Sequence[str], most: int = 8) -> str:
    """The names, or the first of them and how many more there are (never a single one)."""
    most = most if len(names) > most + 1 else len(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def plural(noun: str, count: int) -> str:
    """The noun, with an s unless the count is 1."""
    return noun if count == 1 else f"{noun}s"


def span(counts: Iterable[int], noun: str) -> str:
    """How many of something methods have: "3 seeds", "1 to 5 seeds"."""
    least, most = min(counts := sorted(set(counts))), counts[-1]
    return f"{least} {plural(noun, least)}" if least == most else f"{least} to {most} {noun}s"


def shots_text(shots: Iterable[int], between: str = ", ") -> str:
    """Numbers of shots: "1/4/16 shots", "1 shot"."""
    listed = list(shots)
    return f"{between.join(map(str, listed))} {plural('shot', 1 if listed == [1] else 2)}"


def as_published(method: str) -> str:
    """How a method is called where its published numbers stand beside measured ones."""
    return f"{method} (published)"


def ranges(numbers: Iterable[int]) -> str:
    """[1, 2, 3, 5] -> "1-3, 5"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def p_text(p: float) -> str:
    """A p-value to three digits."""
    return "-" if pd.isna(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def difference_text(difference: float, low: float, high: float) -> str:
    """ "+1.23 [+0.10, +2.36]"."""
    text = f"{difference:+.2f}"
    return text if pd.isna(low) or low == high else f"{text} [{low:+.2f}, {high:+.2f}]"
