"""`promptbench verify`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from promptbench.cli import names
from promptbench.cli.options import BENCHMARK, DataRoot, Out
from promptbench.cli.printing import print_rows
from promptbench.console import say

EXAMPLES = ("promptbench verify --out results", "promptbench verify --benchmark crossdataset")
FORMATS = ("table", "md", "csv", "json")


def verify(
    benchmark: Annotated[
        str,
        typer.Option(metavar="NAME", help=BENCHMARK, autocompletion=names.completing(names.benchmarks)),
    ] = "base2novel",
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Default: ViT-B-16-quickgelu.",
            autocompletion=names.completing(names.backbones),
        ),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(metavar="TAG|FILE", help="Weights for zero-shot CLIP; default: openai.")
    ] = None,
    data_root: DataRoot = None,
    style: Annotated[
        Literal["table", "md", "csv", "json"], names.choice("--format", FORMATS, "Format of the table.")
    ] = "table",
    out: Out = Path("results"),
) -> None:
    """Compare finished runs with the published numbers: pass, or off by how much. Exit code 1 if any is off.

    With a data root, zero-shot CLIP runs first on the datasets that are there.
    """
    from promptbench.analysis.comparison import load_records
    from promptbench.analysis.verification import verify as compare_with
    from promptbench.checks.verify import published_backbone, render, run_zeroshot
    from promptbench.data.dataset import data_root as resolve
    from promptbench.errors import UserError
    from promptbench.trials.benchmarks import get_benchmark

    name = get_benchmark(benchmark).name
    backbone = published_backbone(backbone)
    if resolve(data_root) is not None:
        for line in run_zeroshot(name, backbone, pretrained, data_root, out):
            say(line, err=True)
    found = compare_with(load_records(out, name, backbone), name, backbone)
    for note in found.attrs["notes"]:
        say(note, err=True)
    if found.empty:
        raise UserError(f"None of the records of {name} under {out} can be compared with a published number.")
    if style == "table":
        shown = found.drop(columns="source").astype(str)
        print_rows([{str(key): text for key, text in row.items()} for row in shown.to_dict("records")])
    else:
        say(render(found, style), end="" if style == "csv" else "\n")
    if (found["verdict"] != "pass").any():
        raise typer.Exit(1)
