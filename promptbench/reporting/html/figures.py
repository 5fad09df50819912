"""The figures of a report: those of `promptbench.reporting.plots` that its records can give, kept small."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from promptbench.analysis.comparison import Material
from promptbench.errors import UserError
from promptbench.reporting.plots import get_figure, names
from promptbench.reporting.plots._base import Drawing

MAX_BYTES = 600_000  # of the figures of one benchmark, as text
INCH = 100  # pixels of the page for one of the figure: its 8 points are 11 pixels


class Embedded(NamedTuple):
    """A figure in the page: its caption, a PNG as a data URI, and its size on the page in pixels. Without an
    image the caption says why."""

    caption: str
    uri: str = ""
    width: int = 0
    height: int = 0


def figures(material: Material) -> list[Embedded]:
    """Every figure that the material can give, as long as they are not too large together."""
    found: list[Embedded] = []
    for figure in sorted(map(get_figure, names()), key=lambda one: one.place):
        name, caption = figure.name, figure.caption
        try:
            drawing = figure.draw(material)
        except UserError:  # such as one number of shots, of which no curve can be drawn
            continue
        uri = f"data:image/png;base64,{base64.b64encode(_small(drawing)).decode()}"
        if sum(len(one.uri) for one in found) + len(uri) > MAX_BYTES:
            found.append(Embedded(f"Left out to keep the file small (--plot {name} draws it): {caption}"))
            continue
        width, height = (round(INCH * side) for side in drawing.figure.get_size_inches())
        found.append(Embedded(" ".join([caption, *drawing.said]), uri, width, height))
    return found


def _small(drawing: Drawing) -> bytes:
    """A PNG with a palette of 256 colours: a third of the bytes."""
    file = io.BytesIO()
    image = Image.fromarray(np.asarray(drawing.pixels())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()
