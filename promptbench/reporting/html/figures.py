"""The figures of a report: those of `promptbench.reporting.plots` that its records can give, kept small."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from promptbench.analysis.comparison import Material
from promptbench.errors import UserError
from promptbench.reporting.plots import Drawing, draw

#: in the order of the report
CAPTIONS = {
    "tradeoff": "Accuracy against trainable parameters.",
    "base-novel": "Base against novel accuracy; the curves are of equal harmonic mean (HM).",
    "heatmap": "Points above zero-shot.",
    "critical-difference": "Mean ranks over datasets, 1 is best.",
    "fewshot": "Accuracy against the number of shots.",
    "ablation": "MMLoP's steps and ranks, beside those of its paper.",
    "prompts": "How much prompts change the read-out token after each block, mean over runs.",
    "curves": "Training loss by epoch and, where it was measured, validation accuracy; mean over seeds.",
}
MAX_BYTES = 600_000  # of the figures of one benchmark, as text
INCH = 100  # pixels of the page for one of the figure: its 8 points are 11 pixels


class Figure(NamedTuple):
    """A picture of data: its caption, a PNG as a data URI, and its size on the page in pixels. Without a
    picture the caption says why."""

    caption: str
    uri: str = ""
    width: int = 0
    height: int = 0


def figures(material: Material) -> list[Figure]:
    """Every figure that the material can give, as long as they are not too large together."""
    found: list[Figure] = []
    for name, caption in CAPTIONS.items():
        try:
            drawing = draw(name, material)
        except UserError:  # such as one number of shots, of which no curve can be drawn
            continue
        uri = f"data:image/png;base64,{base64.b64encode(_small(drawing)).decode()}"
        if sum(len(one.uri) for one in found) + len(uri) > MAX_BYTES:
            found.append(Figure(f"Left out to keep the file small (--plot {name} draws it): {caption}"))
            continue
        width, height = (round(INCH * side) for side in drawing.figure.get_size_inches())
        found.append(Figure(" ".join([caption, *drawing.said]), uri, width, height))
    return found


def _small(drawing: Drawing) -> bytes:
    """A PNG with a palette of 256 colours: a third of the bytes."""
    file = io.BytesIO()
    picture = Image.fromarray(np.asarray(drawing.pixels())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()
