"""The public API: lazy, the trials of the command line, classifiers that answer as their records say."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

import promptbench as pb
from promptbench.data import dataset as data
from promptbench.data.views import Views
from tests.test_cli import arguments, call

ROOT = Path(__file__).parent.parent


def tiny(card: Path, out: Path) -> dict[str, Any]:
    return {"dataset": card, "shots": 2, "epochs": 1, "out": out, "quiet": True}


def test_import_loads_nothing_heavy_and_every_name_is_there() -> None:
    code = (
        "import sys, promptbench as pb\n"
        "heavy = {'torch', 'open_clip', 'numpy', 'pandas', 'yaml', 'pydantic', 'typer', 'rich'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
        "assert all(getattr(pb, name).__doc__ for name in pb.__all__ if name != '__version__')\n"
        "assert 'torch' not in sys.modules and set(pb.__all__) <= set(dir(pb))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        pb.trian  # noqa: B018


def test_only_the_command_line_imports_typer() -> None:
    files = [path for path in (ROOT / "promptbench").rglob("*.py") if path.parent.name != "cli"]
    assert len(files) > 50
    for path in files:
        imports = re.findall(r"^ *(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
        wrong = [one for one in imports if re.match(r"typer\b|promptbench\.cli\b", one)]
        assert not wrong or path.name == "__main__.py", path


def test_listings() -> None:
    assert {"coop", "mmlop", "zeroshot"} < set(pb.list_methods()) < set(pb.list_methods(variants=True))
    assert "icons" in pb.list_datasets()
    assert "base2novel" in pb.list_benchmarks()


def test_run_is_the_command(make_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One trial gives a record, several a list; the command finds them finished."""
    card, out = make_dataset(), tmp_path / "out"
    record = pb.run("coop", seed=1, settings={"n_ctx": 2}, **tiny(card, out))
    assert record.trial.settings["n_ctx"] == 2  # type: ignore[union-attr]
    several = pb.run(["coop", "zeroshot"], seeds=[1, 2], settings={"coop.n_ctx": 2}, **tiny(card, out))
    assert isinstance(several, list)
    assert [one.trial.label for one in several] == [
        "coop (epochs=1 n_ctx=2) on colours, 2 shots, seed 1",
        "coop (epochs=1 n_ctx=2) on colours, 2 shots, seed 2",
        "zeroshot on colours",
    ]
    assert several[0] == record
    assert capsys.readouterr() == ("", "")
    line = ["run", "coop", "zeroshot", *arguments(card, out, "--seeds", "1,2", "--set", "n_ctx=2")]
    assert call(*line) == 0
    assert capsys.readouterr().err.count("already done") == 3

    frame = pb.records(out)
    assert len(frame) == 2 * 3
    assert set(frame["classes"]) == {"base", "novel"}
    assert (frame["accuracy"] == 100 * frame["correct"] / frame["total"]).all()
    assert set(frame["hash"]) == {one.hash for one in several}
    summary = pb.compare(out)
    base = frame[(frame["method"] == "coop") & (frame["classes"] == "base")]["accuracy"].mean()
    assert summary[summary["method"].str.startswith("coop")]["base"].tolist() == [pytest.approx(base)]
    pairs = pb.compare(out, control="zeroshot")
    assert set(pairs["metric"]) == {"base", "novel", "hm"}
    assert all("zeroshot" in {row.method, row.other} for row in pairs.itertuples())


def test_records_of_nothing_are_a_table_without_rows(tmp_path: Path) -> None:
    frame = pb.records(tmp_path)
    assert len(frame) == 0
    assert {"method", "dataset", "accuracy"} < set(frame)


