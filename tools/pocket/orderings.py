"""Do the papers' orderings hold on the pocket suite? Intervals and paired tests from the reference records.

A seed gives every method the same pictures in the same order, so methods are compared in pairs: the
difference of the averages over datasets, seed by seed, with a 95 % t-interval and the p-value of the paired
t-test, Holm-corrected over all pairs shown. Zero-shot has no seed: its one result stands in every pair.

    python -m tools.pocket.orderings                                  # print
    python -m tools.pocket.orderings --write docs/pocket/orderings.md
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from promptbench.compare import harmonic_mean, load_frame

ROOT = Path(__file__).parents[2]
METHODS = ("zeroshot", "coop", "ivlp", "maple", "mmlop")
#: (what the papers say, metric, the method that should be ahead (+1) or behind (-1) of the others)
CLAIMS = (
    ("Deep prompting in both towers (IVLP) is highest on base classes", "base", "ivlp", 1),
    ("Deep prompting in both towers (IVLP) is lowest on novel classes", "novel", "ivlp", -1),
    ("MMLoP has the best harmonic mean", "hm", "mmlop", 1),
)


Averages = dict[str, dict[str, np.ndarray]]  # method -> metric -> one value per seed


def per_seed(out: Path) -> tuple[Averages, int]:
    """Averages over datasets, HM that of the averages; and the number of seeds."""
    table = load_frame(out)
    table = table[table["method"].isin(METHODS)]
    seeds = sorted(set(table["seed"]) - {0})
    wide: Any = table.pivot_table(
        index=["method", "seed"], columns=["classes", "dataset"], values="accuracy", aggfunc="first"
    )
    if wide.isna().any(axis=None) or len(wide) != 1 + len(seeds) * (table["method"].nunique() - 1):
        raise SystemExit("A seed or a dataset is missing for a method; run the rest first.")
    found: Averages = {}
    for method in sorted(set(table["method"])):
        mine = wide.loc[method]
        if method == "zeroshot":  # the same result, whatever the seed
            mine = mine.loc[[0] * len(seeds)]
        metrics = {half: mine[half].mean(axis=1).to_numpy() for half in ("base", "novel")}
        pairs = zip(metrics["base"], metrics["novel"], strict=True)
        found[method] = metrics | {"hm": np.array([harmonic_mean(b, n) for b, n in pairs])}
    return found, len(seeds)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % t-interval of the mean; a single point where nothing varies."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return float(low), float(high)


def shown(values: np.ndarray, sign: str = "") -> str:
    """Mean and interval in brackets."""
    low, high = interval(values)
    text = f"{values.mean():{sign}.2f}"
    return text if low == high else f"{text} [{low:{sign}.2f}, {high:{sign}.2f}]"


def holm(p_values: list[float]) -> list[float]:
    """Holm's correction of several p-values, in their order."""
    order = np.argsort(p_values)
    steps = [p_values[index] * (len(p_values) - rank) for rank, index in enumerate(order)]
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected.tolist()


def report(found: Averages, seeds: int) -> str:
    """The page: means, then a table of pairs for each claim."""
    means = [
        {"method": method, **{name: shown(values) for name, values in metrics.items()}}
        for method, metrics in found.items()
    ]
    pairs = [
        (claim, f"{method} - {other}", sign * (found[method][metric] - found[other][metric]), sign)
        for claim, metric, method, sign in CLAIMS
        for other in found
        if other != method
    ]
    p_values = holm([float(stats.ttest_1samp(difference, 0).pvalue) for _, _, difference, _ in pairs])
    text = f"""# Do the papers' orderings hold on pocket?

Written by `python -m tools.pocket.orderings` from [results/reference](../../results/reference): base2novel,
16 shots, {seeds} seeds, averages over the datasets of the suite; in brackets 95 % t-intervals over seeds.
Each learning rate was chosen with the same budget on validation pictures of the base half.

{pd.DataFrame(means).to_markdown(index=False, disable_numparse=True)}
"""
    for claim in dict.fromkeys(claim for claim, *_ in pairs):
        rows = []
        for (of, pair, difference, sign), p in zip(pairs, p_values, strict=True):
            if of == claim:
                verdict = "open" if p >= 0.05 else "yes" if difference.mean() > 0 else "no"
                p_text = f"{p:.3f}" if p >= 0.001 else "< 0.001"
                rows.append(
                    {"pair": pair, "difference": shown(sign * difference, "+"), "p": p_text, "holds": verdict}
                )
        table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
        text += f"\n## {claim}?\n\n{table}\n"
    return f"""{text}
Paired t-tests over {seeds} seeds, Holm-corrected over all {len(pairs)} pairs; `open`: not significant at 5 %.
Seeds vary shots, order and crops, not the datasets: the intervals say what other draws of shots would give on
these datasets, not what another suite would.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reference")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    text = report(*per_seed(given.out))
    print(text)
    if given.write:
        given.write.write_text(text, "utf-8")
