"""`promptbench data check`, `prepare` and `import-draw`."""

from pathlib import Path
from typing import Annotated

import typer

from promptbench.cli import names
from promptbench.cli.options import DataRoot
from promptbench.cli.printing import examples, print_rows
from promptbench.console import say
from promptbench.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Check and prepare the standard datasets.")

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...", help="Datasets; default: all.", autocompletion=names.completing(names.datasets)
    ),
]


@app.command(
    epilog=examples("promptbench data check --data-root ~/data", "promptbench data check dtd eurosat --full")
)
def check(
    chosen: Names = None,
    data_root: DataRoot = None,
    full: Annotated[bool, typer.Option("--full", help="Decode every image, not a sample.")] = False,
) -> None:
    """Check whether the datasets match their cards. Exit code 1 if anything is missing or differs."""
    from promptbench.data.check import check

    found = check(chosen or [], data_root, full)
    print_rows([one.row() for one in found])
    for one in found:
        for problem in [*one.problems, *one.notes]:
            say(f"{one.name}: {problem}")
    if any(one.problems for one in found):
        raise typer.Exit(1)


@app.command(
    epilog=examples("promptbench data prepare --data-root ~/data", "promptbench data prepare imagenet sun397")
)
def prepare(chosen: Names = None, data_root: DataRoot = None) -> None:
    """Unpack downloaded archives, sort ImageNet's validation images and list folders once.

    This writes into the data root; no other command does. Nothing is downloaded.
    """
    from promptbench.data.dataset import data_root as resolve
    from promptbench.data.prepare import prepare

    root = resolve(data_root)
    if root is None:
        raise UserError("Give the folder of the datasets with --data-root or PROMPTBENCH_DATA.")
    for line in prepare(chosen or [], root):
        say(line)


@app.command(
    "import-draw",
    epilog=examples(
        "promptbench data import-draw dtd/split_fewshot/shot_16-seed_1.pkl --dataset dtd",
        "promptbench run coop --dataset dtd --draws draws",
    ),
)
def import_draw(
    file: Annotated[Path, typer.Argument(help="A pickle shot_<K>-seed_<S>.pkl of the official code.")],
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The dataset it was drawn from.",
            autocompletion=names.completing(names.datasets),
        ),
    ],
    data_root: DataRoot = None,
    draws: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to write the draw to, for `run --draws`.")
    ] = Path("draws"),
) -> None:
    """Convert a few-shot draw of the official code into JSON, and compare it with our own draw."""
    from promptbench.data.imported import convert_draw

    say(convert_draw(file, dataset, data_root, draws))
