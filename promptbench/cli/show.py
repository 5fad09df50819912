"""`promptbench show`."""

from pathlib import Path
from typing import Annotated

import typer

from promptbench.cli.options import Out
from promptbench.cli.printing import print_rows

EXAMPLES = (
    "promptbench show 3f2a91c0",
    "promptbench show results/runs/base2novel/mmlop/icons/shots16-seed1-3f2a91c0",
)


def show(
    trial: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder, or the first characters of its hash.")
    ],
    out: Out = Path("results"),
) -> None:
    """Show what one run measured, its settings and where it ran."""
    from promptbench.reporting.show import describe, find_record

    print_rows([{"": key, " ": value} for key, value in describe(*find_record(trial, out))])
