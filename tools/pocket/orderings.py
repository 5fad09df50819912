"""Do the papers' orderings hold on the pocket suite? Intervals and paired tests from the reference records.

A seed gives every method the same pictures in the same order, so methods are compared in pairs: the
difference of the averages over datasets, seed by seed, with a 95 % t-interval and the p-value of the paired
t-test (`promptbench.analysis.statistics`), Holm-corrected over all pairs shown. Zero-shot has no seed: its
one result stands in every pair.

    python -m tools.pocket.orderings                                  # print
    python -m tools.pocket.orderings --write docs/pocket/orderings.md
"""

import argparse
from pathlib import Path

import pandas as pd

from promptbench.analysis import statistics
from promptbench.analysis.comparison import load_frame
from promptbench.analysis.summary import measured
from promptbench.analysis.vocabulary import difference_text, p_text

ROOT = Path(__file__).parents[2]
METHODS = ("zeroshot", "coop", "ivlp", "maple", "mmlop")
#: (what the papers say, metric, the method that should be ahead (+1) or behind (-1) of the others)
CLAIMS = (
    ("Deep prompting in both towers (IVLP) is highest on base classes", "base", "ivlp", 1),
    ("Deep prompting in both towers (IVLP) is lowest on novel classes", "novel", "ivlp", -1),
    ("MMLoP has the best harmonic mean", "hm", "mmlop", 1),
)


def runs(out: Path) -> tuple[dict[str, statistics.Runs], int]:
    """The methods' runs by name, and the number of seeds."""
    table = load_frame(out)
    found = {one.method: one for one in measured(table[table["method"].isin(METHODS)])}
    seeds = {one.seeds for one in found.values() if one.shots}
    if len(found) < len(METHODS) or len(seeds) > 1:
        raise SystemExit("A seed or a dataset is missing for a method; run the rest first.")
    return dict(sorted(found.items())), len(seeds.pop())


def mean_text(one: statistics.Runs, metric: str) -> str:
    """Mean over seeds and its t-interval in brackets."""
    values = one.by_seed(metric)
    text = f"{values.mean():.2f}"
    if len(values) < 2:
        return text
    half = statistics.t_half_width(values.std(ddof=1), len(values))
    return f"{text} [{values.mean() - half:.2f}, {values.mean() + half:.2f}]"


def verdict(p: float, difference: float) -> str:
    """Whether a claim holds whose difference should be positive."""
    return "open" if not p < statistics.ALPHA else "yes" if difference > 0 else "no"


def report(found: dict[str, statistics.Runs], seeds: int) -> str:
    """The page: means, then a table of pairs for each claim."""
    means = [
        {"method": name, **{metric: mean_text(one, metric) for metric in one.metrics}}
        for name, one in found.items()
    ]
    tested = [
        statistics.paired([(found[method], other) for name, other in found.items() if name != method], metric)
        for _, metric, method, _ in CLAIMS
    ]
    pairs = pd.concat(tested, keys=[claim for claim, *_ in CLAIMS])
    pairs["p"] = statistics.holm(pairs["p_seeds"].tolist())
    text = f"""# Do the papers' orderings hold on pocket?

Written by `python -m tools.pocket.orderings` from [results/reference](../../results/reference/base2novel.md):
base2novel, 16 shots, {seeds} seeds, averages over the datasets of the suite.
Brackets: 95 % t-intervals over seeds. Each learning rate was chosen with the same budget on
validation images of the base half.

{pd.DataFrame(means).to_markdown(index=False, disable_numparse=True)}
"""
    for claim, _, _, sign in CLAIMS:
        rows = [
            {
                "pair": f"{row['method']} - {row['other']}",
                "difference": difference_text(row["difference"], row["low"], row["high"]),
                "p": p_text(row["p"]),
                "holds": verdict(row["p"], sign * row["difference"]),
            }
            for row in pairs.loc[[claim]].to_dict("records")
        ]
        table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
        text += f"\n## {claim}?\n\n{table}\n"
    return f"""{text}
Paired t-tests over {seeds} seeds, Holm-corrected over all {len(pairs)} pairs; `open`: not significant at 5 %.
Seeds vary the shots, the order and the crops, but not the datasets. The intervals describe other few-shot
draws on these datasets, not other suites.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reference")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    text = report(*runs(given.out))
    print(text)
    if given.write:
        given.write.write_text(text, "utf-8")
