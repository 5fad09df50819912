"""`promptbench ablate`."""

from typing import Annotated, Literal

import typer

from promptbench.cli import names
from promptbench.cli.given import sweep_from, with_run_options
from promptbench.cli.options import Options
from promptbench.cli.run import perform, print_tables
from promptbench.console import say

EXAMPLES = (
    "promptbench ablate mmlop --seeds 1,2,3",
    "promptbench ablate mmlop --seeds 1,2,3 --out results/ablation --format md",
)


@with_run_options
def ablate(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="A method with ablation recipes.",
            autocompletion=names.completing(names.methods),
        ),
    ],
    options: Options,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this table, such as chain. Repeatable."),
    ] = None,
    style: Annotated[
        Literal["table", "md"],
        names.choice("--format", ("table", "md"), "Format of the tables.", rich_help_panel="Output"),
    ] = "table",
) -> None:
    """Run a method's ablation recipes and compare each step with the published one."""
    from promptbench.analysis.ablation import steps_of
    from promptbench.errors import UserError, unknown
    from promptbench.execution.setup import require_success
    from promptbench.reporting.runs import ablation_tables
    from promptbench.trials.sweep import sweep_of

    groups = steps_of(method)
    for name in group or ():
        if name not in groups:
            raise unknown("value of --group", name, groups)
    groups = {name: steps for name, steps in groups.items() if name in (group or groups)}
    recipes = dict.fromkeys(recipe.name for steps in groups.values() for _, recipe in steps)
    asked = sweep_from(options, sweep_of(recipes, shots=(16,)))
    if len(asked.shots or ()) > 1:
        raise UserError("Ablations need a single --shots value.")
    setup, outcome = perform(asked, options)
    if options.dry_run:
        return
    if options.shard:
        print_tables(outcome)
        say("The ablation tables need all shards: run the same command without --shard.", err=True)
        return
    trials = {name: setup.trials([name]) for name in recipes}
    for text in ablation_tables(method, groups, trials, outcome.records, style):
        say(text)
    require_success(outcome)
