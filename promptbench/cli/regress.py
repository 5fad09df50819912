"""`promptbench regress`."""

from pathlib import Path
from typing import Annotated

import typer

from promptbench.cli.options import DataRoot
from promptbench.console import say
from promptbench.errors import UserError

EXAMPLES = (
    "promptbench regress --baseline results/baseline.json",
    "promptbench regress --update-baseline --recipe examples/nightly.yaml",
)


def regress(
    baseline: Annotated[Path, typer.Option(metavar="FILE", help="What to compare the new run with.")] = Path(
        "results/baseline.json"
    ),
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write the baseline instead of comparing with it.")
    ] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sweep of a new baseline; default: that of the old baseline."),
    ] = None,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the runs; default: a temporary one.")
    ] = None,
) -> None:
    """Run the baseline's recipe again and compare.

    Exit code 1 if accuracy fell, training steps became slower, or runs are missing.
    """
    from promptbench.checks.regress import check, publish, summary, update

    if update_baseline:
        made = update(baseline, recipe, data_root, out)
        say(f"wrote {baseline}: {len(made.results)} results, steps of {', '.join(made.steps)}")
        return
    if recipe is not None:
        raise UserError("--recipe is for a new baseline: add --update-baseline.")
    report, against = check(baseline, data_root, out)
    text = summary(report, against)
    say(text, end="")
    if problem := publish(text):
        say(problem, err=True)
    if report.problems:
        raise typer.Exit(1)
