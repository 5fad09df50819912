"""The command line end to end, on tiny data with the embedded backbone; every mistake is one sentence."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from promptbench import cli
from promptbench.methods._registry import methods

COMMANDS: list[list[str]] = [
    *([], ["run"], ["sweep"], ["ablate"], ["profile"], ["compare"], ["report"], ["regress"]),
    *(["ls"], ["show"], ["verify"], ["cache", "ls"], ["cache", "clear"]),
    *(["data", "check"], ["data", "prepare"], ["data", "import-draw"]),
]


def call(*arguments: str) -> int:
    """Run the command line in this process; its exit code."""
    argv, sys.argv = sys.argv, ["promptbench", *arguments]
    try:
        cli.main()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0
    finally:
        sys.argv = argv
    return 0


def test_help_is_quick() -> None:
    """By the processor time it takes: on an idle machine that is the time until the answer."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "promptbench", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy_and_ends_with_examples(command: list[str]) -> None:
    code = (
        "import atexit, sys; from promptbench import cli\n"
        "heavy = {'torch', 'open_clip', 'numpy', 'pandas', 'matplotlib', 'sklearn', 'yaml'}\n"
        "atexit.register(lambda: print(sorted(heavy & sys.modules.keys())))\n"
        f"sys.argv = ['promptbench', *{command}, '--help']; cli.main()"
    )
    environment = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    assert lines.pop() == "[]"
    examples = lines[lines.index("Examples") + 1 :]
    assert len(examples) >= 2
    assert all("promptbench " in line for line in examples)


GROUPS = ("Data", "Training", "Hardware", "Output")