def test_mistakes_say_what_to_do(make_dataset: Any, tmp_path: Path) -> None:
    usual = tiny(make_dataset(), tmp_path / "out")
    for message, mistake in (
        ("Unknown method 'cop'. Did you mean 'coop'?", lambda: pb.run("cop", **usual)),
        ("Unknown setting of coop 'n_ctxx'", lambda: pb.run("coop", settings={"n_ctxx": 1}, **usual)),
        ("Give seed or seeds, not both.", lambda: pb.run("coop", seed=1, seeds=[1], **usual)),
        ("seeds.0: input should be greater than or equal to 0", lambda: pb.run("coop", seed=-1, **usual)),
        ("Unknown benchmark 'base'", lambda: pb.run("coop", benchmark="base", **usual)),
        ("Unknown value of --split 'tset'", lambda: pb.run("coop", split="tset", **usual)),
        ("Unknown dataset 'icon'. Did you mean 'icons'?", lambda: pb.load_dataset("icon")),
        ("Unknown backbone 'pockt'. Did you mean 'pocket'?", lambda: pb.load_clip("pockt")),
        ("No records of base2novel", lambda: pb.compare(tmp_path)),
        ("There is no record in", lambda: pb.load(tmp_path)),
    ):
        with pytest.raises(pb.UserError) as found:
            mistake()
        assert message in str(found.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def trained(make_dataset: Any, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The card, and by method the record of a short training."""
    card = make_dataset()
    found = pb.run(["coop", "ivlp", "tip_adapter", "zeroshot"], seed=1, **tiny(card, tmp_path / "out"))
    assert isinstance(found, list)
    return card, {record.trial.method: record for record in found}


def test_a_classifier_answers_as_its_record_says(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    card, records = trained
    dataset = data.load(str(card))
    for record in records.values():
        folder = record.trial.folder(tmp_path / "out")
        classifier = pb.load(folder / "prompts.safetensors", dataset=card)
        assert classifier.classnames == dataset.classes("base").names
        items = dataset.items("test", "base")
        images = [dataset.image(item.path) for item in items]
        logits = classifier(images)
        assert logits.shape == (9, 3)
        counts = record.evaluations[0]
        right = [
            name == classifier.classnames[i.label]
            for name, i in zip(classifier.predict(images), items, strict=True)
        ]
        assert sum(right) == counts.correct
        assert torch.allclose(classifier.probabilities(images).sum(dim=-1), torch.ones(9))
        views = Views(**classifier.method.clip.preprocess)
        pixels = views.normalise(torch.stack([views.test(image) for image in images]))
        assert torch.equal(classifier(pixels), logits)
        assert classifier([]).shape == (0, 3)
    novel = pb.load(record.trial.folder(tmp_path / "out"), dataset=card, classes=["red square", "sea"])
    assert set(novel.predict(Image.new("L", (9, 30)))) <= {"red square", "sea"}
    with pytest.raises(pb.UserError, match=r"must be a tensor \[B, 3, "):
        novel(torch.zeros(1, 3, 5, 5))


def test_what_is_not_as_it_was_is_no_classifier(
    trained: tuple[Path, dict[str, Any]], make_dataset: Any, tmp_path: Path
) -> None:
    card, records = trained
    folder = records["coop"].trial.folder(tmp_path / "out")
    with pytest.raises(pb.UserError, match=r"Unknown dataset 'colours'.*Give the dataset with dataset="):
        pb.load(folder)
    other = make_dataset("other", {f"thing {i}": (i, 9, 9) for i in range(5)})
    with pytest.raises(pb.UserError, match="other has changed since the trial was trained"):
        pb.load(folder, dataset=other)
    with pytest.raises(pb.UserError, match="There is no weights file"):
        pb.load(folder, dataset=card, pretrained="gone.pt")
    path = tmp_path / "copy" / "prompts.safetensors"
    shutil.copytree(folder, path.parent)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(pb.UserError, match=r"prompts.safetensors was changed.*run the trial again"):
        pb.load(path, dataset=card)
    text = json.loads((path.parent / "record.json").read_text())
    (path.parent / "record.json").write_text(json.dumps({**text, "steps": 77}))
    with pytest.raises(pb.UserError, match="is no record that can be read"):
        pb.load(path, dataset=card)


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a smaller training; all else as it is printed in examples/."""
    source = (ROOT / "examples/api.py").read_text()
    for line, small in (
        ('OUT = "results/example"\n', f"OUT = {str(tmp_path)!r}\n"),
        (
            'TRAINING = {"seeds": [1, 2, 3]}\n',
            'TRAINING = {"seeds": [1, 2], "shots": 1, "epochs": 1, "quiet": True}\n',
        ),
    ):
        assert line in source
        source = source.replace(line, small)
    (tmp_path / "api.py").write_text(source)
    runpy.run_path(str(tmp_path / "api.py"))
    text = capsys.readouterr().out
    assert "zeroshot on icons: base" in text
    assert "logits: (3, 25)" in text


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pb.run([]), "Name at least one method"),
        (lambda: pb.run("zeroshot", dataset=cast(Any, pb.load_dataset("icons"))), "dataset takes a name"),
        (lambda: pb.run("zeroshot", dataset="icons", limit=0), "--limit must be at least 1, not 0"),
        (lambda: pb.run("zeroshot", dataset="icons", jobs=-1), "--jobs must be at least 1, not -1"),
    ],
)
def test_arguments_that_do_not_fit_are_one_sentence(call: Any, said: str) -> None:
    with pytest.raises(pb.UserError, match=said):
        call()


def test_lists_give_lists(make_dataset: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {"dataset": make_dataset(), "out": tmp_path / "out", "quiet": True}
    alone = pb.run("zeroshot", **given)
    assert pb.run(["zeroshot"], **given) == [alone]
    assert pb.run("zeroshot", seeds=[1, 2], **given) == [alone]
