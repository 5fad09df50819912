"""`promptbench run`, and what it shares with `sweep` and `ablate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from promptbench.cli import names
from promptbench.cli.given import how, sweep_from, with_run_options
from promptbench.cli.options import Options
from promptbench.cli.printing import print_notes, print_rows
from promptbench.console import say

if TYPE_CHECKING:
    from promptbench.execution.execute import Outcome
    from promptbench.execution.setup import Setup
    from promptbench.trials.sweep import Sweep

EXAMPLES = (
    "promptbench run coop maple mmlop zeroshot --seeds 1,2,3",
    "promptbench run mmlop --dataset icons --set rank=2 --epochs 3",
)


@with_run_options
def run(
    methods: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD",
            help="See `promptbench ls methods`.",
            autocompletion=names.completing(names.methods),
        ),
    ],
    options: Options,
) -> None:
    """Train methods and evaluate them. Finished trials are skipped; interrupted ones resume."""
    from promptbench.trials.sweep import sweep_of

    _, outcome = perform(sweep_from(options, sweep_of(methods)), options)
    print_tables(outcome)


def perform(sweep: "Sweep", options: Options) -> "tuple[Setup, Outcome]":
    """Run the trials of a sweep, or print them (``--dry-run``)."""
    from promptbench.execution.execute import Outcome
    from promptbench.execution.setup import prepare
    from promptbench.trials.preview import preview

    setup = prepare(sweep, how(options))
    print_notes(list(setup.datasets.values()))
    trials = setup.selected()
    if not trials:
        say(f"Shard {options.shard} contains no trials.", err=True)
        return setup, Outcome()
    if options.dry_run:
        rows, line = preview(trials, setup.datasets, setup.out)
        print_rows(rows)
        say(line)
        return setup, Outcome()
    return setup, setup.run(trials)


def print_tables(outcome: "Outcome") -> None:
    """The table of each benchmark that was run. Raises UserError if a trial failed."""
    if not (outcome.records or outcome.failures):
        return
    from promptbench.execution.setup import require_success
    from promptbench.reporting.runs import run_tables

    for table in run_tables(outcome.records):
        say(table)
    require_success(outcome)
