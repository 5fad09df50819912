"""Sweep files become trials as `run --set` makes them, and shards divide any list of trials."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from promptbench.data import dataset as data
from promptbench.execution.options import RunOptions
from promptbench.execution.setup import prepare
from promptbench.trials.benchmarks import BENCHMARKS
from promptbench.trials.plan import plan, shard
from promptbench.trials.sweep import combinations, parse_sweep, read_sweep
from tests.test_cli import arguments, call, records

ROOT = Path(__file__).parent.parent


def write(folder: Path, **values: Any) -> str:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 40])
@pytest.mark.parametrize("length", [0, 1, 2, 15, 16, 17, 33])
def test_shards_are_disjoint_complete_and_even(length: int, count: int) -> None:
    trials: list[Any] = list(range(length))
    parts: list[list[Any]] = [shard(trials, number, count) for number in range(1, count + 1)]
    assert sorted(one for part in parts for one in part) == trials
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1
    assert all(part == sorted(part) for part in parts)


def test_combinations() -> None:
    assert combinations({}) == [{}]
    assert combinations({"a": (1, 2), "b": (3, 4)}) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]


def test_several_overrides_of_a_method_give_no_trial_twice(colours: data.Dataset) -> None:
    from promptbench.methods._registry import get_recipe

    several: dict[str, Any] = {"mmlop": [{"rank": 1}, {"rank": 2}, {}], "mmlop-rank2": {}}
    wanted = [get_recipe("mmlop"), get_recipe("mmlop-rank2")]
    trials = plan(BENCHMARKS["base2novel"], wanted, [colours], shots=[2], overrides=several)
    assert [(t.settings["rank"], t.variant) for t in trials] == [(1, ""), (2, "rank=2")]


def test_a_sweep_is_what_run_makes_of_its_settings(
    make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same trials, same cache of records: what the sweep did `run` finds done, and the other way round."""
    card, out = str(make_dataset()), tmp_path / "out"
    grid = {"zeroshot": None, "coop": {"n_ctx": [2, 4], "lr": "1e-3"}}
    many: dict[str, Any] = {
        "datasets": card,
        "shots": [1, 2],
        "benchmark": ["base2novel", "fewshot"],
        "epochs": 1,
    }
    file = write(tmp_path, grid=grid, **many, out=str(out))
    assert call("sweep", file, "--dry-run") == 0
    assert "10 trials, 0 done, 10 to run" in capsys.readouterr().out
    assert not out.exists()
    assert call("sweep", file) == 0
    tables = capsys.readouterr().out
    assert "base2novel, backbone pocket" in tables
    assert "fewshot, backbone pocket" in tables
    assert re.search(r"coop \(epochs=1 lr=0.001 n_ctx=2\) .*\d\d\.\d\d", tables)
    assert len(records(out)) == 10
    run = ["run", "coop", "--dataset", card, "--shots", "1,2", "--epochs", "1", "--set", "lr=0.001"]
    for benchmark in many["benchmark"]:
        for n_ctx in (2, 4):
            again = [*run, "--set", f"n_ctx={n_ctx}", "--benchmark", benchmark, "--out", str(out)]
            assert call(*again, "--dry-run") == 0
            assert "2 trials, 2 done" in capsys.readouterr().out


def test_flags_win_over_the_file(
    make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = str(make_dataset())
    file = write(
        tmp_path,
        grid={"coop": {"epochs": [3, 4], "n_ctx": [2, 4]}},
        suite="pocket",
        datasets=["icons", "digits"],
        seeds=[1, 2, 3],
        benchmark="fewshot",
        out=str(tmp_path / "file"),
    )
    flags = ["--seeds", "7", "--shots", "1", "--dataset", card, "--epochs", "5", "--set", "n_ctx=3"]
    assert call("sweep", file, *flags, "--benchmark", "base2novel", "--dry-run") == 0
    table = capsys.readouterr().out
    assert re.findall(r"coop \((.*)\) on (\w+), 1 shots, seed (\d)", table) == [
        ("epochs=5 n_ctx=3", "colours", "7")
    ]
    assert call("sweep", file, "--suite", "pocket", "--seeds", "1", "--shots", "1", "--dry-run") == 0
    assert "20 trials" in capsys.readouterr().out  # 5 datasets: those of the suite, not those of the file
    plain = [*arguments(Path(card), tmp_path / "flag"), "--limit", "1", "--seeds", "1"]
    assert call("sweep", file, *plain) == 0
    assert len(records(tmp_path / "flag")) == 2
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grid": {"mmlop": {"rnak": 2}}}, "grid.mmlop.rnak: Unknown setting of mmlop 'rnak'. Did you mean"),
        ({"grid": {"mmlp": {}}}, "grid.mmlp: Unknown method 'mmlp'. Did you mean 'mmlop'?"),
        ({"grid": {"mmlop-rank2": {"rnk": 1}}}, "grid.mmlop-rank2.rnk: Unknown setting of mmlop 'rnk'"),
        (
            {"grid": {"mmlop": {"rank": [1, "two"]}}},
            "grid.mmlop.rank is not valid: 1: input should be a valid",
        ),
        ({"grid": {"mmlop": {"rank": []}}}, "grid.mmlop.rank: value should have at least 1 item"),
        ({"grid": {"mmlop": 3}}, "grid.mmlop: input should be a valid dictionary (got 3)"),
        ({"grid": {}}, "grid: dictionary should have at least 1 item"),
        ({"seeds": [1]}, "grid: field required"),
        ({"grid": {"coop": None}, "sed": [1]}, "sed: Unknown key 'sed'. Did you mean 'seeds'?"),
        ({"grid": {"coop": None}, "seeds": "one"}, "seeds.0: input should be a valid integer"),
        ({"grid": {"coop": None}, "benchmark": "fewshots"}, "benchmark.fewshots: Unknown benchmark"),
        (
            {"grid": {"coop": None}, "preset": "papers"},
            "preset.papers: Unknown preset 'papers'. Did you mean",
        ),
        (["coop"], "must map keys to values"),
    ],
)
def test_mistakes_name_the_place_in_the_file(
    values: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(values))
    assert call("sweep", str(file)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"Error: The sweep {file}")
    assert message in error


