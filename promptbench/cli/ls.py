"""`promptbench ls`."""

from typing import Annotated

import typer

from promptbench.cli import names
from promptbench.cli.printing import print_rows

EXAMPLES = ("promptbench ls methods", "promptbench ls methods --backbone ViT-B-16-quickgelu")
LISTS = ("methods", "datasets", "benchmarks", "backbones", "figures")


def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="LIST",
            help=", ".join(LISTS[:-1]) + f" or {LISTS[-1]}.",
            autocompletion=names.completing(lambda: LISTS),
        ),
    ],
    backbone: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Count the methods' parameters on it.",
            autocompletion=names.completing(names.backbones),
        ),
    ] = "pocket",
) -> None:
    """List the names that other commands take."""
    if what not in LISTS:
        from promptbench.errors import unknown

        raise unknown("value of LIST", what, LISTS)
    if what == "figures":
        print_rows([{"figure": name} for name in names.figures()])
        return
    from promptbench.trials import catalogue

    print_rows(
        {
            "methods": lambda: catalogue.method_rows(backbone),
            "datasets": catalogue.dataset_rows,
            "benchmarks": catalogue.benchmark_rows,
            "backbones": catalogue.backbone_rows,
        }[what]()
    )
