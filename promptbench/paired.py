"""An interval for the difference of two methods measured on the same things."""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats


def jackknife(
    pairs: np.ndarray, statistic: Callable[[np.ndarray], float], confidence: float = 0.95
) -> tuple[float, float, float]:
    """``statistic(pairs)`` and its interval, from leaving out each of the n rows of ``pairs`` [n, ...] once.

    A t-interval (n - 1 degrees of freedom) of the jackknife's pseudo-values. For a mean of rows this is the
    ordinary paired t-interval; it also serves for what is no mean, such as a difference of harmonic means of
    averages. The limits are NaN for a single row.
    """
    n, estimate = len(pairs), statistic(pairs)
    if n < 2:
        return estimate, math.nan, math.nan
    without = np.array([statistic(np.delete(pairs, i, axis=0)) for i in range(n)])
    spread = math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())  # standard error
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * spread
    return estimate, estimate - half, estimate + half