@pytest.mark.parametrize("command", ["run", "sweep", "ablate"])
def test_help_fits_a_narrow_terminal_in_groups(command: str) -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "promptbench", command, "--help"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in done.stdout
    groups = {title: i for i, line in enumerate(lines) if (title := line.strip("╭╮─ "))}
    places = [groups[title] for title in GROUPS]
    assert places == sorted(places)
    for name, group in (
        ("--allow-nonstandard-split", "Data"),
        ("--shots", "Data"),
        ("--set", "Training"),
        ("--per-gpu", "Hardware"),
        ("--dry-run", "Output"),
    ):
        (line,) = [i for i, text in enumerate(lines) if text.startswith(f"│ {name} ")]
        assert max((at, title) for title, at in groups.items() if at < line and title in GROUPS)[1] == group


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "coop", "mmlop-r"], {"mmlop-rank2", "mmlop-rank4"}),
        (["run", "coop", "--dataset", "ico"], {"icons"}),
        (["run", "coop", "--benchmark", "fe"], {"fewshot"}),
        (["ablate", "zeros"], {"zeroshot"}),
        (["sweep", "a.yaml", "--backbone", "ViT-B-16-qui"], {"ViT-B-16-quickgelu"}),
        (["compare", "--plot", "trade"], {"tradeoff"}),
        (["compare", "--format", "m"], {"md"}),
        (["ls", "back"], {"backbones"}),
    ],
)
def test_the_shell_completes_names(words: list[str], expected: set[str]) -> None:
    words = ["promptbench", *words]
    environment = {
        **os.environ,
        "_PROMPTBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    code = (
        "import atexit, sys; from promptbench import cli\n"
        "atexit.register(lambda: print(*({'torch', 'open_clip'} & sys.modules.keys()), file=sys.stderr))\n"
        "sys.argv = ['promptbench']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert set(done.stdout.split()) == expected
    assert done.stderr == "\n"  # an answer within a key press needs no torch


def test_completed_names_are_those_that_can_be_used() -> None:
    from promptbench.cli import names
    from promptbench.clip.backbones import backbone_shape
    from promptbench.methods._registry import recipes

    assert names.methods() == sorted(recipes())
    assert all(backbone_shape(name).text_layers for name in names.backbones())


def test_tables_and_data_do_not_wait_for_torch() -> None:
    code = (
        "import sys\n"
        "from promptbench.analysis import ablation, comparison, confusions, summary, verification\n"
        "from promptbench.data import check, prepare\n"
        "from promptbench.reporting import pairs, plots, sentences\n"
        "from promptbench.reporting.html import report\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def arguments(card: Path, out: Path, *more: str) -> list[str]:
    return ["--dataset", str(card), "--shots", "2", "--epochs", "1", "--out", str(out), *more]


def records(out: Path) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(out.rglob("record.json"))]


def test_run_compare_show(make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card, out = make_dataset(), tmp_path / "out"
    five = ["run", "zeroshot", "coop", "ivlp", "maple", "mmlop", *arguments(card, out, "--seeds", "1,2")]
    assert call(*five, "--dry-run") == 0
    assert "9 trials, 0 done, 9 to run" in capsys.readouterr().out
    assert not out.exists()

    assert call(*five) == 0
    shown = capsys.readouterr()
    for name in ("zeroshot", "coop", "ivlp", "maple", "mmlop"):
        assert re.search(rf"{name}.* \d+\.\d\d", shown.out), shown.out
    assert re.search(r"epoch 1/1  loss \d", shown.err)
    found = records(out)
    assert len(found) == 9
    for record in found:
        classes = {counts["classes"]: counts for counts in record["evaluations"]}
        assert set(classes) == {"base", "novel"}
        assert classes["base"]["total"] == 9
        assert classes["novel"]["total"] == 6
        assert record["environment"]["device"] == "cpu"
        assert record["trial"]["precision"] == "fp32"
        drawn = {"draw"} if record["trial"]["shots"] else set()
        assert set(record["hashes"]) == {"weights", "data", "code"} | drawn
    folder = next(out.rglob("mmlop/**/record.json")).parent
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "prompts.safetensors",
        "predictions.safetensors",
        "record.json",
    }

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    assert call(*five) == 0
    again = capsys.readouterr()
    assert again.err.count("already done") == 9
    assert again.out == shown.out
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    assert call("run", "zeroshot", *arguments(card, out), "--force") == 0
    assert sum(stamps[path] != path.stat().st_mtime_ns for path in stamps) == 1
    assert call(*five, "--dry-run") == 0
    assert "9 trials, 9 done, 0 to run" in capsys.readouterr().out

    assert call("compare", "--out", str(out), "--plot", "tradeoff", "--metric", "base") == 0
    assert {p.name for p in (out / "plots").iterdir()} == {
        f"tradeoff-base.{k}" for k in ("png", "pdf", "csv")
    }
    for style in ("md", "csv", "latex", "json"):
        capsys.readouterr()
        assert call("compare", "--out", str(out), "--format", style) == 0
        assert "mmlop" in capsys.readouterr().out

    assert call("show", str(folder)) == 0
    assert call("show", json.loads((folder / "record.json").read_text())["hash"][:10], "--out", str(out)) == 0
    text = capsys.readouterr().out
    assert text.count("trainable parameters") == 2
    assert text.count("the digest and 4 files beside the record match") == 2
    assert "2,196" in text
    (folder / "prompts.safetensors").write_bytes(b"")
    assert call("show", str(folder)) == 0
    assert "prompts.safetensors was changed or cut off after it was written" in capsys.readouterr().out


def test_fewshot_and_variants(make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card, out = make_dataset(), tmp_path / "out"
    common = ["run", "zeroshot", "coop", "--benchmark", "fewshot", *arguments(card, out)]
    assert call(*common, "--shots", "1,2", "--set", "coop.n_ctx=2", "--limit", "1") == 0
    shown = capsys.readouterr().out
    assert "coop (epochs=1 n_ctx=2)" in shown
    found = records(out)
    assert sorted(r["trial"]["shots"] for r in found) == [0, 1, 2]
    # A setting goes to the methods that have it; how others train does not change zero-shot.
    assert call(*common, "--shots", "1", "--set", "n_ctx=2", "--set", "lr=0.1", "--dry-run") == 0
    assert re.search(
        r"zeroshot on colours +-* ?.*\n.*coop \(epochs=1 lr=0.1 n_ctx=2\)", capsys.readouterr().out
    )
    assert all(r["evaluations"][0]["total"] == 5 for r in found)
    assert call("compare", "--benchmark", "fewshot", "--out", str(out)) == 2  # smoke runs are not compared
    assert "No records of fewshot" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["methods", "datasets", "benchmarks", "backbones", "figures"])
def test_listings(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ls", what) == 0
    expected = {
        "methods": ["mmlop", "2602.21397"],
        "datasets": ["icons", "58", "digits"],
        "benchmarks": ["base2novel", "fewshot"],
        "backbones": ["pocket", "ViT-B-16-quickgelu"],
        "figures": ["tradeoff", "critical-difference"],
    }
    out = capsys.readouterr().out
    assert all(word in out for word in expected[what])


def test_listings_through_a_pipe_are_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    from promptbench.data.cards import cards

    assert call("ls", "datasets") == 0
    lines = capsys.readouterr().out.splitlines()
    for card, _ in cards().values():
        assert any(card.name in line and card.template in line and card.title in line for line in lines)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments_", "message"),
    [
        (["run", "mmlp"], "Unknown method 'mmlp'. Did you mean 'mmlop'?"),
        (
            ["run", "mmlop", "--benchmark", "base2new"],
            "Unknown benchmark 'base2new'. Did you mean 'base2novel'?",
        ),
        (["run", "mmlop", "--dataset", "iconz"], "Unknown dataset 'iconz'. Did you mean 'icons'?"),
        (["run", "mmlop", "--suite", "pockets"], "Unknown suite 'pockets'. Did you mean 'pocket'?"),
        (["run", "mmlop", "--set", "rnk=2"], "Unknown setting of mmlop 'rnk'. Did you mean 'rank'?"),
        (["run", "mmlop", "--set", "rank=two"], "rank: input should be a valid integer"),
        (["run", "mmlop", "--set", "rank"], "--set takes KEY=VALUE, not 'rank'."),
        (["run", "mmlop", "--set", "coop.rank=2"], "Unknown method in --set 'coop'."),
        (["run", "mmlop", "--set", "depth=13"], "mmlop: depth=13 but this backbone has 12 layers"),
        (["run", "coop", "--set", "n_ctx=40"], "but this backbone reads 24; shorten the class name"),
        (
            ["run", "mmlop", "--shots", "19", "--dataset", "symbols"],
            "fewer than 19 shots; use --shots 18 or less.",
        ),
        (["run", "mmlop", "--shots", "0"], "--shots takes numbers from 1 to 2147483647, not 0."),
        (["run", "mmlop", "--seeds", "one"], "--seeds takes numbers such as 1,2,3, not 'one'."),
        (["run", "mmlop", "--seeds", "99999999999999999999"], "--seeds takes numbers from 0 to 2147483647"),
        (["run", "mmlop", "--shots", ""], "--shots takes numbers such as 1,2,3, not ''."),
        (["run", "ivlp", "--set", "n_ctx=0", "--set", "n_ctx_vision=0"], "leave nothing to train"),
        (["run", "mmlop", "--split", "tset"], "Unknown value of --split 'tset'. Did you mean 'test'?"),
        (["run", "mmlop", "--backbone", "ViT-B-16"], "needs weights: add `--pretrained laion400m_e31`"),
        (["run", "mmlop", "--backbone", "hf-hub:timm/x"], "Unknown backbone 'hf-hub:timm/x'."),
        (["run", "mmlop", "--pretrained", "gone.pt"], "There is no weights file 'gone.pt'"),
        (["run", "mmlop", "--dataset", "gone.yaml"], "Cannot read the dataset card gone.yaml"),
        (["ls", "methodz"], "Unknown value of LIST 'methodz'. Did you mean 'methods'?"),
        (["compare", "--format", "xls"], "Unknown value of --format 'xls'."),
        (["show", "0000"], "No run under"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments_: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if arguments_[0] == "ls" else ["--out", str(tmp_path / "out")]
    assert call(*arguments_, *out) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in error


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_device_that_is_not_there(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMPTBENCH_DEVICE", device)
    assert call("run", "zeroshot", "--out", str(tmp_path)) == 2
    assert f"PROMPTBENCH_DEVICE={device} names no device of this machine" in capsys.readouterr().err


def test_two_datasets_of_one_name(
    make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_dataset()
    second = first.parent / "again.yaml"
    second.write_text(first.read_text())
    assert call("run", "zeroshot", "--dataset", str(second), *arguments(first, tmp_path / "out")) == 2
    assert "Two datasets are called 'colours'" in capsys.readouterr().err


def test_val_split_and_changed_record(
    make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, out = make_dataset(), tmp_path / "out"
    assert call("run", "zeroshot", *arguments(card, out), "--split", "val") == 0
    (record,) = records(out)
    assert [(c["split"], c["total"]) for c in record["evaluations"]] == [("val", 6), ("val", 4)]
    assert record["peak_memory_bytes"] > 100 * 2**20
    (path,) = out.rglob("record.json")
    path.write_text(path.read_text().replace(record["hash"], "0" * 64))
    assert call("run", "zeroshot", *arguments(card, out), "--split", "val") == 0
    assert "already done" not in capsys.readouterr().err  # a record of something else is no record
    assert records(out)[0]["hash"] == record["hash"]


def test_output_folder_that_cannot_be_written(
    make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert call("run", "zeroshot", *arguments(make_dataset(), tmp_path / "file" / "out")) == 2
    assert "Cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"cat": (9, 9, 9)}, "classification needs at least two"),
        ({"cat": (9, 9, 9), "dog": (90, 0, 0)}, "has 2 classes; base2novel needs at least 4."),
        ({"cat": (9, 9, 9), "Cat": (90, 0, 0)}, "two classes are called"),
    ],
)
def test_datasets_that_are_no_benchmark(
    make_dataset: Any, classes: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "zeroshot", *arguments(make_dataset(classes=classes), tmp_path / "out")) == 2
    assert message in capsys.readouterr().err


def test_truncated_weights(make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from promptbench.clip.backbones import pocket_folder

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((pocket_folder() / "pocket.safetensors").read_bytes()[:100_000])
    assert (
        call("run", "zeroshot", *arguments(make_dataset(), tmp_path / "out", "--pretrained", str(cut))) == 2
    )
    assert "the file is truncated or not a weights file; get it again." in capsys.readouterr().err


def test_finished_work_outlives_a_failure(
    make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A corrupt picture, then a loss that is not a number: the other trials are recorded, exit code 2."""
    card, out = make_dataset(), tmp_path / "out"
    bad = make_dataset("broken")
    (bad.parent / "images/0/test0.png").write_bytes(b"no picture")
    both = ["--dataset", str(bad), *arguments(card, out)]
    assert call("run", "zeroshot", "coop", *both) == 2
    shown = capsys.readouterr()
    assert "images/0/test0.png' of broken cannot be read (not an image of a known format)" in shown.err
    assert "(2 trials failed)" in shown.err
    assert "colours" in shown.out
    assert [r["trial"]["dataset"] for r in records(out)] == ["colours", "colours"]

    nan = ["--set", "lr=1e30", "--set", "warmup_epochs=0", "--set", "weight_decay=1e20"]
    assert call("run", "mmlop", *arguments(card, out), *nan) == 2
    message = r"The prompts of mmlop became -?(inf|nan) at epoch 1, step 1, learning rate 1e\+30"
    assert re.search(message, capsys.readouterr().err)
    assert len(records(out)) == 2
    assert call("run", "zeroshot", "coop", *arguments(card, out)) == 0
    assert capsys.readouterr().err.count("already done") == 2


def test_force_keeps_the_old_record_until_there_is_a_new_one(make_dataset: Any, tmp_path: Path) -> None:
    card, out = make_dataset(), tmp_path / "out"
    assert call("run", "ivlp", *arguments(card, out)) == 0  # reads test pictures itself, not from the cache
    before = records(out)
    picture = card.parent / "images/0/test0.png"
    picture.write_bytes(b"x" * picture.stat().st_size)  # the same trial by its fingerprint, but unreadable
    assert call("run", "ivlp", *arguments(card, out), "--force") == 2
    assert records(out) == before


def test_every_method_runs(make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them for an epoch, and what the table says of classes that were not trained on."""
    card, out, names = make_dataset(), tmp_path / "out", sorted(methods())
    assert call("run", *names, "--benchmark", "base2novel", *arguments(card, out)) == 0
    table = " ".join(capsys.readouterr().out.split())
    found = {record["trial"]["method"]: record for record in records(out)}
    assert sorted(found) == names
    for name, kind in methods().items():
        assert found[name]["notes"] == ([f"{name}: {kind.fallback}"] if kind.fallback else [])
        assert kind.fallback in table
        assert found[name]["trial"]["shots"] == (2 if kind.uses_shots else 0)
        for benchmark, reason in kind.unfit.items():
            assert call("run", name, "--benchmark", benchmark, *arguments(card, out)) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"Error: {name} is not for {benchmark}: {reason}")
    assert call("run", "taskres", "--benchmark", "fewshot", *arguments(card, tmp_path / "all")) == 0
    assert records(tmp_path / "all")[0]["notes"] == []


def test_transfer_benchmarks(make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = make_dataset("source"), tmp_path / "out"
    targets = [part for name in ("one", "two") for part in ("--dataset", str(make_dataset(name)))]
    many = ["--benchmark", "crossdataset", "--source", str(source), *targets, "--shots", "2", "--epochs", "1"]
    assert call("run", "coop", "zeroshot", *many, "--seeds", "1,2", "--out", str(out)) == 0
    assert "Trained on source, which is no part of the average." in capsys.readouterr().out
    found = records(out)
    assert len(found) == 3  # one training per seed serves all targets
    for record in found:
        assert [counts["dataset"] for counts in record["evaluations"]] == ["source", "one", "two"]
        assert {counts["total"] for counts in record["evaluations"]} == {15}
    assert call("compare", "--benchmark", "crossdataset", "--out", str(out), "--format", "csv") == 0
    assert (
        call("run", "coop", "--benchmark", "crossdataset", "--source", str(source), "--dataset", str(source))
        == 2
    )
    assert "needs targets other than its source" in capsys.readouterr().err
    assert call("run", "coop", "--source", str(source), "--dataset", str(source)) == 2
    assert "--source is for transfer benchmarks" in capsys.readouterr().err


def test_domains_are_drawing_styles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded suite's own domain shift: one style to the others."""
    assert call("run", "zeroshot", "--benchmark", "domain", "--limit", "1", "--out", str(tmp_path)) == 0
    (record,) = records(tmp_path)
    names = [counts["dataset"] for counts in record["evaluations"]]
    assert names == ["icons:outline", "icons:solid", "icons:duotone", "icons:colour", "icons:pixel"]
    assert record["evaluations"][0]["total"] == 50
    assert call("run", "zeroshot", "--dataset", "icons:crayon", "--out", str(tmp_path)) == 2
    assert "style of icons" in capsys.readouterr().err


def test_standard_datasets_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests import mini

    root, out = mini.build(tmp_path / "data"), tmp_path / "out"
    common = ["--data-root", str(root), "--shots", "1", "--epochs", "1", "--limit", "2", "--out", str(out)]
    two = ["--dataset", "dtd", "--dataset", "eurosat"]
    assert call("run", "mmlop", "coop", *two, *common) == 2
    assert "--allow-nonstandard-split" in capsys.readouterr().err
    common.append("--allow-nonstandard-split")
    assert call("run", "mmlop", "coop", *two, *common) == 0
    assert call("run", "coop", "--benchmark", "fewshot", *two, *common) == 0
    assert (
        call(
            "run",
            "coop",
            "--benchmark",
            "crossdataset",
            "--preset",
            "paper",
            "--backbone",
            "pocket",
            *two,
            *common,
        )
        == 0
    )
    assert call("run", "coop", "--benchmark", "domain", "--suite", "standard", *common) == 0
    for record in records(out):
        assert all("non-standard split" in label for label in record["labels"])
        assert record["labels"]
    domain = next(record for record in records(out) if record["trial"]["benchmark"] == "domain")
    sizes = {counts["dataset"]: len(counts["per_class"]) for counts in domain["evaluations"]}
    assert sizes == {"imagenet": 6, "imagenetv2": 6, "imagenet_sketch": 6, "imagenet_a": 2, "imagenet_r": 3}


def test_own_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests import mini

    for label, name in enumerate(("red", "green", "blue", "grey")):
        for number in range(8):
            mini.picture(tmp_path / "mine" / name / f"{number}.png", 50 * label)
    common = [
        "--dataset",
        str(tmp_path / "mine"),
        "--template",
        "a {} square",
        "--shots",
        "2",
        "--epochs",
        "1",
    ]
    for benchmark in ("base2novel", "fewshot"):
        assert call("run", "coop", "--benchmark", benchmark, *common, "--out", str(tmp_path / "out")) == 0
    common = [
        *common[2:],
        "--out",
        str(tmp_path / "out"),
        "--source",
        str(tmp_path / "mine"),
        "--dataset",
        "digits",
    ]
    for benchmark in ("crossdataset", "domain"):
        assert call("run", "coop", "--benchmark", benchmark, *common, "--limit", "1") == 0
    assert len(records(tmp_path / "out")) == 4
    assert call("run", "coop", *common[:1], "no place", "--dataset", str(tmp_path / "mine")) == 2
    assert "--template needs {}" in capsys.readouterr().err


def test_paper_preset_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests import mini

    names = {"eurosat": [f"class {i}" for i in range(10)], "dtd": [f"texture {i}" for i in range(47)]}
    for name, source, images in (
        ("eurosat", "split_zhou_EuroSAT.json", "2750"),
        ("dtd", "split_zhou_DescribableTextures.json", "images"),
    ):
        mini.zhou(tmp_path / name, images, source, mini.per_class(names[name], "{name}/{number}.jpg"))
    two = ["--dataset", "dtd", "--dataset", "eurosat", "--data-root", str(tmp_path), "--shots", "3"]
    assert call("run", "mmlop", "coop", "--preset", "paper", *two, "--dry-run", "--out", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "12 trials, 0 done, 12 to run" in text
    assert text.count("GiB") == 12


def test_data_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests import mini

    assert call("data", "check", "icons", "digits") == 0
    root = mini.build(tmp_path / "data")
    (root / "dtd" / "split_zhou_DescribableTextures.json").unlink()
    assert call("data", "check", "dtd", "oxford_pets", "--data-root", str(root)) == 1
    text = capsys.readouterr().out
    assert str(root / "dtd" / "split_zhou_DescribableTextures.json") in text
    assert "https://www.robots.ox.ac.uk/~vgg/data/dtd/" in text
    assert call("data", "check", "dtdd") == 2
    assert call("data", "prepare", "--data-root", str(root)) == 2  # none can be used as it is
    assert "imagenet_a: not ready" in capsys.readouterr().out


def test_verify_needs_a_published_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", "--backbone", "pocket", "--out", str(tmp_path)) == 2
    assert "Nothing was published for the backbone 'pocket'" in capsys.readouterr().err


def test_words_the_embedded_backbone_lacks(
    make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class names whose words have no embedding all look alike: tables say which."""
    names = ("red square", "turquoise square", "sea", "crimson")
    card = make_dataset("some", dict.fromkeys(names, (10, 20, 30)))
    assert call("run", "zeroshot", *arguments(card, tmp_path / "out")) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "some: the backbone has no embedding for words of turquoise square, crimson" in table


def test_verify_takes_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero-shot runs on the datasets that are there; those that are not cost a line, and no comparison."""
    from types import SimpleNamespace

    from promptbench.data import dataset as data
    from promptbench.errors import UserError
    from promptbench.execution.execute import Outcome
    from tests.test_compare import published_record

    record = published_record("maple", "dtd", 80, 60)
    record.write(record.trial.folder(tmp_path))
    verify = ["verify", "--out", str(tmp_path), "--data-root", str(tmp_path), "--format", "csv"]
    ran: list[Any] = []

    def prepare(sweep: Any, options: Any) -> Any:
        ran.append(sweep)
        return SimpleNamespace(trials=list, run=lambda trials: Outcome())

    monkeypatch.setattr("promptbench.checks.verify.prepare", prepare)
    assert call(*verify) in (0, 1)  # nothing is there
    shown = capsys.readouterr()
    assert not ran
    assert "maple,dtd,16,base" in shown.out
    assert shown.err.count("zero-shot left out: ") == 11

    def load(name: str, *_: Any) -> Any:
        if name == "food101":
            return SimpleNamespace(nonstandard="non-standard split: small")
        if name not in ("dtd", "imagenet"):
            raise UserError(f"{name} is missing.")
        return SimpleNamespace(nonstandard="")

    monkeypatch.setattr(data, "load", load)
    assert call(*verify) in (0, 1)
    shown = capsys.readouterr()
    assert [(set(sweep.datasets), sweep.pretrained) for sweep in ran] == [({"dtd", "imagenet"}, "openai")]
    assert "zero-shot left out: food101: non-standard split: small" in shown.err
    assert shown.out.startswith("method,dataset,")
    assert call(*verify, "--benchmark", "crossdataset") == 2  # one trial over all: not with some missing
    assert len(ran) == 1
