"""`promptbench sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from promptbench.cli.given import sweep_from, with_run_options
from promptbench.cli.options import Options
from promptbench.cli.run import perform, print_tables

EXAMPLES = (
    "promptbench sweep examples/ranks.yaml --dry-run",
    "promptbench sweep examples/ranks.yaml --shard $SLURM_ARRAY_TASK_ID/16",
)


@with_run_options
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep; see docs/sweep.md.")],
    options: Options,
) -> None:
    """Run every combination of the values in a YAML file; options override the file."""
    from promptbench.trials.sweep import read_sweep

    print_tables(perform(sweep_from(options, read_sweep(file)), options)[1])
