"""Statistics of comparisons: intervals, paired tests, ranks. Formulas and sources are in docs/compare.md.

Accuracies come as arrays [datasets, seeds]. A method without seeds (zero-shot) has one column, which stands
beside every seed of the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from promptbench.analysis.wilcoxon import signed_rank
from promptbench.trials.benchmarks import metrics_for

LEVEL = 0.95
ALPHA = 0.05
DRAWS = 5000
#: more methods than this are not all compared with each other: Holm would leave nothing of it
MOST = 50

Array = NDArray[np.float64]


def harmonic_mean(base: Any, novel: Any) -> Any:
    """2 base novel / (base + novel), 0 if both are; of numbers or of arrays, element by element."""
    total = np.add(base, novel)
    value = 2 * np.multiply(base, novel) / np.where(total == 0, 1, total)
    return value if np.ndim(value) else float(value)


def t_half_width(std: Any, n: Any) -> Any:
    """Half the width of the t-interval of a mean of ``n`` values with standard deviation ``std`` (ddof 1);
    NaN for fewer than two values."""
    n = np.asarray(n, dtype=float)
    with np.errstate(invalid="ignore"):
        return stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.asarray(std, dtype=float) / np.sqrt(n)


def bootstrap(values: Array) -> Array:
    """Means over datasets and seeds of resampled ``values`` [datasets, seeds, columns]: [draws, columns].

    Stratified: seeds are drawn anew, with replacement, within each dataset; columns (base and novel of one
    training) stay together. The same draws each time. Drawing from n values shrinks their variance by
    (n - 1) / n, a third at three seeds, so the draws' distances from the mean are stretched by
    sqrt(n / (n - 1)) (Rao and Wu 1988).
    """
    datasets, seeds, columns = values.shape
    mean: Array = values.mean(axis=(0, 1))
    drawn: Array = _weights(datasets, seeds) @ values.reshape(datasets * seeds, columns)
    return mean + float(np.sqrt(seeds / (seeds - 1))) * (drawn - mean)


@cache
def _weights(datasets: int, seeds: int) -> Array:
    """How much each of datasets x seeds counts in each draw: [draws, datasets * seeds]."""
    counts = np.random.default_rng(0).multinomial(seeds, [1 / seeds] * seeds, size=(DRAWS, datasets))
    return counts.reshape(DRAWS, -1) / (datasets * seeds)


def percentiles(draws: Array) -> tuple[Array, Array]:
    """Lower and upper end of the percentile interval along the first axis."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def jackknife(pairs: NDArray[Any], statistic: Callable[[NDArray[Any]], float]) -> tuple[float, float, float]:
    """``statistic(pairs)`` and its interval, from leaving out each of the n rows of ``pairs`` [n, ...] once.

    A t-interval of the jackknife's pseudo-values. For a mean of rows this is the ordinary paired t-interval;
    it also serves for what is no mean of rows, such as a mean of ratios. The limits are NaN for a single row.
    """
    n, estimate = len(pairs), statistic(pairs)
    if n < 2:
        return estimate, float("nan"), float("nan")
    without = np.array([statistic(np.delete(pairs, i, axis=0)) for i in range(n)])
    half = float(t_half_width((n - 1) * without.std(ddof=1), n))
    return estimate, estimate - half, estimate + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of several p-values, in their order; NaN (not tested) stays and is not counted."""
    given = np.asarray(p_values, dtype=float)
    corrected = np.full(len(given), np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested])]
    steps = given[order] * (len(order) - np.arange(len(order)))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected.tolist()


@dataclass(frozen=True, eq=False)
class Runs:
    """What a method measured at one number of shots on all datasets of a comparison.

    ``values``: by label space (base, novel or all) accuracies [datasets, seeds], for the seeds that all
    datasets have. No shots: one column, whatever the seed.
    """

    method: str
    shots: int
    seeds: tuple[int, ...]
    values: Mapping[str, Array]

    @property
    def metrics(self) -> tuple[str, ...]:
        return metrics_for(self.values)

    def at(self, seeds: Sequence[int]) -> "Runs":
        """The same for ``seeds`` only; one result without seeds is repeated."""
        columns = [self.seeds.index(seed) if self.shots else 0 for seed in seeds]
        return Runs(self.method, self.shots, tuple(seeds), {k: v[:, columns] for k, v in self.values.items()})

    def cells(self, metric: str) -> Array:
        """[datasets, seeds]"""
        if metric != "hm":
            return self.values[metric]
        return np.asarray(harmonic_mean(self.values["base"], self.values["novel"]))

    def by_seed(self, metric: str) -> Array:
        """Averages over datasets [seeds]; HM is that of the averages."""
        if metric != "hm":
            return np.asarray(self.values[metric].mean(axis=0))
        return np.asarray(harmonic_mean(self.by_seed("base"), self.by_seed("novel")))

    def by_dataset(self, metric: str) -> Array:
        """Means over seeds [datasets]; HM is that of the means."""
        if metric != "hm":
            return np.asarray(self.values[metric].mean(axis=1))
        return np.asarray(harmonic_mean(self.by_dataset("base"), self.by_dataset("novel")))

    @cached_property
    def headline(self) -> dict[str, float]:
        """By metric the average over datasets and seeds; HM is that of the averages."""
        found = {space: float(v.mean()) for space, v in self.values.items()}
        if "hm" in self.metrics:
            found["hm"] = harmonic_mean(found["base"], found["novel"])
        return found

    def interval(self, metric: str) -> tuple[float, float]:
        """Stratified bootstrap interval of the headline number; a point without seeds, NaN for one seed."""
        if not self.shots:
            return self.headline[metric], self.headline[metric]
        if len(self.seeds) < 2:
            return float("nan"), float("nan")
        draws = self._draws
        return draws[metric]

    @cached_property
    def _draws(self) -> dict[str, tuple[float, float]]:
        drawn = bootstrap(np.stack(list(self.values.values()), axis=-1))
        by_metric = {space: drawn[:, i] for i, space in enumerate(self.values)}
        if "hm" in self.metrics:
            by_metric["hm"] = harmonic_mean(by_metric["base"], by_metric["novel"])
        low, high = percentiles(np.stack(list(by_metric.values()), axis=-1))
        return {metric: (float(low[i]), float(high[i])) for i, metric in enumerate(by_metric)}


def common_seeds(one: Runs, other: Runs) -> tuple[int, ...]:
    """Seeds at which both can be compared; one result without seeds stands beside every seed."""
    if not one.shots:
        return other.seeds
    return one.seeds if not other.shots else tuple(seed for seed in one.seeds if seed in other.seeds)


def improvement(ours: Array, theirs: Array) -> float:
    """Probability that a run of ours beats one of theirs on a dataset picked at random, ties half: mean
    over datasets of the share of all pairs of runs. [datasets, seeds] each."""
    a, b = ours[:, :, None], theirs[:, None, :]
    return float(((a > b) + 0.5 * (a == b)).mean())


def paired(pairs: Sequence[tuple[Runs, Runs]], metric: str) -> pd.DataFrame:
    """The first of each pair against the second, on the seeds both have.

    Columns: method, other, shots, metric, seeds, datasets; difference of the averages (mean over seeds, HM
    by seed) with its t-interval low, high; p_seeds of the paired t-test over seeds; improvement
    (probability); p_datasets of Wilcoxon's signed-rank test over datasets. p-values are not corrected. NaN
    where there is nothing to test: fewer than two seeds, or differences without any spread.
    """
    rows: list[dict[str, Any]] = []
    by_dataset, by_seed = [], []
    for one, other in pairs:
        seeds = common_seeds(one, other)
        a, b = one.at(seeds), other.at(seeds)
        rows.append(
            {
                "method": one.method,
                "other": other.method,
                "shots": max(one.shots, other.shots),
                "metric": metric,
                "seeds": len(seeds) if one.shots or other.shots else 0,
                "datasets": len(a.cells(metric)),
                "improvement": improvement(a.cells(metric), b.cells(metric)),
            }
        )
        by_seed.append(a.by_seed(metric) - b.by_seed(metric))
        by_dataset.append(a.by_dataset(metric) - b.by_dataset(metric))
    found = pd.DataFrame(rows)
    if found.empty:
        return found
    for n in set(found["seeds"]):
        at = np.flatnonzero(found["seeds"] == n)
        differences = np.stack([by_seed[i] for i in at])
        found.loc[at, "difference"] = differences.mean(axis=1)
        std = differences.std(axis=1, ddof=1) if n > 1 else np.full(len(at), np.nan if n else 0.0)
        half = t_half_width(std, n) if n else std
        found.loc[at, "low"], found.loc[at, "high"] = differences.mean(1) - half, differences.mean(1) + half
        found.loc[at, "p_seeds"] = _t_test(differences)
    found["p_datasets"] = signed_rank(np.stack(by_dataset))
    return found


def _t_test(differences: Array) -> Array:
    """Two-sided p of each row's mean being 0; NaN without spread, since then nothing tells chance apart."""
    p = np.full(len(differences), np.nan)
    spread = np.ptp(differences, axis=1) > 1e-9
    if spread.any():
        p[spread] = stats.ttest_1samp(differences[spread], 0, axis=1).pvalue
    return p


def all_pairs(runs: Sequence[Runs]) -> pd.DataFrame:
    """Every two of ``runs`` at equal shots (or without) by every metric, the better one first; of more than
    `MOST` methods the best against every other.

    Columns as `paired`, with p_seeds and p_datasets Holm-corrected over the pairs of one metric and
    number of shots. Pairs without a common seed are left out.
    """
    found = []
    for shots in sorted({one.shots for one in runs if one.shots}) or [0]:
        family = [one for one in runs if one.shots in (0, shots)]
        for metric in family[0].metrics if family else ():
            ranked = sorted(family, key=lambda one: (-one.headline[metric], one.method))
            pairs = [
                (one, other)
                for i, one in enumerate(ranked if len(ranked) <= MOST else ranked[:1])
                for other in ranked[i + 1 :]
                if common_seeds(one, other)
            ]
            tested = paired(pairs, metric)
            if len(tested):
                for column in ("p_seeds", "p_datasets"):
                    tested[column] = holm(tested[column].tolist())
                found.append(tested)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()
