"""Wilcoxon's signed-rank test of many rows at once, exact where values are tied."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def signed_rank(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two-sided p of each row of ``differences`` [rows, datasets]; 1 for a row of zeros, NaN for a single
    dataset."""
    if differences.shape[1] < 2:
        return np.full(len(differences), np.nan)
    differences = differences.round(9)  # ties are ties whatever the order of summation
    p = np.ones(len(differences))
    ordered = np.sort(np.abs(differences), axis=1)
    plain = (ordered[:, 0] > 0) & (np.diff(ordered, axis=1) > 0).all(axis=1)
    if plain.any():
        p[plain] = stats.wilcoxon(differences[plain], axis=1).pvalue
    for i in np.flatnonzero(~plain & (differences != 0).any(axis=1)):
        p[i] = _tied(differences[i][differences[i] != 0])
    return p


def _tied(row: NDArray[np.float64]) -> float:
    """p of values some of which are tied, or were dropped as zeros: exact up to 13 values, as `wilcoxon` has
    it. That tries all signs one by one, which takes a minute for the pairs of twenty methods; all at once
    take a hundredth of it."""
    if len(row) == 1:
        return 1.0
    if len(row) > 13:
        return float(stats.wilcoxon(row).pvalue)
    signed = np.sign(row) * stats.rankdata(np.abs(row))
    return float(
        stats.permutation_test(
            (signed,),
            lambda x, axis: np.maximum(x, 0).sum(axis=axis),
            permutation_type="samples",
            n_resamples=np.inf,
            vectorized=True,
        ).pvalue
    )
