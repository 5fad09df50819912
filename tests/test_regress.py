"""`promptbench regress` is green on clean repeats, red for planted bugs; what decides, on made-up results."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from promptbench.checks import regress, steptime
from promptbench.checks.baseline import Baseline, Limits, Result, read_baseline, require_same
from promptbench.checks.regress import Fresh, compare
from promptbench.checks.steptime import Pace, against
from promptbench.data.dataset import Dataset
from promptbench.errors import UserError
from promptbench.execution import local
from promptbench.execution.options import RunOptions
from promptbench.execution.setup import prepare
from promptbench.methods._base import Method
from promptbench.methods._registry import get_method
from promptbench.trials.sweep import Sweep, parse_sweep, read_sweep
from tests.conftest import write_dataset
from tests.test_cli import call

DATA = ("a", "b", "c", "d", "e")


def results(shift: dict[tuple[str, str], int] | None = None, parameters: int = 10) -> list[Result]:
    """Two methods, five datasets, two seeds, ten classes per half of ten pictures, six or seven right; by
    (dataset, half) ``shift`` fewer in each class for the method "small"."""
    return [
        Result(
            benchmark="base2novel",
            method=method,
            dataset=dataset,
            classes=half,
            shots=16,
            seed=seed,
            parameters=parameters,
            per_class={
                f"{half} {i}": (
                    6 + (i + seed) % 2 - (shift or {}).get((dataset, half), 0) * (method == "small"),
                    10,
                )
                for i in range(10)
            },
        )
        for method in ("small", "large")
        for dataset in DATA
        for seed in (1, 2)
        for half in ("base", "novel")
    ]


def baseline(**changes: Any) -> Baseline:
    return Baseline(
        **{
            "recipe": {"grid": {"coop": {}}},
            "weights": "w",
            "data": dict.fromkeys(DATA, "d"),
            "steps": {"small": 1.0},
            "environment": {},
            "results": results(),
            **changes,
        }
    )


def problems(now: list[Result], **changes: Any) -> list[str]:
    fresh = Fresh("w", dict.fromkeys(DATA, "d"), now, changes.pop("failures", []))
    return compare(baseline(**changes), fresh, [Pace("small", 1.0, 1.1, "ok")]).problems


def test_equal_runs_are_no_regression() -> None:
    assert problems(results()) == []


def test_one_ruined_dataset_is_seen_in_one_half_too() -> None:
    both = problems(results({("b", "base"): 5, ("b", "novel"): 5}))
    assert both == [
        "accuracy: small on average fell by 10.00 points",
        "accuracy: small on b fell by 50.00 points",
    ]
    (one,) = problems(results({("c", "novel"): 1}))  # 10 points in a half: 5 of the dataset, 1 on average
    assert one == "accuracy: small on c fell by 5.00 points"


def test_a_small_fall_everywhere_is_seen() -> None:
    """Every tenth picture of every base half: too little on each dataset for a limit of 6, not on average."""
    now = results({(dataset, "base"): 1 for dataset in DATA})
    assert problems(now, limits=Limits(dataset=6)) == ["accuracy: small on average fell by 5.00 points"]


def test_what_could_be_chance_is_not_counted() -> None:
    """Half of the classes lose four pictures, the others gain three: -5 points with a wide interval."""
    now = [
        one.model_copy(
            update={
                "per_class": {
                    name: (max(0, right - 4) if i % 2 else min(10, right + 3), total)
                    for i, (name, (right, total)) in enumerate(one.per_class.items())
                }
            }
        )
        if one.dataset == "a" and one.method == "small"
        else one
        for one in results()
    ]
    report = compare(baseline(limits=Limits(average=2)), Fresh("w", {}, now, []), [])
    (row,) = [row for row in report.accuracy if (row.method, row.data) == ("small", "a")]
    assert row.change == pytest.approx(-5)
    assert row.low < 0 < row.high
    assert report.problems == []


def test_a_rise_is_told_and_no_problem() -> None:
    report = compare(baseline(), Fresh("w", {}, results({("a", "base"): -2}), []), [])
    assert report.problems == []
    assert report.notes == ["Better than the baseline: small on a; --update-baseline stores it."]


def test_missing_runs_changed_parameters_and_failures() -> None:
    kept = [one for one in results() if (one.method, one.dataset, one.seed) != ("large", "d", 2)]
    found = problems(kept, failures=["large on d, 16 shots, seed 2: no picture."])
    assert found[0] == "failed: large on d, 16 shots, seed 2: no picture."
    assert [line.partition(" (")[0] for line in found[1:]] == [
        "missing: large on d, base classes",
        "missing: large on d, novel classes",
    ]
    assert len(problems(results(parameters=11))) == 40
    more = compare(baseline(results=results()[:-1]), Fresh("w", {}, results(), []), [])
    assert more.problems == []
    assert more.notes[0].startswith("1 results are not in the baseline, such as large on e, novel classes")


def test_a_pair_without_an_interval_counts_by_itself() -> None:
    row = regress._row("m", "d", np.array([[80.0, 70.0]]), regress._mean_change, 1.0)
    assert (row.verdict, row.change) == ("fell", -10)


def test_what_is_slower_once_is_measured_again() -> None:
    measured = iter([{"a": 1.4, "b": 1.0}, {"a": 1.1, "b": 1.3}, {"a": 9.0, "b": 9.0}])
    found = against(lambda: next(measured), {"a": 1.0, "b": 1.0}, 0.25)
    assert [(one.method, one.now, one.verdict) for one in found] == [("a", 1.1, "ok"), ("b", 1.0, "ok")]
    assert next(measured)["a"] == 9.0  # two were enough
    always = against(lambda: {"a": 1.3}, {"a": 1.0, "gone": 1.0}, 0.25)
    assert [one.verdict for one in always] == ["slower", "missing"]
    assert always[0].change == pytest.approx(0.3)
    report = compare(baseline(), Fresh("w", {}, results(), []), always)
    assert report.problems == [
        "speed: a training step of a takes +30%",
        "speed: a training step of gone was not timed",
    ]


# ---------------------------------------------------------------------- end to end, on tiny data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two datasets and their baseline. Fewer and smaller steps are timed, so that a comparison
    takes two seconds; they are noisy, and so the limit for them is wide."""
    folder = tmp_path_factory.mktemp("regress")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPTBENCH_CACHE", str(folder / "cache"))
        patch.setattr(steptime, "ROUNDS", 5)
        patch.setattr(steptime, "CLASSES", 4)
        cards = [str(write_dataset(folder, name)) for name in ("one", "two")]
        grid = {"zeroshot": None, "coop": {"epochs": 2}}
        recipe = {"grid": grid, "datasets": cards, "shots": 2, "seeds": [1, 2]}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        line = ["regress", "--baseline", str(folder / "baseline.json"), "--update-baseline"]
        assert call(*line, "--recipe", str(folder / "recipe.yaml")) == 0
        values = json.loads((folder / "baseline.json").read_text())
        values["limits"]["slower"] = 0.6
        (folder / "baseline.json").write_text(json.dumps(values))
        yield folder


