"""What the README and docs/ show is true: tables are those of the records, the example method trains."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from promptbench.analysis.comparison import load_frame, load_records
from promptbench.analysis.summary import frame, summarise
from promptbench.analysis.vocabulary import AVERAGE
from promptbench.cli.app import app
from promptbench.clip.backbones import backbone_shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.methods._base import Method, trainable_parameters
from promptbench.methods._registry import methods
from promptbench.reporting.tables import render, spread
from promptbench.training.loop import Training, create, fit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXTENDING = (ROOT / "docs/extending.md").read_text()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows_of(summary: pd.DataFrame, dataset: str) -> list[dict[Any, Any]]:
    return summary[summary["dataset"] == dataset].to_dict("records")


def test_table_is_that_of_the_reference_records() -> None:
    """Every cell of every row, in order, and no row more."""
    summary = summarise(load_frame(ROOT / "results/reference"))
    (text,) = re.findall(
        r"<!-- table: results/reference -->\n(.*?)\n<!-- end of table -->", README, re.DOTALL
    )
    header, _, *rows = text.splitlines()
    assert cells(header) == ["method", "parameters", "base", "novel", "HM"]
    expected = [
        [
            row["method"],
            f"{row['parameters']:,.0f}",
            f"{row['base']:.2f}",
            f"{row['novel']:.2f}",
            f"{row['hm']:.2f} {spread(row, 'hm')}".strip(),
        ]
        for row in rows_of(summary, AVERAGE)
    ]
    assert {method for method, *_ in expected} == set(methods())
    assert [cells(row) for row in rows] == expected


def test_output_of_the_demo_is_that_of_the_reference_records() -> None:
    """The demo's trials are among them: icons, seed 1."""
    (text,) = re.findall(r"```text\n(.*?)\n```", README, re.DOTALL)
    shown = [line.split()[-6:] for line in text.splitlines()[2:]]
    names = [method for method, *_ in shown]
    trials = [
        record
        for record in load_records(ROOT / "results/reference", "base2novel")
        if record.trial.dataset == "icons" and record.trial.seed in (0, 1) and record.trial.method in names
    ]
    assert shown == [
        [
            row["method"],
            *(f"{row[key]:.2f}" for key in ("base", "novel", "hm")),
            f"{row['parameters']:,.0f}",
            str(row["seeds"]),
        ]
        for row in rows_of(summarise(frame(trials)), "icons")
    ]
    makefile = (ROOT / "Makefile").read_text()
    (methods_run,) = re.findall(
        r"promptbench run (.+?) --benchmark base2novel --dataset icons --seeds 1", makefile
    )
    assert set(names) == set(methods_run.split())


def test_methods_in_the_docs_are_those_of_the_registry() -> None:
    text = (ROOT / "docs/methods.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \| ([\d,]+)( per class)? \| ([^|]+) \|$", text, re.M)
    assert {name for name, *_ in rows} == set(methods())
    shape = backbone_shape("ViT-B-16-quickgelu")
    for name, trains, count, per_class, paper in rows:
        kind = methods()[name]
        one, two = (kind.parameter_count(kind.Settings(), shape, n) for n in (1, 2))
        assert int(count.replace(",", "")) == (two - one if per_class else one), name
        assert trains == (" + ".join(sorted(kind.trains)) or "nothing")
        assert paper == kind.paper


@pytest.mark.parametrize("benchmark", ["base2novel", "fewshot", "crossdataset", "domain"])
def test_tables_of_all_benchmarks(benchmark: str) -> None:
    table = render(summarise(load_frame(ROOT / "results/reference", benchmark)), "md")
    assert table.strip() in (ROOT / f"results/reference/{benchmark}.md").read_text()


def test_ablation_is_that_of_its_records() -> None:
    """Nothing is trained for it: all trials are done."""
    out = str(ROOT / "results/ablation")
    result = CliRunner().invoke(app, ["ablate", "mmlop", "--seeds", "1,2,3", "--out", out, "--format", "md"])
    assert result.exit_code == 0, result.output
    text = (ROOT / "docs/pocket/mmlop.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", result.stdout, re.M)
    assert len(tables) == 6
    assert all(table in text for table in tables)


def test_example_method_trains(clip: FrozenCLIP, colours: data.Dataset) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", EXTENDING, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102
    kind: type[Method] = found["Shallow"]
    classes = colours.classes()
    method = create(kind, clip, kind.Settings(epochs=4, lr=0.05, warmup_epochs=0), classes, seed=1)
    assert (
        trainable_parameters(method) == kind.parameter_count(method.settings, clip.shape, len(classes)) == 512
    )
    progress = fit(method, Training(colours, colours.few_shot(4, 1, "all"), classes, seed=1))
    assert progress.history[-1]["loss"] < progress.history[0]["loss"]


def test_example_card_is_a_card(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", EXTENDING, re.DOTALL)
    (tmp_path / "card.yaml").write_text(text)
    assert cards.read_card(tmp_path / "card.yaml").name == "birds"
