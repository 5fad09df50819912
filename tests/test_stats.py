"""Statistics against values worked out by hand, against scipy and against simulation."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from promptbench.analysis import statistics as stats
from promptbench.analysis.ranks import Ranks, rank
from promptbench.analysis.statistics import Runs
from promptbench.analysis.summary import frame, measured
from promptbench.reporting import pairs as pair_tables
from promptbench.reporting.sentences import pair_summary
from tests.test_compare import RECORDS, make


def runs(method: str, values: Any, shots: int = 16, **more: Any) -> Runs:
    """``values`` [datasets, seeds] of one label space, and of others in ``more``."""
    first = np.asarray(values, dtype=float)
    spaces = {"all": first} if not more else {key: np.asarray(v, dtype=float) for key, v in more.items()}
    n = next(iter(spaces.values())).shape[1]
    return Runs(method, shots, tuple(range(1, n + 1)) if shots else (0,), spaces)


def test_holm() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_gap = stats.holm([0.01, math.nan, 0.6, 0.9])
    assert with_gap[0] == pytest.approx(0.03)  # what was not tested does not count
    assert math.isnan(with_gap[1])
    assert with_gap[2:] == [1, 1]


def test_jackknife_of_a_mean_is_the_paired_t_interval() -> None:
    differences = np.array([1.0, 2.5, -0.5, 3.0, 2.0])
    expected = scipy_stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert stats.jackknife(differences, np.mean) == pytest.approx((differences.mean(), *expected))
    estimate, low, high = stats.jackknife(differences[:1], np.mean)
    assert (estimate, math.isnan(low), math.isnan(high)) == (1.0, True, True)


def test_bootstrap_interval_covers() -> None:
    """Of normal seeds with different spreads per dataset, about 95 in 100 intervals hold the mean. Without
    the stretching three seeds give 85."""
    rng, hits, n = np.random.default_rng(0), 0, 400
    for _ in range(n):
        values = 70 + rng.normal(size=(11, 3)) * np.linspace(0.5, 4, 11)[:, None]
        low, high = runs("m", values).interval("all")
        hits += low <= 70 <= high
    assert 0.90 < hits / n < 0.97


def test_bootstrap_resamples_within_datasets() -> None:
    """Datasets differ by 60 points, seeds not at all: there is no spread."""
    assert runs("m", [[20, 20, 20], [80, 80, 80]]).interval("all") == pytest.approx((50, 50))
    one = runs("m", [[20, 22, 24], [80, 82, 84]])
    assert one.interval("all") == one.interval("all")  # the same draws
    assert all(math.isnan(x) for x in runs("m", [[20], [80]]).interval("all"))
    assert runs("m", [[20], [80]], shots=0).interval("all") == (50, 50)


def test_harmonic_mean_of_averages() -> None:
    one = runs("m", [], base=[[80, 85], [75, 75]], novel=[[50, 55], [60, 70]])
    assert one.headline["hm"] == pytest.approx(2 * 78.75 * 58.75 / 137.5)
    assert one.by_seed("hm")[0] == pytest.approx(2 * 77.5 * 55 / 132.5)
    assert one.by_dataset("hm")[1] == pytest.approx(2 * 75 * 65 / 140)


def test_improvement() -> None:
    """Of dataset 1 three of four pairs of runs are won, of dataset 2 one is a tie."""
    assert stats.improvement(np.array([[3.0, 1.0]]), np.array([[2.0, 0.0]])) == 0.75
    ours, theirs = np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([[2.0, 0.0], [1.0, 2.0]])
    assert stats.improvement(ours, theirs) == (0.75 + 0.25) / 2


def test_pairs_are_tested_as_by_scipy() -> None:
    rng = np.random.default_rng(1)
    a, b = (runs(name, rng.normal(70, 3, (8, 4))) for name in "ab")
    row = stats.paired([(a, b)], "all").iloc[0]
    seeds = (a.values["all"] - b.values["all"]).mean(axis=0)
    datasets = (a.values["all"] - b.values["all"]).mean(axis=1)
    test = scipy_stats.ttest_1samp(seeds, 0)
    assert row["p_seeds"] == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["p_datasets"] == pytest.approx(scipy_stats.wilcoxon(datasets).pvalue)
    assert row["difference"] == pytest.approx(seeds.mean())


def test_ties_and_zeros_are_tested_as_by_scipy() -> None:
    differences = np.random.default_rng(0).normal(size=(12, 7)).round(1)
    differences[0], differences[1, 0] = 0, 0
    runs_of = [(runs("a", row[:, None]), runs("b", np.zeros((7, 1)))) for row in differences]
    found = stats.paired(runs_of, "all")["p_datasets"]
    assert sum(len(set(np.abs(row))) < 7 for row in differences) > 3
    assert found[0] == 1
    assert found[1:].tolist() == [scipy_stats.wilcoxon(row).pvalue for row in differences[1:]]


def test_only_common_seeds_are_paired() -> None:
    a = Runs("a", 16, (1, 2, 3), {"all": np.array([[1.0, 2.0, 9.0]])})
    b = Runs("b", 16, (2, 3, 4), {"all": np.array([[1.0, 7.0, 0.0]])})
    row = stats.paired([(a, b)], "all").iloc[0]
    assert (row["seeds"], row["difference"]) == (2, 1.5)
    apart = Runs("c", 16, (5,), {"all": np.array([[1.0]])})
    assert stats.all_pairs([a, apart]).empty


def test_zero_shot_stands_beside_every_seed_and_number_of_shots() -> None:
    zero = runs("zeroshot", [[60.0], [70.0]], shots=0)
    few = [runs("m", [[61, 63], [70, 72]], shots=1), runs("m", [[66, 69], [77, 73]], shots=4)]
    found = stats.all_pairs([zero, *few])
    assert list(found["shots"]) == [1, 4]
    assert list(found["method"]) == ["m", "m"]
    assert list(found["seeds"]) == [2, 2]
    assert found["difference"].tolist() == pytest.approx([1.5, 6.25])


def test_no_spread_is_no_proof() -> None:
    """Two seeds with the same difference: the t-test has nothing to go by."""
    found = stats.paired([(runs("a", [[5, 6]]), runs("b", [[4, 5]]))], "all").iloc[0]
    assert found["difference"] == 1
    assert math.isnan(found["p_seeds"])
    assert math.isnan(found["p_datasets"])  # one dataset


def test_measured_needs_every_dataset() -> None:
    found = measured(frame(RECORDS))
    assert [(one.method, one.seeds) for one in found] == [("deep", (1, 2)), ("zeroshot", (0,))]
    assert found[0].values["base"].tolist() == [[80, 85], [75, 75]]


def test_critical_difference_of_demsar() -> None:
    """Four classifiers on 14 datasets: 1.25 (Demsar 2006, section 3.2.2); q of its table 5."""
    rng = np.random.default_rng(0)
    ranks = rank({name: rng.normal(size=14) for name in "abcd"})
    assert ranks.difference == pytest.approx(1.25, abs=0.005)
    assert sum(ranks.mean.values()) == pytest.approx(10)
    assert list(ranks.mean.values()) == sorted(ranks.mean.values())


def test_groups_that_are_not_told_apart() -> None:
    ranks = Ranks({"a": 1.0, "b": 1.8, "c": 2.5, "d": 4.7}, 1.0, 0.01, 10)
    assert ranks.groups == [("a", "b"), ("b", "c")]


def test_sentences() -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 0.1, (7, 4))
    good, bad = runs("good", 80 + noise), runs("bad", 60 + rng.normal(0, 0.1, (7, 4)))
    text = pair_summary(stats.all_pairs([good, bad]))
    assert "Which is better (average of 7 datasets" in text
    assert text.count("accuracy: good > bad.") == 2  # on other shots and on other datasets
    alike = pair_summary(stats.all_pairs([good, runs("twin", 80 + rng.normal(0, 0.1, (7, 4)))]))
    assert "accuracy: the two do not differ." in alike
    few = pair_summary(stats.all_pairs(measured(frame(RECORDS))))
    assert "no answer, with 2 datasets and 1 pair p is at least 0.50" in " ".join(few.split())
    single = [make(name, "a", 1, n, n) for name, n in (("x", 100), ("y", 120))]
    text = pair_summary(stats.all_pairs(measured(frame(single))))
    assert "one seed cannot say" in text
    assert "takes two methods" in pair_summary(stats.all_pairs(measured(frame(single[:1]))))


@pytest.mark.parametrize("style", ["table", "md", "csv", "json", "latex"])
def test_table_of_pairs(style: Any) -> None:
    text = pair_tables.render(stats.all_pairs(measured(frame(RECORDS))), style, "base2novel")
    assert "zeroshot" in text
    assert "deep" in text
    if style in ("table", "md"):
        assert "+23.75 [" in text
