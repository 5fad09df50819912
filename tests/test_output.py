"""Whatever names hold: nothing is read as markup, reaches a terminal raw, or ends a command."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from PIL import Image

from promptbench import console
from promptbench.analysis import confusions as mistakes
from promptbench.analysis.comparison import Material
from promptbench.analysis.statistics import all_pairs
from promptbench.analysis.summary import measured
from promptbench.data import dataset as data
from promptbench.errors import UserError
from promptbench.execution.progress import PlainReporter, RichReporter
from promptbench.reporting.html import report
from promptbench.reporting.pairs import render as render_pairs
from promptbench.reporting.plots import draw, names
from promptbench.reporting.tables import escape, markdown
from promptbench.trials.record import Record
from tests.test_cli import call
from tests.test_report import RECORDS, make, write

EVIL = "a [/b] $\\frac{$ [red]x | `y` \x1b[31m\u202e\n<b> [z](http://x)"
SHOWN = "a [/b] $\\frac{$ [red]x | `y` \\x1b[31m\\u202e\\n<b> [z](http://x)"


def evil(method: str, seed: int, base: int, novel: int) -> Record:
    return make(
        method,
        seed,
        base,
        novel,
        variant=EVIL,
        notes=[f"note {EVIL}"],
        labels=[f"{EVIL}: label"],
        settings={"epochs": 1},
    )


def evil_records() -> list[Record]:
    return [RECORDS[0], *(evil("deep", s, 160 + s, 140 + s) for s in (1, 2)), make("other", 1, 150, 150)]


def run(*arguments: str, **given: Any) -> "subprocess.CompletedProcess[bytes]":
    """The command in a process of its own, without the environment's encoding and buffering."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | given.pop("env", {})
    command = [sys.executable, "-m", "promptbench", *arguments]
    return subprocess.run(command, env=environment, timeout=60, **{"capture_output": True, **given})


# ---------------------------------------------------------------------- names


def test_plain_shows_what_acts_or_hides() -> None:
    assert console.plain(EVIL) == SHOWN
    assert console.plain("a\nb\r", keep="\n") == "a\nb\\r"
    assert console.plain("naïve 猫 ±") == "naïve 猫 ±"
    assert console.plain(os.fsdecode(b"caf\xe9")) == "caf\\udce9"


@pytest.mark.parametrize("style", ["table", "md", "csv", "latex", "json"])
def test_no_format_lets_a_name_through_raw(
    style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(evil_records(), tmp_path)
    assert call("compare", "--out", str(tmp_path), "--format", style) == 0
    out = capsys.readouterr().out
    assert not [c for c in out if not c.isprintable() and c != "\n"]
    if style == "table":
        assert "[/b]" in out
        assert "[red]x" in out
        assert "\\x1b[31m" in out
    elif style == "md":
        rows = [line for line in out.splitlines() if line.startswith("|")]
        assert len(rows) == 2 + 3  # no line end has made a row of a name
        assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
        assert "](http" not in out
        assert "<b>" not in out.replace("\\<b>", "")
    elif style == "latex":
        assert "\\$\\textbackslash{}frac\\{\\$" in out
    elif style == "json":
        assert f"deep ({SHOWN})" in {row["method"] for row in json.loads(out)}
    pairs = all_pairs(measured(Material(evil_records(), tmp_path).table))
    assert "\x1b" not in render_pairs(pairs, style)  # type: ignore[arg-type]


def test_markup_of_documents_is_escaped() -> None:
    assert markdown("a|b `c` *d* <e> [f](g) tip_adapter [1, 2]") == (
        "a\\|b \\`c\\` \\*d\\* \\<e> [f]\\(g) tip_adapter [1, 2]"
    )
    assert escape("[1mm] 5 %") == "{}[1mm] 5 \\%"  # else the option of the line break before it
    assert escape("* x") == "{}* x"


def test_show_and_progress_and_errors_keep_names_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = evil("deep", 1, 1, 1)
    folder = record.trial.folder(tmp_path)
    record.write(folder)
    assert call("show", str(folder)) == 0
    shown = capsys.readouterr().out
    assert "[red]x" in shown
    assert "\x1b" not in shown
    for kind in (PlainReporter, lambda: RichReporter([record.trial])):
        with kind() as reporter:
            reporter.start(record.trial, 1, 1)
            if isinstance(reporter, RichReporter):
                reporter.bars.console.file = io.StringIO()
                reporter.bars.refresh()
            reporter.fail(record.trial, UserError(EVIL))
        said = capsys.readouterr().err
        if isinstance(reporter, RichReporter):
            said = reporter.bars.console.file.getvalue().replace("\n", "")  # type: ignore[attr-defined]
            assert "\x1b[31m" not in said
        else:
            assert SHOWN in said
            assert "\x1b" not in said
    assert call("run", f"coop{EVIL}") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_figure_draws_names_as_they_are(tmp_path: Path) -> None:
    records = [
        one.model_copy(update={"influence": {"text": [0.1, 0.2][: 1 + one.trial.seed % 2]}})
        for one in evil_records()
    ]
    more = [evil("deep", 1, 9, 9).model_copy(update={"influence": {"x" * 9: [1.0]}})]
    more[0].trial.__dict__["shots"] = 4
    for record in (*records, *more):
        folder = record.trial.folder(tmp_path)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"epoch": n, "loss": 1 / n}) for n in (1, 2)]
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    drawn = {}
    for name in names():
        given = Material(records + more * (name == "fewshot"), tmp_path)
        try:
            drawing = draw(name, given)
        except UserError:
            continue
        assert drawing.image("png").startswith(b"\x89PNG"), name
        drawn[name] = {str(text.get_text()) for text in drawing.figure.findobj(Text)}
    assert {"tradeoff", "base-novel", "heatmap", "fewshot", "curves", "prompts"} <= drawn.keys()
    for name, texts in drawn.items():
        assert any("$\\frac{$" in text for text in texts), name
    assert not any("mathdefault" in text for text in drawn["tradeoff"])


