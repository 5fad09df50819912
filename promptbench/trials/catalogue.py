"""Tables of what can be named on the command line and in Python: methods, datasets, backbones ..."""

from typing import Any

from promptbench.clip.weights import Shape, backbone_shape, backbones, fitting_tags
from promptbench.data.cards import POCKET, cards
from promptbench.methods import _registry
from promptbench.trials.benchmarks import BENCHMARKS

Rows = list[dict[str, str]]


def method_rows(backbone: str = POCKET) -> Rows:
    """Methods and their variants, with the number of parameters that each trains on ``backbone``.

    Raises UserError for an unknown backbone.
    """
    shape = backbone_shape(backbone)
    rows = [
        {
            "method": name,
            "paper": kind.paper,
            "trains": " + ".join(sorted(kind.trains)) or "nothing",
            "parameters": _parameters(kind, shape),
            "benchmarks": "all but " + ", ".join(kind.unfit) if kind.unfit else f"all {len(BENCHMARKS)}",
        }
        for name, kind in _registry.methods().items()
    ]
    for name, recipe in _registry.recipes().items():
        if recipe.settings:
            kind = recipe.method
            count = kind.parameter_count(kind.Settings(**recipe.settings), shape, 1)
            rows.append({"method": name, "paper": recipe.about, "trains": "", "parameters": f"{count:,}"})
            rows[-1]["benchmarks"] = f"as {kind.name}"
    return rows


def _parameters(kind: Any, shape: Shape) -> str:
    """The count, or how it grows with the classes."""
    one, two = (kind.parameter_count(kind.Settings(), shape, n) for n in (1, 2))
    return f"{one:,}" if one == two else f"{two - one:,} per class"


def dataset_rows() -> Rows:
    """Every dataset with a card."""
    return [
        {
            "dataset": card.name,
            "suite": card.suite,
            "classes": str(card.classes or ""),
            "train / val / test": " / ".join(str(n) for n in (card.sizes or {}).values()),
            "template": card.template,
            "title": card.title,
        }
        for card, _ in cards().values()
    ]


def benchmark_rows() -> Rows:
    """Every benchmark."""
    return [{"benchmark": b.name, "what it does": b.summary} for b in BENCHMARKS.values()]


def backbone_rows() -> Rows:
    """Every backbone that can be prompted, with the weights that fit it."""
    rows = []
    for name in backbones():
        shape = backbone_shape(name)
        rows.append(
            {
                "backbone": name,
                "pixels": str(shape.image_size),
                "vision": f"{shape.vision_layers} x {shape.vision_width}",
                "text": f"{shape.text_layers} x {shape.text_width}",
                "joint": str(shape.embed_dim),
                "weights (--pretrained)": " ".join(fitting_tags(name))
                or ("embedded" if name == POCKET else "a file"),
            }
        )
    return rows