@pytest.fixture
def nightly(made: Path, tmp_path: Path) -> list[str]:
    """A copy of the baseline, and the command that holds a run against it."""
    shutil.copy(made / "baseline.json", tmp_path)
    return ["regress", "--baseline", str(tmp_path / "baseline.json")]


def test_a_clean_repeat_is_green_and_fresh(
    nightly: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("# before\n")
    out, texts = tmp_path / "out", []
    for _ in range(2):
        capsys.readouterr()
        assert call(*nightly, "--out", str(out)) == 0
        shown = capsys.readouterr()
        texts.append(shown.out)
        assert shown.out.startswith("## promptbench regress: no regression\n")
        assert "already done" not in shown.err  # records of the last time are not used
        assert "| coop | average | " in shown.out
    assert (tmp_path / "summary.md").read_text() == "# before\n" + "".join(texts)
    assert len(list(out.rglob("record.json"))) == 6
    assert not list((tmp_path / "cache").glob("*.safetensors"))  # nor the user's cached features
    found = read_baseline(tmp_path / "baseline.json")
    assert len(found.results) == 12
    assert list(found.steps) == ["coop"]
    again = tmp_path / "again.json"
    found.write(again)
    assert read_baseline(again) == found


def test_a_planted_accuracy_bug_is_caught(
    nightly: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Similarities with the wrong sign in every method that has no logits of its own."""
    right = Method.logits
    monkeypatch.setattr(Method, "logits", lambda self, batch, classifier: -right(self, batch, classifier))
    monkeypatch.setattr(local, "default_jobs", lambda *_: 1)  # workers would not have the bug
    assert call(*nightly) == 1
    assert "- **accuracy**: zeroshot on average fell by" in capsys.readouterr().out


def test_a_planted_slowdown_is_caught(
    nightly: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that does its forward pass four times over."""
    kind, loss = get_method("coop"), get_method("coop").loss
    monkeypatch.setattr(
        kind, "loss", lambda self, batch, classes: sum(loss(self, batch, classes) for _ in range(4)) / 4
    )
    assert call(*nightly) == 1
    assert "- **speed**: a training step of coop takes +" in capsys.readouterr().out


def test_a_run_that_fails_or_is_gone_is_caught(
    nightly: list[str], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    image = made / "two/images/0/test0.png"
    right = image.read_bytes()
    image.write_bytes(b"x" * len(right))
    assert call(*nightly) == 2  # other contents are other data
    assert "was made with different data of two and cannot be compared" in capsys.readouterr().err
    image.write_bytes(right)

    def fail(self: Dataset, path: str) -> Any:
        if self.name == "two" and path == "images/0/test0.png":
            raise UserError("Image cannot be read.")
        return read(self, path)

    read = Dataset.image
    with monkeypatch.context() as broken:
        broken.setattr(Dataset, "image", fail)
        assert call(*nightly) == 1
    text = capsys.readouterr().out
    assert "- **failed**: coop (epochs=2) on two, 2 shots, seed 1: " in text
    assert "- **missing**: zeroshot on two, novel classes (base2novel, 0 shots, seed 0)" in text
    path = tmp_path / "baseline.json"
    values = json.loads(path.read_text())
    values["recipe"]["seeds"] = [1]  # as if a version planned fewer trials
    values["recipe"]["datasets"] = values["recipe"]["datasets"][:1]
    path.write_text(json.dumps(values))
    assert call(*nightly) == 1
    text = capsys.readouterr().out
    assert "- **missing**: coop on one, base classes (base2novel, 2 shots, seed 2)" in text


def test_changed_parameters_are_caught(
    nightly: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(path.read_text().replace('"parameters": 384', '"parameters": 383'))
    assert call(*nightly) == 1
    assert "- **parameters**: coop on one, base classes (base2novel, 2 shots, seed 1): 383 -> 384" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "0" * 64}, "was made with different weights and cannot be compared"),
        ({"data": {"one": "0" * 64}}, "was made with different data of one and cannot be compared"),
        ({"schema_version": 2}, "is not valid: schema_version: input should be 1"),
        ({"recipe": {"grid": {"cop": {}}}}, "grid.cop: Unknown method 'cop'"),
    ],
)
def test_a_baseline_that_cannot_be_compared(
    nightly: list[str], change: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert call(*nightly) == 2
    assert message in capsys.readouterr().err


def test_no_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gone.json"
    assert call("regress", "--baseline", str(path)) == 2
    assert (
        f"Cannot read the baseline {path}: No such file or directory; make it with" in capsys.readouterr().err
    )
    assert call("regress", "--baseline", str(path), "--update-baseline") == 2
    assert "Cannot read the baseline" in capsys.readouterr().err
    path.write_text("{")
    assert call("regress", "--baseline", str(path)) == 2
    assert "is not valid" in capsys.readouterr().err
    assert call("regress", "--recipe", "examples/nightly.yaml") == 2
    assert "--recipe is for a new baseline: add --update-baseline." in capsys.readouterr().err


def test_settings_with_several_values_tell_results_apart(make_dataset: Any) -> None:
    sweep = Sweep(
        grid={"coop": {"n_ctx": (2, 4), "epochs": (1,)}}, datasets=(str(make_dataset()),), shots=(2,)
    )
    setup = prepare(sweep, RunOptions())
    names = [regress._label(sweep, name, trial) for name, trial in regress._by_name(setup)]
    assert names == ["coop n_ctx=2", "coop n_ctx=4"]


def test_the_shipped_baseline_is_of_the_shipped_recipe_and_weights() -> None:
    root = Path(__file__).parent.parent
    found = read_baseline(root / "results" / "baseline.json")
    setup = regress.load(parse_sweep(found.recipe, "recipe"))
    require_same(found, setup)
    assert setup.sweep == read_sweep(root / "examples" / "nightly.yaml")
    assert len(found.results) == 2 * 5 * 2 * 2
    assert set(found.steps) == {"coop", "mmlop"}