def test_curves_skip_what_is_no_measurement(tmp_path: Path) -> None:
    good, bad = make("deep", 1, 9, 9), make("deep", 2, 9, 9)
    for record, text in ((good, '{"epoch": %d, "loss": 1}'), (bad, '{"epoch": "x%d", "loss": []}')):
        folder = record.trial.folder(tmp_path)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("\n".join(text % n for n in (1, 2)))
    drawing = draw("curves", Material([good, bad], tmp_path))
    assert len(drawing.data) == 2
    assert drawing.said == ["1 metrics.jsonl cannot be read and are no part of the curves."]
    elsewhere = make("deep", 1, 9, 9, dataset=str(tmp_path / "private"))
    folder = elsewhere.trial.folder(tmp_path / "out")
    assert not folder.is_relative_to(tmp_path / "out")  # what such a record would have read
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 1}\n{"epoch": 2, "loss": 1}')
    with pytest.raises(UserError, match="more than one epoch"):
        draw("curves", Material([elsewhere], tmp_path / "out"))


# ---------------------------------------------------------------------- tables


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_table_wraps_names_and_never_cuts_numbers(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "screen", lambda: columns)
    label = "coop (" + " ".join(f"setting_number_{k}=0.000{k}" for k in range(1, 9)) + ")"
    rows = [["average", label, "76.82 [76.3, 77.4]", "12,345,678"], ["average", "x" * 300, "-", "1"]]
    drawn = console.table(["dataset", "method", "base", "parameters"], rows, right={"base", "parameters"})
    assert "76.82 [76.3, 77.4]   12,345,678" in drawn
    assert all(f"setting_number_{k}=0.000{k}" in drawn for k in range(1, 9))
    assert drawn.count("x") >= 300
    assert max(map(len, drawn.splitlines())) <= max(columns, 80)


def test_what_a_pipe_gets_is_200_columns_and_a_terminal_what_it_has() -> None:
    """Without COLUMNS, in a real terminal of 50 columns."""
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    code = "import os; from promptbench import console; print(console.screen())"
    leader, follower = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
    subprocess.run([sys.executable, "-c", code], stdout=follower, env=environment, check=True)
    assert os.read(leader, 100).split() == [b"50"]
    os.close(leader)
    os.close(follower)
    assert console.screen() == 200


# ---------------------------------------------------------------------- streams


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    out = write(RECORDS, tmp_path)
    done = run("compare", "--out", str(out), env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert ("+-" if encoding == "ascii" else "±") in text
    assert "?" not in text.replace("better (", "").replace("correction)?", "")
    done = run("show", "gone 猫", "--out", str(out), env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"gone \\u732b" in done.stderr


def test_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (["ls", "datasets"], ["--help"]):
        done = run(*arguments, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (141, b""), arguments
    done = run("show", "x", capture_output=False, stdout=subprocess.DEVNULL, stderr=writer)
    assert done.returncode == 141
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        for arguments in (["ls", "datasets"], ["--help"]):
            done = run(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
            assert done.returncode == 2
            assert done.stderr.startswith(b"Error: The output cannot be written (No space left")
            assert done.stderr.count(b"\n") == 1
        # a log that is full ends nothing
        code = "from promptbench.console import say, steady\nwith steady(): say('a', err=True); say('b')"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, check=True)
        assert done.stdout == b"b\n"


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "TkAg"])
def test_figures_need_no_backend(backend: str, tmp_path: Path) -> None:
    code = (
        "import os; from promptbench.reporting.plots._base import new_figure, styled\n"
        "import io; new_figure().savefig(io.BytesIO(), format='pdf'); print(os.environ['MPLBACKEND'])"
    )
    environment = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == f"{backend}\n", done.stderr


# ---------------------------------------------------------------------- private images


def private(folder: Path) -> Path:
    """A folder of two albums, as a dataset would be."""
    for album in ("family", "passport"):
        (folder / album).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20, 20), (250, i, 3)).save(folder / album / f"IMG_{i}.jpg")
    return folder


