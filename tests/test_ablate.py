"""`promptbench ablate`: declared steps, differences worked out by hand, and the command on tiny data."""

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from promptbench.analysis.ablation import Measured, direction, measure, steps_of, tabulate
from promptbench.analysis.statistics import harmonic_mean
from promptbench.errors import UserError
from promptbench.methods._registry import get_recipe
from promptbench.training.counts import Evaluation
from promptbench.trials.trial import Trial
from tests.test_cli import arguments, call, records
from tests.test_compare import make

HALVES = ("base", "novel")


def measured(
    name: str, group: str, counts: dict[tuple[str, int], tuple[int, int]], lose: int = 0
) -> Measured:
    """A step from correct answers of 200, base and novel; the last ``lose`` records do not exist."""
    (step,) = [step for step in get_recipe(name).ablation if step.group == group]
    made = [
        make(
            "mmlop",
            dataset,
            seed,
            *right,
            evaluations=tuple(Evaluation(dataset=dataset, classes=half) for half in HALVES),
            settings={"lr": 0.1, "name": name},
        )
        for (dataset, seed), right in counts.items()
    ]
    kept = {record.hash: record for record in made[: len(made) - lose]}
    return measure(step, get_recipe(name), [record.trial for record in made], kept)


def trial() -> Trial:
    return make("mmlop", "a", 1, 1, 1, evaluations=[Evaluation(dataset="a", classes=h) for h in HALVES]).trial


ONE = {("a", 1): (100, 120), ("a", 2): (110, 120), ("a", 3): (120, 110)}
ONE |= {("b", 1): (140, 60), ("b", 2): (150, 50), ("b", 3): (130, 70)}
TWO = {("a", 1): (104, 123), ("a", 2): (117, 122), ("a", 3): (125, 114)}
TWO |= {("b", 1): (146, 64), ("b", 2): (154, 53), ("b", 3): (134, 74)}


def test_differences_of_the_seeds_averages() -> None:
    before, after = measured("mmlop-lowrank", "chain", ONE), measured("mmlop-consistency", "chain", TWO)
    base, novel = 750 / 12, 530 / 12
    assert before.mean("base") == base
    assert before.mean("hm") == pytest.approx(harmonic_mean(base, novel))
    found = after.against(before, "base")
    assert found is not None
    expected = stats.ttest_1samp([2.5, 2.75, 2.25], 0).confidence_interval(0.95)
    assert found == pytest.approx((2.5, *expected))
    found = after.against(before, "hm")
    assert found is not None
    then = [harmonic_mean(60, 45), harmonic_mean(65, 42.5), harmonic_mean(62.5, 45)]
    now = [harmonic_mean(62.5, 46.75), harmonic_mean(67.75, 43.75), harmonic_mean(64.75, 47)]
    each = [a - b for a, b in zip(now, then, strict=True)]
    expected = stats.ttest_1samp(each, 0).confidence_interval(0.95)
    assert found == pytest.approx((sum(each) / 3, *expected))

    table = tabulate([before, after], trial())
    assert [row["HM, published"] for row in table.values] == ["77.06", "78.78"]
    (row,) = table.differences
    assert row["base [95 %]"].startswith("+2.50 [+1.")
    assert row["published"] == "HM +1.72"
    assert row["direction"] == direction(found, 1.72) == "agrees"
    assert any(note.startswith("Published: ViT-B/16, 11 datasets (arXiv 2602.21397") for note in table.notes)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((2, 1, 3), 0.5, "agrees"),
        ((-2, -3, -1), -0.5, "agrees"),
        ((-2, -3, -1), 0.5, "does not agree"),
        ((2, -1, 5), 0.5, "not distinguishable"),
        ((2, float("nan"), float("nan")), 0.5, "not distinguishable"),
        (None, 0.5, "not measured"),
    ],
)
def test_direction(ours: Any, theirs: float, verdict: str) -> None:
    assert direction(ours, theirs) == verdict


