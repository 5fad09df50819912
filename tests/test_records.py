"""A record proves itself: whatever is changed in it or beside it is found, and nothing newer is touched."""

import errno
import json
import os
import random
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from promptbench.analysis.comparison import load_frame, load_records
from promptbench.analysis.summary import frame, summarise
from promptbench.data import dataset as data
from promptbench.errors import UserError
from promptbench.execution.execute import Outcome, execute
from promptbench.execution.progress import PlainReporter
from promptbench.methods._registry import get_method
from promptbench.reporting.tables import render
from promptbench.storage import hash_value
from promptbench.training import provenance
from promptbench.training.checkpoint import Progress
from promptbench.training.files import CHECKPOINT, FILES
from promptbench.trials.benchmarks import BENCHMARKS
from promptbench.trials.plan import plan
from promptbench.trials.predictions import read_predictions
from promptbench.trials.record import BriefRecord, Fault, Record, examine, read_records
from promptbench.trials.trial import Trial
from tests.kill_driver import content
from tests.test_compare import RECORDS, make, write

ROOT = Path(__file__).parent.parent


def trials(dataset: data.Dataset, *methods: str, **changes: Any) -> list[Trial]:
    kinds = [get_method(name) for name in methods]
    return plan(BENCHMARKS["base2novel"], kinds, [dataset], shots=[2], epochs=2, **changes)


class Stopped(PlainReporter):
    """Ends a command after the first epoch."""

    def epoch(self, trial: Trial, progress: Progress, epochs: int) -> None:
        raise KeyboardInterrupt


def run(planned: list[Trial], dataset: data.Dataset, out: Path, **options: Any) -> Outcome:
    return execute(planned, {dataset.name: dataset}, out, PlainReporter(), **options)


def first_schema(path: Path, **changes: Any) -> None:
    """Turn a record file into one of schema 1, which ends without a digest."""
    document = json.loads(path.read_text()) | {"schema_version": 1} | changes
    del document["digest"], document["files"]
    path.write_text(json.dumps(document, indent=1))


def test_no_flipped_bit_is_ever_read_as_a_record(tmp_path: Path) -> None:
    record, draw = RECORDS[2], random.Random(0)
    record.write(tmp_path)
    path = tmp_path / "record.json"
    whole = path.read_bytes()
    for kind in (Record, BriefRecord):
        assert isinstance(examine(tmp_path, kind), kind)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        found = examine(tmp_path, draw.choice([Record, BriefRecord]))
        if place == len(whole) - 1:  # the line's end says nothing
            continue
        assert isinstance(found, Fault), place
        assert not found.newer or whole[place - 18 : place] == b'"schema_version": '
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        assert isinstance(examine(tmp_path), Fault)
    path.write_bytes(whole.replace(b"\n", b"\r\n"))  # what git may do on Windows
    assert examine(tmp_path) == record
    with path.open("ab") as file:
        file.truncate(100 << 20)  # sparse: it takes no disk
    fault = examine(tmp_path)
    assert isinstance(fault, Fault)
    assert fault.why == "larger than 64 MB, as no record is"


@pytest.mark.parametrize("kind", [Record, BriefRecord])
def test_records_of_the_first_schema_are_checked_and_marked(tmp_path: Path, kind: type[Record]) -> None:
    write(RECORDS, tmp_path)
    paths = sorted(tmp_path.rglob("record.json"))
    assert all(record.proven for record in load_records(tmp_path, "base2novel", kind=kind))
    assert "schema 1" not in render(summarise(load_frame(tmp_path)), "table")
    first_schema(paths[0])
    records = load_records(tmp_path, "base2novel", kind=kind)
    assert sum(not record.proven for record in records) == 1
    marked = "1 of 7 records are of schema 1: without a digest or stored predictions as proof."
    assert marked in render(summarise(frame(records)), "md")
    text = paths[0].read_text()
    for old, new in (('"correct": 1', '"correct": 2'), ('"total": 200', '"total": 201')):
        assert old in text
        paths[0].write_text(text.replace(old, new, 1))
        fault = examine(paths[0].parent, kind)
        assert isinstance(fault, Fault)
        assert not fault.newer
    with pytest.raises(
        UserError, match=r"1 record\(s\) cannot be read, the first is .*\(not as records are\)"
    ):
        load_records(tmp_path, "base2novel", kind=kind)


