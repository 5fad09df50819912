"""Whatever a card, a split, a sweep or a record says: it is accepted, or refused in one sentence."""

import contextlib
import copy
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml

from promptbench.analysis.vocabulary import AVERAGE
from promptbench.trials.record import BriefRecord, read_records
from tests.conftest import write_dataset
from tests.test_cli import call
from tests.test_compare import RECORDS, write
from tests.test_records import first_schema

#: inputs of each kind; `make soak` tries 5,000 in all
EXAMPLES = [pytest.param(30), pytest.param(1250, marks=pytest.mark.soak)]

#: what stands where something else is expected
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["", " ", "..", "../../etc/passwd", "\0", "icons", "{}", "null", "1e999", "é" * 300]),
    st.text(max_size=8),
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(-2, 9), max_size=2),
)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document of lists and dictionaries."""
    inside = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in inside:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def at(document: Any, path: Iterable[Any]) -> Any:
    for step in path:
        document = document[step]
    return document


@st.composite
def damaged(draw: st.DrawFn, document: Any, dump: Callable[[Any], str]) -> bytes:
    """The document with up to three values replaced, removed, renamed or doubled, or its text damaged."""
    document = copy.deepcopy(document)
    if draw(st.integers(0, 4)):
        for _ in range(draw(st.integers(1, 3))):
            everywhere = sorted(places(document), key=repr)
            *way, key = draw(st.sampled_from(everywhere))
            parent = at(document, way)
            kind = draw(st.sampled_from(["replace", "copy", "remove", "double", "rename"]))
            if kind == "remove":
                del parent[key]
            elif kind == "replace":
                parent[key] = draw(VALUES)
            elif kind == "copy":  # of the right type, perhaps
                parent[key] = copy.deepcopy(at(document, draw(st.sampled_from(everywhere))))
            elif isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            else:
                parent[draw(st.text(max_size=6))] = parent[key] if kind == "double" else parent.pop(key)
            if not any(True for _ in places(document)):
                break
        return dump(document).encode(errors="surrogatepass")
    text = bytearray(dump(document).encode())
    where = draw(st.integers(0, len(text) - 1))
    kind = draw(st.sampled_from(["cut", "flip", "insert"]))
    if kind == "cut":
        del text[where:]
    elif kind == "flip":
        text[where] ^= 1 << draw(st.integers(0, 7))
    else:
        text[where:where] = draw(st.binary(min_size=1, max_size=6))
    return bytes(text)


def tried(*arguments: str) -> tuple[bool, str]:
    """Whether the command accepted its input, and its standard output. An exception fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = call(*arguments)
    assert code in (0, 2), err.getvalue()
    last = err.getvalue().strip().splitlines()[-1:]
    if code == 2:
        assert last
        assert last[0].startswith("Error: ")
        assert "Traceback" not in err.getvalue()
        out.getvalue().encode()  # no half of a surrogate pair, which no terminal could show
    return code == 0, out.getvalue()


def over(examples: int, documents: st.SearchStrategy[bytes], check: Callable[[bytes], None]) -> None:
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,  # the same inputs in every run: no test that fails only at times
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    settings(hypothesis.given(documents)(check))()


CARD = {
    "name": "colours",
    "title": "Colours",
    "source": ".",
    "template": "a {} picture.",
    "flip": False,
    "style": r"/(\w+?)\d+\.",
    "classes": 5,
    "sizes": {"train": 10, "val": 5, "test": 5},
    "landmarks": ["bright yellow sun", "night", "red square", "sea"],
    "options": {},
    "archives": [{"file": "a.zip", "makes": "images"}],
}


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("which", ["card.yaml", "split.json"])
def test_datasets(tmp_path: Path, which: str, examples: int) -> None:
    card = {key: value for key, value in CARD.items() if key != "sizes" or which == "card.yaml"}
    path = write_dataset(tmp_path, per_split=(2, 1, 1), card=card).parent / which
    document, accepted = yaml.safe_load(path.read_text()), 0

    def check(text: bytes) -> None:
        nonlocal accepted
        path.write_bytes(text)
        card = str(path.with_name("card.yaml"))
        common = ["--dataset", card, "--shots", "1", "--epochs", "1", "--out", str(tmp_path / "out")]
        fits, _ = tried("run", "zeroshot", "coop", *common, "--dry-run")
        accepted += fits
        if fits:
            tried("run", "zeroshot", *common)

    over(examples, damaged(document, yaml.safe_dump if which == "card.yaml" else json.dumps), check)
    assert 0 < accepted < examples


@pytest.mark.parametrize("examples", EXAMPLES)
def test_sweeps(tmp_path: Path, examples: int) -> None:
    document = {
        "grid": {"mmlop": {"rank": [1, 2], "lr": 0.01}, "zeroshot": None},
        "benchmark": "base2novel",
        "preset": "pocket",
        "datasets": [str(write_dataset(tmp_path))],
        "seeds": [1, 2],
        "shots": [1, 2],
        "epochs": 1,
        "backbone": "pocket",
    }
    path, accepted = tmp_path / "sweep.yaml", 0

    def check(text: bytes) -> None:
        nonlocal accepted
        path.write_bytes(text)
        fits, _ = tried("sweep", str(path), "--dry-run", "--out", str(tmp_path / "out"))
        accepted += fits

    over(examples, damaged(document, yaml.safe_dump), check)
    assert 0 < accepted < examples


@pytest.mark.parametrize("examples", EXAMPLES)
def test_records(tmp_path: Path, examples: int) -> None:
    """What is accepted is shown whole: an average stands only where no dataset is missing."""
    write(RECORDS, tmp_path)
    path = RECORDS[2].trial.folder(tmp_path) / "record.json"
    first_schema(path)  # no digest finds what is damaged
    accepted = 0

    def check(text: bytes) -> None:
        nonlocal accepted
        path.write_bytes(text)
        fits, table = tried("compare", "--out", str(tmp_path), "--format", "json")
        accepted += fits
        if not fits:
            return
        assert len(read_records(tmp_path, BriefRecord)[0]) == len(RECORDS)
        rows = json.loads(table)
        datasets = {row["dataset"] for row in rows} - {AVERAGE}
        for row in rows:
            if row["dataset"] == AVERAGE and row["hm"] is not None:
                mine = {one["dataset"] for one in rows if one["method"] == row["method"]}
                assert mine >= datasets

    over(examples, damaged(json.loads(path.read_text()), json.dumps), check)
    assert 0 < accepted < examples
