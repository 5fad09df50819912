"""`promptbench report`."""

from pathlib import Path
from typing import Annotated

import typer

from promptbench.cli import names
from promptbench.cli.options import Backbone, DataRoot, Out
from promptbench.cli.printing import print_notes
from promptbench.console import say

EXAMPLES = (
    "promptbench report --out results/reference",
    "promptbench report --benchmark base2novel --file base2novel.html",
)


def report(
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this one of `promptbench ls benchmarks`; default: all. Repeatable.",
            autocompletion=names.completing(names.benchmarks),
        ),
    ] = None,
    backbone: Backbone = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write; default: report.html in --out.")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Card (.yaml) or image folder of your own dataset, for examples of confusions. Other "
            "folders are never opened, whatever a record names. Repeatable.",
        ),
    ] = None,
    data_root: DataRoot = None,
    out: Out = Path("results"),
) -> None:
    """Write one HTML file about all records: summary, tables, figures, classes, confusions, settings.

    It is self-contained, so it can be emailed.
    """
    from promptbench.data import dataset as data
    from promptbench.reporting.html.report import finder, write_report
    from promptbench.trials.benchmarks import get_benchmark

    own = [data.load(name, data_root) for name in dict.fromkeys(dataset or ())]
    print_notes(own)
    path = file or out / "report.html"
    wanted = [get_benchmark(name).name for name in benchmark or ()]
    missing = write_report(out, path, wanted, backbone, finder(own, data_root))
    for name, reason in sorted(missing.items()):
        say(f"no images of {name}: {reason}", err=True)
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", err=True)