def doubling(levels: int, indent: str = "  ") -> str:
    """YAML of one kB that stands for 10 ** ``levels`` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "".join(f"{indent}{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {coop: {}}\nbenchmark:\n" + doubling(12), "aliases (*name) stand for too much"),
        ("grid: {coop: {}}\nbenchmark: &a [*a]", "aliases (*name) stand for too much"),
        (f"s: &s {'x' * 1000}\nt: [{','.join(['*s'] * 300)}]", "aliases (*name) stand for too much"),
        ("grid: {coop: {}}\n" + "# \n" * 100_000, "larger than 256 kB"),
        ("grid:\n" + "- " * 5000, "maximum recursion depth"),
        ("seeds: 1" + "0" * 5000, "a number of 5001 characters"),
        ("seeds: 1" + ":1" * 100_000, "a number of 200001 characters"),
        ("seeds: !!bool perhaps", "KeyError: 'perhaps'"),
    ],
)
def test_a_small_file_that_stands_for_much(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same reader is used for cards and on the command line."""
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    for line in (["sweep", str(path)], ["run", "zeroshot", "--dry-run", "--dataset", str(path)]):
        assert call(*line) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error) < 1000
    assert call("run", "coop", "--dataset", "icons", "--dry-run", "--set", f"lr={text}") == 2
    assert len(capsys.readouterr().err) < 1000


def test_aliases_that_save_writing_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("grid:\n  coop: &usual {lr: [0.1, 0.2]}\n  kgcoop: *usual\n")
    found = read_sweep(path)
    assert found.grid["coop"] == found.grid["kgcoop"] == {"lr": (0.1, 0.2)}


def test_wrong_values_are_told_in_brief(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text(
        f"grid: {{coop: {{}}}}\npreset: [{'a,' * 9000}]\nseeds: [{','.join(['a'] * 5000)}]\n"
    )
    assert call("sweep", str(tmp_path / "x.yaml")) == 2
    error = capsys.readouterr().err
    assert "(got ['a', 'a', 'a'," in error
    assert "and 4991 more" in error
    assert len(error) < 2000
    (tmp_path / "x.yaml").write_text(f"grid: {{{'m' * 50_000}: {{}}}}\n")
    assert call("sweep", str(tmp_path / "x.yaml")) == 2
    assert len(capsys.readouterr().err) < 2000


@pytest.mark.parametrize("key", ["n_ctx", "batch_size", "epochs", "steps"])
def test_a_slip_of_zeros(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["run", "coop", "--dataset", "icons", "--shots", "1", "--dry-run"]
    assert call(*line, "--set", f"{key}=1000000000000") == 2
    assert f"{key}: input should be less than or equal to 1000000" in capsys.readouterr().err


def test_a_grid_too_large_to_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before any combination is made."""
    values = {
        key: list(range(1, 1000)) for key in ("n_ctx", "batch_size", "epochs", "steps", "warmup_epochs")
    }
    file = write(tmp_path, grid={"coop": values}, datasets="icons")
    assert call("sweep", file, "--dry-run") == 2
    assert "That makes more than 100,000 trials; give fewer values" in capsys.readouterr().err
    line = ["run", "coop", "zeroshot", "--dataset", "icons", "--benchmark", "fewshot", "--dry-run"]
    assert call(*line, "--seeds", ",".join(map(str, range(20_000)))) == 2
    assert "more than 100,000 trials" in capsys.readouterr().err
    assert call(*line, "--shard", f"1/{'9' * 5000}") == 2
    assert len(capsys.readouterr().err) < 1000


def test_files_that_are_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sweep", str(tmp_path / "gone.yaml")) == 2
    assert "Cannot read the sweep" in capsys.readouterr().err
    (tmp_path / "x.yaml").write_text("grid: [")
    assert call("sweep", str(tmp_path / "x.yaml")) == 2
    assert "is not valid YAML" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", ""])
def test_a_shard_that_is_none(shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["run", "zeroshot", "--dataset", "digits", "--out", str(tmp_path), "--dry-run"]
    assert call(*line, "--shard", shard) == 2
    assert f"--shard takes I/N with I from 1 to N, such as 3/16, not {shard!r}." in capsys.readouterr().err


def test_shards_of_a_run_make_up_the_run(
    make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["run", "zeroshot", "coop", "tip_adapter", *arguments(make_dataset(), out, "--seeds", "1,2")]
    sizes = []
    for number in (1, 2, 3):
        before = len(records(out))
        assert call(*line, "--shard", f"{number}/3") == 0
        sizes.append(len(records(out)) - before)
    assert sizes == [2, 2, 1]  # 5 trials: disjoint, or fewer records would be new
    capsys.readouterr()
    assert call(*line, "--dry-run") == 0
    assert "5 trials, 5 done" in capsys.readouterr().out
    assert call(*line, "--shard", "6/6") == 0  # an array may be larger than the list
    assert "Shard 6/6 contains no trials." in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_sweeps(file: Path) -> None:
    setup = prepare(parse_sweep(yaml.safe_load(file.read_text()), str(file)), RunOptions())
    assert len(setup.trials()) > 1
    assert f"examples/{file.name}" in file.read_text()  # says how it is run