@pytest.mark.parametrize("how", ["folder", "card", "style of a card"])
def test_a_report_opens_no_folder_that_a_record_names(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "figures", lambda material: [])
    photos = private(tmp_path / "Pictures")
    card = tmp_path / "card.yaml"
    card.write_text("{name: pictures, title: x, loader: folders, source: Pictures, style: '(IMG)'}")
    name = {"folder": str(photos), "card": str(card), "style of a card": f"{card}:IMG"}[how]
    record = make("deep", 1, 9, 9, dataset=name)
    for counts in record.evaluations:
        paths = [f"{album}/IMG_{i}.jpg" for album in ("family", "passport") for i in range(4)]
        counts.confused = [one.model_copy(update={"pictures": paths}) for one in counts.confused]
    record.write(tmp_path / "out/runs/base2novel/deep/shared/shots16-seed1")
    assert call("report", "--out", str(tmp_path / "out")) == 0
    text = (tmp_path / "out/report.html").read_text("utf-8")
    assert "data:image/jpeg" not in text
    assert "It shows only those of shipped datasets and of what --dataset names" in text
    said = capsys.readouterr().err
    assert "A report opens shipped datasets and what --dataset names" in said


def test_a_report_opens_what_is_shipped_and_what_the_user_names(colours: data.Dataset) -> None:
    find = report.finder([colours])
    assert find("colours") is colours
    assert find("symbols").name == "symbols"
    assert find("icons:outline").name == "icons:outline"
    for name in (str(colours.root), "icons:a:/etc/card.yaml", "../colours/card.yaml"):
        with pytest.raises(UserError, match="Unknown dataset"):
            find(name)
    with pytest.raises(UserError, match="Two datasets are called 'colours'"):
        report.finder([colours, data.load(str(Path(str(colours.root)) / "card.yaml"))])


def test_a_report_follows_no_link_out_of_a_dataset(colours: data.Dataset, tmp_path: Path) -> None:
    assert colours.root is not None
    secret = private(tmp_path / "Pictures") / "passport/IMG_0.jpg"
    inside, outside = "images/0/test0.png", "images/0/test1.png"
    (colours.root / outside).unlink()
    (colours.root / outside).symlink_to(secret)
    (colours.root / inside).rename(colours.root / "moved.png")
    (colours.root / inside).symlink_to("../../moved.png")
    album = mistakes.Album(lambda name: colours)
    album.fill([(mistakes.Where("colours", "base", "test"), [inside, outside])])
    assert [album.number("colours", path) for path in (inside, outside)] == [0, None]
    assert "leads out of its folder" in album.missing["colours"]


def test_the_page_shows_hidden_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "figures", lambda material: [])
    out = write(evil_records(), tmp_path)
    report.write_report(out, out / "report.html")
    text = (out / "report.html").read_text("utf-8")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[31m\\u202e" in text


# ---------------------------------------------------------------------- odd records


def test_show_with_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make("deep", 1, 9, 9, settings={"batch_size": "many"})
    record.environment, record.hashes = {"packages": [1]}, {}
    for counts in record.evaluations:
        counts.per_class = {}
    record.write(tmp_path)
    assert call("show", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "unknown in training" in shown
    assert "weights unknown" in shown
    assert call("show", str(tmp_path / "record.json")) == 0


@pytest.mark.parametrize("text", ["[]", "{", "null", None])
def test_show_of_what_is_no_record(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    path.mkdir() if text is None else path.write_text(text)
    assert call("show", str(tmp_path)) == 2
    assert f"{path} is no record that can be read (" in capsys.readouterr().err


def test_show_with_a_hash_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write(RECORDS, tmp_path)
    one = RECORDS[1].hash
    assert call("show", one[:12], "--out", str(out)) == 0
    assert one[:8] in capsys.readouterr().out
    first = next(c for c in "0123456789abcdef" if sum(r.hash[0] == c for r in RECORDS) > 1)
    assert call("show", first, "--out", str(out)) == 2
    assert "runs under" in (said := capsys.readouterr().err)
    assert "(such as " in said
    for run_ in ("", "x" * 5000):
        assert call("show", run_, "--out", str(out)) == 2
        assert "No run under" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"evaluations": []},
        {"trainable_parameters": 10**400},
        {"trainable_parameters": -1},
        {"peak_memory_bytes": 2**63},
    ],
)
def test_numbers_that_cannot_be_are_no_record(change: dict[str, Any], tmp_path: Path) -> None:
    record = make("deep", 1, 9, 9)
    values = json.loads(record.model_dump_json()) | change
    with pytest.raises(ValueError, match="nothing was measured"):
        Record.model_validate_json(json.dumps(values))


def test_a_record_of_an_unknown_benchmark_is_left_out_of_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "figures", lambda material: [])
    out = write([*RECORDS, make("deep", 1, 9, 9, benchmark="later")], tmp_path)
    report.write_report(out, out / "report.html")
    assert "1 record of a smoke run (--limit), of another split than test or of an unknown benchmark is" in (
        " ".join((out / "report.html").read_text("utf-8").split())
    )
