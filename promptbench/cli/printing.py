"""What commands print, over `promptbench.console`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from promptbench.console import say

if TYPE_CHECKING:
    from promptbench.data.dataset import Dataset


def examples(*lines: str) -> str:
    """An epilog that keeps its lines: rich joins lines that are not paragraphs."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])


def print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """A table whose columns are the keys of the first row; nothing without rows."""
    from promptbench.console import table

    if rows:
        say(table(list(rows[0]), [list(row.values()) for row in rows]), end="")


def print_notes(datasets: "Sequence[Dataset]") -> None:
    """What a user may not expect of the datasets."""
    for dataset in datasets:
        for note in dataset.notes:
            say(f"Note: {dataset.name}: {note}.", err=True)