@pytest.mark.parametrize("change", [{"schema_version": 3}, {"energy_kwh": 0.1}])
def test_a_newer_record_is_neither_averaged_nor_replaced(
    colours: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    planned = trials(colours, "zeroshot", "coop")
    assert not run(planned, colours, tmp_path).failures
    path = planned[0].folder(tmp_path) / "record.json"
    newer = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(newer)
    with pytest.raises(UserError, match=r"^1 record\(s\) were made by a newer version .*; update"):
        load_records(tmp_path, "base2novel")
    for force in (False, True):
        outcome = run(planned, colours, tmp_path, force=force)
        ((failed, error),) = outcome.failures
        assert failed == planned[0]
        assert "by a newer version of promptbench and is left as it is; update promptbench" in str(error)
        assert len(outcome.records) == 1
        assert path.read_text() == newer
    capsys.readouterr()


@pytest.mark.parametrize("name", [*FILES, "record.json"])
def test_a_damaged_file_of_a_finished_trial_is_made_anew(
    colours: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    planned = trials(colours, "coop")
    folder = planned[0].folder(tmp_path)
    (record,) = run(planned, colours, tmp_path).records
    assert set(record.files) == set(FILES)
    expected, whole = content(folder), (folder / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for damaged in (b"", bytes(flipped), None):
        if damaged is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(damaged)
        capsys.readouterr()
        assert not run(planned, colours, tmp_path).failures
        said = capsys.readouterr().err
        assert said.count("the trial is run again") == (damaged is not None or name != "record.json"), said
        assert content(folder) == expected
    assert not run(planned, colours, tmp_path).failures
    assert "already done" in capsys.readouterr().err


def test_predictions_are_those_of_the_tested_images(colours: data.Dataset, tmp_path: Path) -> None:
    planned = trials(colours, "coop")
    folder = planned[0].folder(tmp_path)
    (record,) = run(planned, colours, tmp_path).records
    for one, counts in zip(read_predictions(record, folder), record.evaluations, strict=True):
        items = colours.items("test", counts.classes)
        assert one.labels.tolist() == [item.label for item in items]
        assert counts.order == hash_value([(item.path, item.label) for item in items])
        assert (one.predicted == one.labels).sum() == counts.correct
        names = colours.classes(counts.classes).names
        wrong = [(names[a], names[b]) for a, b in zip(*one, strict=True) if a != b]
        assert {(c.true, c.predicted): c.count for c in counts.confused} == {
            pair: wrong.count(pair) for pair in wrong
        }
    other = record.evaluations[0].model_copy(update={"correct": record.evaluations[0].correct ^ 1})
    with pytest.raises(UserError, match="are not those of its record; run the trial again"):
        read_predictions(record.model_copy(update={"evaluations": [other, record.evaluations[1]]}), folder)
    with pytest.raises(UserError, match="has no predictions"):
        read_predictions(record.model_copy(update={"files": {}}), folder)
    (folder / "predictions.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="was changed or cut off after it was written; run the trial again"):
        read_predictions(record, folder)


def test_the_few_shot_draw_is_named_by_its_hash(colours: data.Dataset, tmp_path: Path) -> None:
    records = run(trials(colours, "zeroshot", "coop", "vpt", seeds=(1, 2)), colours, tmp_path).records
    hashes = {(r.trial.method, r.trial.seed): r.hashes.get("draw") for r in records}
    assert hashes["zeroshot", 0] is None
    assert hashes["coop", 1] == hashes["vpt", 1] == hash_value(list(colours.draw(2, 1, "base")))
    assert hashes["coop", 1] != hashes["coop", 2]


def test_a_changed_checkpoint_is_never_resumed_from(
    colours: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = trials(colours, "coop")
    run(planned, colours, tmp_path / "straight")
    expected = content(planned[0].folder(tmp_path / "straight"))
    folder, out = planned[0].folder(tmp_path / "cut"), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        execute(planned, {colours.name: colours}, out, Stopped())
    whole = (folder / CHECKPOINT).read_bytes()
    draw = random.Random(1)
    for _ in range(3):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        (folder / CHECKPOINT).write_bytes(damaged)
        capsys.readouterr()
        assert not run(planned, colours, out).failures
        assert "its checkpoint was damaged, or made by other code; it starts over" in capsys.readouterr().err
        assert content(folder) == expected
        (folder / "record.json").unlink()
    (folder / CHECKPOINT).write_bytes(whole)
    assert not run(planned, colours, out).failures
    said = capsys.readouterr().err
    assert "starts over" not in said
    assert "epoch 1/2" not in said  # it goes on after the first
    assert content(folder) == expected


def test_records_behind_links_count_and_circles_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(RECORDS, out)
    (out / "runs/base2novel/deep").rename(tmp_path / "elsewhere")
    (out / "runs/base2novel/deep").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/circle").symlink_to(out / "runs")
    (out / "runs/again").symlink_to(tmp_path / "elsewhere")
    found, broken = read_records(out)
    assert not broken
    assert sorted(r.hash for r in found) == sorted(r.hash for r in RECORDS)


def test_copies_of_a_record_count_once(tmp_path: Path) -> None:
    write(RECORDS, tmp_path)
    shutil.copytree(tmp_path / "runs/base2novel", tmp_path / "runs/machine2/base2novel")
    assert len(read_records(tmp_path)[0]) == len(RECORDS)
    table = summarise(load_frame(tmp_path))
    assert table.equals(summarise(frame(load_records(tmp_path, "base2novel"))))
    other = make("deep", "a", 1, 161, 100, 5000)
    assert other.hash == RECORDS[2].hash
    other.write(other.trial.folder(tmp_path / "runs/machine2/x"))
    with pytest.raises(UserError, match=r"2 records of the trial \w+ \(deep on a\) with different"):
        load_frame(tmp_path)


def test_several_versions_of_the_code_are_said_under_the_table() -> None:
    def code(record: Record, version: str) -> Record:
        return record.model_copy(update={"hashes": {**record.hashes, "code": version * 8}})

    same = [code(record, "a") for record in RECORDS]
    text = render(summarise(frame(same)), "table")
    assert "code" not in text
    apart = [code(record, "b" if record.trial.method == "small" else "a") for record in RECORDS]
    assert "The methods were run with 2 versions of the code." in render(summarise(frame(apart)), "md")
    mixed = [code(record, "b" if record.trial.seed == 2 else "a") for record in RECORDS]
    assert "Means over records of several versions of the code: deep (aaaaaaaa, bbbbbbbb)." in render(
        summarise(frame(mixed)), "md"
    )


def test_the_code_hash_covers_every_file_of_the_package() -> None:
    names = set(provenance.package_files())
    command = ["git", "-C", str(ROOT), "ls-files", "promptbench", "methods", "datasets"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = {
        f"promptbench/{path.removeprefix('promptbench/')}"
        if path.startswith("promptbench/")
        else f"promptbench.{path.split('/')[0]}/{path.split('/', 1)[1]}"
        for path in listed.stdout.splitlines()
    }
    assert {
        "promptbench/reporting/plots/_base.py",
        "promptbench/reporting/html/templates/report.html",
        "promptbench.methods/recipes.yaml",
    } <= names
    assert tracked <= names


def test_a_record_knows_its_commit(tmp_path: Path) -> None:
    module = tmp_path / "promptbench/__init__.py"
    module.parent.mkdir()
    module.write_text("")
    repository = partial(provenance._repository.__wrapped__, tmp_path)
    assert repository() == {"commit": None, "dirty": None}

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    assert repository() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    module.write_text("changed = True\n")
    assert repository() == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_a_record_in_the_folder_of_another_trial_is_not_done(
    colours: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = trials(colours, "coop", seeds=(1, 2))
    expected = run([other], colours, tmp_path / "apart").records[0].evaluations
    run([one], colours, tmp_path)
    shutil.copytree(one.folder(tmp_path), other.folder(tmp_path))
    (record,) = run([other], colours, tmp_path).records
    assert record.hash == other.hash
    assert record.evaluations == expected
    assert "record.json is that of another trial; the trial is run again" in capsys.readouterr().err


def test_a_checkpoint_of_other_code_is_not_continued(
    colours: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = trials(colours, "coop")
    with pytest.raises(KeyboardInterrupt):
        execute(planned, {colours.name: colours}, tmp_path, Stopped())
    monkeypatch.setattr("promptbench.training.checkpoint.code_hash", lambda: "other")
    assert not run(planned, colours, tmp_path).failures
    said = capsys.readouterr().err
    assert "made by other code; it starts over" in said
    assert "epoch 1/2" in said


def test_record_files_that_cannot_be_read_are_left_alone(
    colours: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = trials(colours, "zeroshot")
    run(planned, colours, tmp_path)
    path = planned[0].folder(tmp_path) / "record.json"
    whole = path.read_bytes()
    with monkeypatch.context() as broken:

        def refuse(*_: Any) -> Any:
            raise OSError(errno.EIO, "Input/output error")

        broken.setattr("builtins.open", refuse)
        fault = examine(path.parent)
    assert isinstance(fault, Fault)
    assert fault.unread
    monkeypatch.setattr("promptbench.execution.worker.examine", lambda folder: fault)
    ((_, error),) = run(planned, colours, tmp_path).failures
    assert "cannot be read (Input/output error) and is left as it is; make it readable" in str(error)
    assert path.read_bytes() == whole


def test_odd_record_files_are_faults(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    os.mkfifo(path)  # reading it would wait for ever
    assert examine(tmp_path) == Fault(path, False, "not a regular file")
    path.unlink()
    path.write_text('{"schema_version": 1e999}')
    fault = examine(tmp_path)
    assert isinstance(fault, Fault)
    assert not fault.newer


def test_evaluations_that_are_not_the_benchmarks_are_not_counted(tmp_path: Path) -> None:
    write([make("coop", "a", 1, 1, 1, benchmark="fewshot", train_classes="all")], tmp_path)
    with pytest.raises(UserError, match="No records of fewshot"):
        load_records(tmp_path, "fewshot")


def test_weights_replaced_after_planning_stop_the_trial(colours: data.Dataset, tmp_path: Path) -> None:
    (trial,) = trials(colours, "zeroshot")
    planned = trial.model_copy(update={"weights": "0" * 64})
    planned.__dict__.pop("hash", None)
    ((_, error),) = run([planned], colours, tmp_path).failures
    assert "weights file was replaced after the command had started" in str(error)
