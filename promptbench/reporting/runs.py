"""What a command prints after its runs: the table of each benchmark, and the tables of an ablation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from promptbench.analysis.ablation import measure, tabulate
from promptbench.analysis.summary import frame, summarise
from promptbench.console import table
from promptbench.reporting.tables import markdown, markdown_table, render
from promptbench.trials.record import Record
from promptbench.trials.trial import Trial


def run_tables(records: Sequence[Record]) -> Iterator[str]:
    """The table of each benchmark in ``records``. Raises UserError as `analysis.summary.frame`."""
    for benchmark in dict.fromkeys(record.trial.benchmark for record in records):
        mine = [record for record in records if record.trial.benchmark == benchmark]
        backbones = sorted({record.trial.backbone for record in mine})
        yield render(summarise(frame(mine)), "table", f"{benchmark}, backbone {', '.join(backbones)}")


def ablation_tables(
    method: str,
    groups: Mapping[str, Sequence[Any]],
    trials: Mapping[str, Sequence[Trial]],
    records: Sequence[Record],
    style: str = "table",
) -> Iterator[str]:
    """The tables of a method's ablations, one text per group of `ablation.steps_of`.

    ``trials``: those of each recipe by its name. ``style``: table, for the screen, or md.
    """
    by_hash = {record.hash: record for record in records}
    for title, steps in groups.items():
        measured = [measure(step, recipe, trials[recipe.name], by_hash) for step, recipe in steps]
        found = tabulate(measured, trials[steps[0][1].name][0])
        if style == "md":
            tables = [_markdown(rows) + "\n" for rows in (found.values, found.differences)]
            yield "\n".join(
                [f"### {method}: {title}\n", *tables, " ".join(map(markdown, found.notes)) + "\n"]
            )
        else:
            tables = [
                table(list(rows[0]), [list(row.values()) for row in rows]) if rows else ""
                for rows in (found.values, found.differences)
            ]
            yield f"{method}: {title}\n" + "".join(tables) + "\n".join(found.notes) + "\n"


def _markdown(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return ""
    return markdown_table(pd.DataFrame(rows), left=("step", "after", "recipe", "direction"))