def test_what_is_missing_is_shown_as_missing() -> None:
    """No average over part of the results; the difference is over the seeds both steps have."""
    before, after = (
        measured("mmlop-lowrank", "chain", ONE),
        measured("mmlop-consistency", "chain", TWO, lose=1),
    )
    table = tabulate([before, after], trial())
    assert table.values[1]["HM"] == "-"
    assert "mmlop-consistency: 5 of 6 results, so no average." in table.notes
    assert table.differences[0]["base [95 %]"].startswith("+2.62 [")
    none = tabulate([before, measured("mmlop-consistency", "chain", TWO, lose=6)], trial())
    assert none.differences[0]["direction"] == "not measured"


def test_published_numbers_stand_beside_their_own_situation_only() -> None:
    steps = [measured("mmlop", "rank", ONE), measured("mmlop-rank2", "rank", TWO)]
    assert [row["novel, published"] for row in tabulate(steps, trial()).values] == ["75.85", "75.01"]
    for other in ({"shots": 4}, {"benchmark": "fewshot"}):
        assert "novel, published" not in tabulate(steps, trial().model_copy(update=other)).values[0]


def test_what_else_changes_is_said() -> None:
    before, after = measured("mmlop-lowrank", "chain", ONE), measured("mmlop-consistency", "chain", TWO)
    after.settings = {**after.settings, "lr": 0.2, "consistency": "both"}
    (note,) = [n for n in tabulate([before, after], trial()).notes if "changes too" in n]
    assert "lr (0.1 -> 0.2)" in note
    assert "consistency (" not in note


def test_every_declared_row_was_published() -> None:
    groups = steps_of("mmlop")
    assert {group: len(steps) for group, steps in groups.items()} == {
        "chain": 5,
        "rank": 3,
        "initialisation": 3,
    }
    assert [recipe.name for _, recipe in groups["chain"]][-1] == "mmlop"
    for group in ("chain", "rank"):
        for row in tabulate([measured(r.name, group, ONE) for _, r in groups[group]], trial()).values:
            assert {"HM, published", "novel, published"} & set(row)
            assert any(value != "-" for key, value in row.items() if "published" in key), row


def test_methods_without_ablation() -> None:
    with pytest.raises(UserError, match=r"coop has no ablation recipes .* there are some of mmlop"):
        steps_of("coop")
    with pytest.raises(UserError, match="Did you mean 'mmlop'"):
        steps_of("mmlo")


def test_the_command_trains_what_is_not_done_and_nothing_else(
    make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["ablate", "mmlop", *arguments(make_dataset(), out, "--seeds", "1,2")]
    assert call("run", "mmlop", "mmlop-rank2", *line[2:]) == 0
    assert call(*line, "--shard", "1/4") == 0
    assert "need all shards" in capsys.readouterr().err
    assert call(*line, "--format", "md") == 0
    shown = capsys.readouterr()
    assert len(records(out)) == 18
    assert "### mmlop: chain" in shown.out
    assert "| + shared U " in shown.out
    assert shown.out.count("Measured: pocket, 2 shots, 1 datasets (colours), seeds 1, 2;") == 3
    assert call(*line, "--format", "md") == 0
    again = capsys.readouterr()
    assert again.out == shown.out
    assert again.err.count("already done") == 18
    assert call(*line) == 0
    assert "mmlop-small-unshared" in capsys.readouterr().out
    assert call(*line, "--group", "rank") == 0
    shown = capsys.readouterr()
    assert shown.err.count("already done") == 6
    assert "mmlop: chain" not in shown.out
    assert call(*line, "--group", "ranks") == 2
    assert "Unknown value of --group 'ranks'. Did you mean 'rank'?" in capsys.readouterr().err
    assert call(*line, "--shots", "1,2") == 2
    assert "Ablations need a single --shots value." in capsys.readouterr().err
