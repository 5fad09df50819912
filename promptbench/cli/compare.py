"""`promptbench compare`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from promptbench.cli import names
from promptbench.cli.options import BENCHMARK, Backbone, Out
from promptbench.console import say

EXAMPLES = (
    "promptbench compare --plot tradeoff --x seconds --plot heatmap",
    "promptbench compare --source published --backbone ViT-B-16-quickgelu",
)
FORMATS = ("table", "md", "csv", "latex", "json")
METRICS = ("hm", "base", "novel", "all")
SOURCES = ("measured", "published", "both")
COSTS = {"params": "parameters", "seconds": "seconds", "memory": "memory", "gflop": "gflop"}


def compare(
    benchmark: Annotated[
        str,
        typer.Option(metavar="NAME", help=BENCHMARK, autocompletion=names.completing(names.benchmarks)),
    ] = "base2novel",
    backbone: Backbone = None,
    style: Annotated[
        Literal["table", "md", "csv", "latex", "json"],
        names.choice("--format", FORMATS, "Format of the table."),
    ] = "table",
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Show only these rows: a dataset, or average. Repeatable."),
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="95 % intervals in every row instead of ± std.")
    ] = False,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Instead: all methods in pairs, with differences and tests.")
    ] = False,
    source: Annotated[
        Literal["measured", "published", "both"],
        names.choice("--source", SOURCES, "Our records, published numbers (results/published.csv), or both."),
    ] = "measured",
    published: Annotated[bool, typer.Option("--published", help="The same as --source both.")] = False,
    plot: Annotated[
        list[str] | None,
        names.choice(
            "--plot", names.figures, "Also draw this figure; see `promptbench ls figures`. Repeatable."
        ),
    ] = None,
    metric: Annotated[str, names.choice("--metric", METRICS, "What figures show.")] = "hm",
    x: Annotated[str, names.choice("--x", tuple(COSTS), "Cost in the trade-off figure.")] = "params",
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for figures; default: plots in --out.")
    ] = None,
    out: Out = Path("results"),
) -> None:
    """Table, statistics and figures of all records in the results folder. Nothing is trained."""
    from promptbench.analysis.comparison import load_material
    from promptbench.analysis.statistics import all_pairs
    from promptbench.analysis.summary import measured
    from promptbench.errors import UserError, unknown
    from promptbench.reporting import pairs as pair_tables
    from promptbench.reporting.sentences import pair_summary
    from promptbench.reporting.tables import caption, render
    from promptbench.trials.benchmarks import get_benchmark

    count = None
    if x == "gflop":
        from promptbench.checks.training_step import record_gflop

        count = record_gflop
    material = load_material(
        out, get_benchmark(benchmark).name, backbone, metric, COSTS[x], "both" if published else source, count
    )
    shown = material.shown
    for name in dataset or ():
        if name not in set(shown["dataset"]):
            raise unknown("dataset of the table", name, shown["dataset"].unique())
    tested = all_pairs(measured(material.table)) if material.records else None
    if pairs:
        if tested is None or tested.empty:
            raise UserError("--pairs needs records of two methods with every dataset and a common seed.")
        say(pair_tables.render(tested, style, caption(shown)))
    else:
        say(render(shown, style, benchmark, dataset, intervals))
        if style == "table" and tested is not None:
            say(pair_summary(tested))
    if plot:
        from promptbench.reporting.plots import draw

        for name in dict.fromkeys(plot):
            drawing = draw(name, material)
            for line in drawing.said:
                say(line, err=True)
            for path in drawing.save(plots or out / "plots"):
                say(f"wrote {path}", err=True)
