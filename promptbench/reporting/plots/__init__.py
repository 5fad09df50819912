"""Figures: each is drawn from one `Material` and written as PNG, PDF and the CSV of what it shows.

`FIGURES` holds them by name. A figure that the material cannot give raises UserError with one sentence, so
"all that apply" is: try each.
"""

from collections.abc import Callable

from promptbench.reporting.plots._base import Drawing, Material, styled
from promptbench.reporting.plots.ablation import ablation
from promptbench.reporting.plots.base_novel import base_novel
from promptbench.reporting.plots.critical_difference import critical_difference
from promptbench.reporting.plots.curves import curves
from promptbench.reporting.plots.fewshot import fewshot
from promptbench.reporting.plots.heatmap import heatmap
from promptbench.reporting.plots.prompts import prompts
from promptbench.reporting.plots.tradeoff import pareto, tradeoff

__all__ = ["FIGURES", "Drawing", "Material", "draw", "pareto"]

FIGURES: dict[str, Callable[[Material], Drawing]] = {
    "tradeoff": tradeoff,
    "base-novel": base_novel,
    "heatmap": heatmap,
    "fewshot": fewshot,
    "curves": curves,
    "prompts": prompts,
    "ablation": ablation,
    "critical-difference": critical_difference,
}


def draw(name: str, material: Material) -> Drawing:
    """The figure called ``name``, in the style of all. Raises UserError where the material cannot give it."""
    with styled():
        return FIGURES[name](material)
