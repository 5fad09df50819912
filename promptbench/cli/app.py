"""The command line as a whole: its commands in the order of ``promptbench --help``."""

from pathlib import Path
from typing import Annotated

import typer

from promptbench.cli import (
    ablate,
    cache,
    compare,
    data,
    ls,
    profile,
    regress,
    report,
    run,
    show,
    sweep,
    verify,
)
from promptbench.cli.printing import examples
from promptbench.console import say
from promptbench.errors import UserError

app = typer.Typer(
    name="promptbench",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import promptbench

        say(promptbench.__version__)
        raise typer.Exit


@app.callback(
    epilog=examples("promptbench run mmlop --benchmark base2novel", "promptbench compare --plot tradeoff")
)
def _app(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Prompt learning on CLIP: train, evaluate and compare methods on one engine."""
    try:
        Path.cwd()  # libraries end the process without a word about it
    except OSError:
        raise UserError("The folder this command was started in is gone; change to another.") from None


for name, command, lines in (
    ("run", run.run, run.EXAMPLES),
    ("sweep", sweep.sweep, sweep.EXAMPLES),
    ("ablate", ablate.ablate, ablate.EXAMPLES),
    ("compare", compare.compare, compare.EXAMPLES),
    ("report", report.report, report.EXAMPLES),
    ("verify", verify.verify, verify.EXAMPLES),
    ("show", show.show, show.EXAMPLES),
    ("ls", ls.list_, ls.EXAMPLES),
    ("profile", profile.profile, profile.EXAMPLES),
    ("regress", regress.regress, regress.EXAMPLES),
):
    app.command(name, epilog=examples(*lines))(command)
app.add_typer(data.app, name="data")
app.add_typer(cache.app, name="cache")
