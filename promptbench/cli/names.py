"""Names that options take: completed by the shell, and suggested where a user mistypes one.

Completion must answer at once, so what can be read without torch is read without it.
"""

from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

import typer


def methods() -> list[str]:
    """Methods and their variants: a method's file has its name."""
    from promptbench.storage import parse_yaml

    folder = resources.files("promptbench.methods")
    files = [one.name.removesuffix(".py") for one in folder.iterdir() if one.name.endswith(".py")]
    variants = parse_yaml(folder.joinpath("recipes.yaml").read_text("utf-8"))
    return sorted({*(name for name in files if not name.startswith("_")), *variants})


def datasets() -> list[str]:
    from promptbench.data.cards import cards

    return sorted(cards())


def suites() -> list[str]:
    from promptbench.data.cards import cards

    return sorted({card.suite for card, _ in cards().values()} - {""})


def benchmarks() -> list[str]:
    from promptbench.trials.benchmarks import BENCHMARKS

    return list(BENCHMARKS)


def presets() -> list[str]:
    from promptbench.trials.trial import PRESETS

    return list(PRESETS)


def backbones() -> list[str]:
    from promptbench.clip.architectures import native
    from promptbench.data.cards import POCKET

    return [POCKET, *native()]


def figures() -> list[str]:
    from promptbench.reporting import plots

    return plots.names()


def completing(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A completion callback: the names that start as the word on the command line."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def choice(option: str, names: Iterable[str] | Callable[[], Iterable[str]], help: str, **more: Any) -> Any:
    """An option that takes one of ``names`` (a function, where they take time to find): completed by the
    shell; for another name a UserError with the nearest one."""

    def known() -> list[str]:
        return list(names() if callable(names) else names)

    def parse(text: str) -> str:
        if text not in known():
            from promptbench.errors import unknown

            raise unknown(f"value of {option}", text, known())
        return text

    more.setdefault("metavar", "NAME" if callable(names) else "|".join(names))
    return typer.Option(option, help=help, parser=parse, autocompletion=completing(known), **more)
