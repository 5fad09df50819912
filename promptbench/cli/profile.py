"""`promptbench profile`."""

import os
from typing import Annotated, Literal

import typer

from promptbench.cli import names
from promptbench.cli.options import BACKBONE, COMPILE, PRECISION
from promptbench.console import say

EXAMPLES = (
    "promptbench profile coop mmlop --reference",
    "promptbench profile --backbone ViT-B-16-quickgelu --classes 50,500 --format csv",
)
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
FORMATS = ("table", "csv", "json")


def profile(
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[METHOD]",
            help="Default: five prompt methods.",
            autocompletion=names.completing(names.methods),
        ),
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=BACKBONE,
            autocompletion=names.completing(names.backbones),
        ),
    ] = "pocket",
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="TAG|FILE", help="Weights; default: random ones, since speed does not depend on values."
        ),
    ] = None,
    classes: Annotated[
        str, typer.Option(metavar="N,...", help="Numbers of classes, such as 50,500.")
    ] = "50,500",
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images per step.")] = 4,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference", help="Also time the same step done as in the official code, and the ratio."
        ),
    ] = False,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Timed steps of each kind; the median is reported.")
    ] = 3,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1 ...; default: CUDA if there is a GPU."),
    ] = None,
    precision: Annotated[str, names.choice("--precision", PRECISIONS, PRECISION)] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help=COMPILE)] = False,
    style: Annotated[
        Literal["table", "csv", "json"], names.choice("--format", FORMATS, "Format of the results.")
    ] = "table",
) -> None:
    """Measure a training step: seconds by part, memory, arithmetic, speed-up over the official way."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its profiler warns about tensors from before
    from promptbench.checks.profile import as_json, csv_line, profile_by_name, render, sentence
    from promptbench.trials.sweep import numbers

    counts = numbers("--classes", classes, least=1)
    found = profile_by_name(
        methods or (), backbone, pretrained, counts, batch, reference, repeats, device, precision, compiled
    )
    if style == "csv":
        say(csv_line(None))
    rows = []
    for row in found:  # each as soon as it is measured: a row of a large backbone takes minutes
        rows.append(row)
        say(csv_line(row) if style == "csv" else sentence(row), err=style != "csv")
    if style == "json":
        say(as_json(rows))
    elif style == "table":
        say(render(rows, backbone), end="")
