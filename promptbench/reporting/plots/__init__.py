"""Figures, one per file here. To add a figure, add a file: `base_novel.py` declares the figure
``base-novel``, its caption and what it needs. Files with an underscore in front hold what figures share.

Names come from the files' names, so that nothing is imported (and no matplotlib) before a figure is drawn.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from promptbench.errors import unknown

if TYPE_CHECKING:
    from promptbench.analysis.comparison import Material
    from promptbench.reporting.plots._base import Drawing, Figure


def names() -> list[str]:
    """What figures there are."""
    return [m.name.replace("_", "-") for m in iter_modules(__path__) if not m.name.startswith("_")]


def get_figure(name: str) -> "Figure":
    """The figure called ``name``. Raises UserError with the nearest name."""
    if name not in names():
        raise unknown("figure", name, names())
    attribute = name.replace("-", "_")
    figure: Figure = getattr(import_module(f"{__name__}.{attribute}"), attribute)
    return figure


def draw(name: str, material: "Material") -> "Drawing":
    """The figure called ``name``. Raises UserError where the material cannot give it."""
    return get_figure(name).draw(material)
