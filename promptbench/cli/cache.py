"""`promptbench cache ls` and `clear`."""

from typing import TYPE_CHECKING

import typer

from promptbench.cli.printing import examples, print_rows
from promptbench.console import say

if TYPE_CHECKING:
    from promptbench.clip.cache import FeatureCache

app = typer.Typer(no_args_is_help=True, help="Frozen features stored on disk (PROMPTBENCH_CACHE).")


def _cache() -> "FeatureCache":
    from promptbench.clip.cache import FeatureCache
    from promptbench.storage import default_folder

    return FeatureCache(default_folder())


@app.command(
    "ls", epilog=examples("promptbench cache ls", "PROMPTBENCH_CACHE=/scratch/features promptbench cache ls")
)
def list_() -> None:
    """List the stored features by backbone and dataset, and the space they take (PROMPTBENCH_CACHE_GB)."""
    from promptbench.clip.cache_listing import listing

    rows, lines = listing(_cache())
    print_rows(rows)
    for line in lines:
        say(line)


@app.command(
    epilog=examples("promptbench cache clear", "PROMPTBENCH_CACHE=/scratch/features promptbench cache clear")
)
def clear() -> None:
    """Delete all stored features and what killed commands left; features are recomputed when needed."""
    files, size = _cache().clear()
    say(f"deleted {files} files, {size / 1e6:.1f} MB")
