"""What the README shows is true: its table is that of the records, its example method trains."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from promptbench.analysis.compare import load_frame, render, summarise
from promptbench.cli.app import app
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.weights import backbone_shape
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.methods._base import Method, methods, trainable_parameters
from promptbench.training.loop import create, fit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_table_is_that_of_the_reference_records() -> None:
    summary = summarise(load_frame(ROOT / "results/reference"))
    assert render(summary, "md", datasets=["average"]).strip() in README


def test_its_methods_are_those_of_the_registry() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \| ([\d,]+)( per class)? \| ([^|]+) \|$", README, re.M
    )
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


def test_files_it_points_to_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) >= 5
    assert all((ROOT / link).exists() for link in links), links


def test_example_method_trains(clip: FrozenCLIP, colours: data.Dataset) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102
    kind: type[Method] = found["Shallow"]
    classes = colours.classes()
    method = create(kind, clip, kind.Settings(epochs=4, lr=0.05, warmup_epochs=0), classes, seed=1)
    assert (
        trainable_parameters(method) == kind.parameter_count(method.settings, clip.shape, len(classes)) == 512
    )
    progress = fit(method, colours, colours.few_shot(4, 1, "all"), classes, seed=1)
    assert progress.history[-1]["loss"] < progress.history[0]["loss"]


def test_example_card_is_a_card(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "card.yaml").write_text(text)
    assert cards.read_card(tmp_path / "card.yaml").name == "birds"
