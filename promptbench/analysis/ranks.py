"""Mean ranks of methods over datasets, and which of them Nemenyi's test tells apart (Demsar 2006)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from promptbench.analysis.statistics import ALPHA, Array

#: fewer make ranks meaningless (Demsar 2006 asks for more than 5 methods or more than 10 datasets)
CD_METHODS, CD_DATASETS = 5, 6


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over datasets (1 = best) by method, best first; methods whose ranks differ by less than
    ``difference`` are not told apart. ``p``: Friedman's test that all methods are alike."""

    mean: dict[str, float]
    difference: float
    p: float
    datasets: int

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The largest runs of methods that are not told apart, of two or more."""
        names, ranks = list(self.mean), list(self.mean.values())
        found: list[tuple[int, int]] = []
        for i in range(len(names)):
            j = max(k for k in range(i, len(names)) if ranks[k] - ranks[i] <= self.difference)
            if j > i and (not found or j > found[-1][1]):
                found.append((i, j))
        return [tuple(names[i : j + 1]) for i, j in found]


def rank(accuracies: Mapping[str, Array]) -> Ranks:
    """Mean ranks of methods by their accuracies [datasets], with Nemenyi's critical difference at 5 %."""
    values = np.stack(list(accuracies.values()))
    k, n = values.shape
    mean = stats.rankdata(-values, axis=0).mean(axis=1)
    order = np.argsort(mean, kind="stable")
    names = list(accuracies)
    q = stats.studentized_range.ppf(1 - ALPHA, k, np.inf) / np.sqrt(2)
    p = stats.friedmanchisquare(*values).pvalue if k > 2 else float("nan")
    return Ranks(
        {names[i]: float(mean[i]) for i in order}, float(q * np.sqrt(k * (k + 1) / (6 * n))), float(p), n
    )
