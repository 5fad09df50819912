"""What a drawing is, and the style and helpers all figures share."""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from promptbench.reporting.plots._backend import matplotlib  # isort: skip  # before anything else of matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogFormatter

from promptbench.analysis.comparison import Material
from promptbench.errors import UserError
from promptbench.storage import write_atomic

# Okabe and Ito's palette: told apart with every common colour blindness, and in grey by the markers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.")
HALO = [withStroke(linewidth=2, foreground="white")]  # lines of the plot do not cross out a name
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 7,
    "pdf.fonttype": 42,  # embedded as TrueType
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    # Names are anybody's text: a dollar in one is a dollar.
    "text.parse_math": False,
    "text.usetex": False,
}
DPI = 200
WIDTH = 6.5  # inches: the text of a page
TALLEST = 100  # inches of a figure
REACHES = (5, 9, 14, 20, 28, 38, 50, 64)  # points between a point and its name: nearer is better


def look(material: Material, method: str) -> dict[str, Any]:
    """Colour and marker of a method, the same in every figure of the material."""
    i = list(material.shown["method"].unique()).index(method)
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def line(material: Material, method: str) -> dict[str, Any]:
    """The same with a line style: methods of one colour differ in it."""
    i = list(material.shown["method"].unique()).index(method)
    return look(material, method) | {"linestyle": LINES[i // len(COLOURS) % len(LINES)]}


def point(material: Material, row: Any) -> dict[str, Any]:
    """How the point of a row is drawn: published numbers hollow."""
    hollow = (
        {"mfc": "white", "mew": 1.1} if isinstance(row.get("source"), str) else {"mec": "0.2", "mew": 0.4}
    )
    return look(material, row["method"]) | hollow


@contextmanager
def styled(**more: Any) -> Iterator[None]:
    """The style of all figures. What matplotlib warns about (a character that its font has not got, a label
    without room) is seen in the figure."""
    with matplotlib.rc_context(STYLE | more), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


class PlainLog(LogFormatter):
    """Numbers at a logarithmic axis as plain text."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:,.10g}" if super().__call__(x, pos) else ""


@dataclass
class Drawing:
    """A figure, the rows it shows, and what is to be said of it in sentences."""

    name: str
    figure: Canvas
    data: pd.DataFrame
    said: list[str] = field(default_factory=list)

    def image(self, kind: str = "png") -> bytes:
        """The figure as a file: png, pdf or svg. The same records give the same bytes: no dates."""
        metadata: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
        file = io.BytesIO()
        with styled(**{"svg.hashsalt": self.name}):
            self.figure.savefig(file, format=kind, dpi=DPI, metadata=metadata)
        return file.getvalue()

    def pixels(self) -> Any:
        """The figure as a buffer [height, width, 4] of bytes (RGBA): drawn once, while `image` draws twice to
        find the layout, which may differ by some pixels."""
        with styled():
            self.figure.set_dpi(DPI)
            canvas: Any = FigureCanvasAgg(self.figure)
            canvas.draw()
        return canvas.buffer_rgba()

    def save(self, folder: Path) -> list[Path]:
        """Write PNG, PDF and the CSV of what is shown. Raises UserError if the folder cannot be written."""
        paths = [folder / f"{self.name}.{kind}" for kind in ("png", "pdf", "csv")]
        write_atomic(paths[0], self.image("png"))
        write_atomic(paths[1], self.image("pdf"))
        write_atomic(paths[2], self.data.to_csv(index=False))
        return paths


@dataclass(frozen=True)
class Figure:
    """What a file of this folder declares of its figure.

    ``caption`` stands under it in a report, which has the figures in the order of ``place``; ``needs``
    completes "The figure NAME needs ...", with how to get it.
    """

    name: str
    caption: str
    needs: str
    place: int
    make: Callable[[Material], Drawing]

    def draw(self, material: Material) -> Drawing:
        """Raises UserError where the material does not have what the figure needs."""
        with styled():
            return self.make(material)

    def require(self, ok: Any, found: str = "") -> None:
        """Raise UserError unless ``ok``: what the figure needs and what was ``found`` instead."""
        if not ok:
            raise UserError(f"The figure {self.name} needs {self.needs}{found and f'; {found}'}.")


def declare(caption: str, needs: str, place: int) -> Callable[[Callable[[Material], Drawing]], Figure]:
    """Declare the decorated function a figure, see `Figure`; it is called like the function and its file."""

    def made_by(make: Callable[[Material], Drawing]) -> Figure:
        return Figure(make.__name__.replace("_", "-"), caption, needs, place, make)

    return made_by


def new_figure(width: float = WIDTH, height: float = 3.7) -> Canvas:
    """An empty figure that no display and no global state knows of. Raises UserError if it is too tall."""
    if height > TALLEST:
        raise UserError(
            "There are too many methods or datasets for one figure; keep some in an --out of their own."
        )
    figure = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, columns: int, height: float = 1.7) -> tuple[Canvas, list[Any]]:
    """A figure of ``count`` axes in rows of ``columns``."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(max(3.5, WIDTH * min(1, columns / 3)), height * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for extra in axes[count:]:
        extra.set_visible(False)
    return figure, axes[:count]


def label_points(
    axes: Any,
    x: Sequence[float],
    y: Sequence[float],
    texts: Sequence[str],
    avoid: Sequence[tuple[float, float]] = (),
) -> None:
    """Names beside points, each at the nearest place where it lies on no other name, on no marker and, if
    possible, on none of ``avoid`` [(x, y)]; a thin line leads to its point where that is far."""
    figure = axes.figure
    figure.canvas.draw()
    unit = figure.dpi / 72  # pixels of a typographic point
    frame = np.array(axes.get_window_extent().extents)
    points = axes.transData.transform(np.column_stack([x, y]))
    bars = axes.transData.transform(np.reshape(list(avoid), (-1, 2)))
    # Boxes (left, bottom, right, top) to keep off, and how bad it is not to.
    boxes = [*np.hstack([points - 4 * unit, points + 4 * unit]), *np.hstack([bars, bars])]
    weights = [5.0] * len(points) + [0.3] * len(bars)
    for text in axes.texts:
        boxes.append(np.array(text.get_window_extent().extents))
        weights.append(20.0)
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ways = np.tile(np.column_stack([np.cos(turns), np.sin(turns)]), (len(REACHES), 1))
    reaches = np.repeat(REACHES, len(turns))[:, None]
    for i, (a, b, name) in enumerate(zip(x, y, texts, strict=True)):
        given: Any = {"fontsize": 7, "ha": "center", "va": "center", "path_effects": HALO}
        label = axes.annotate(name, (a, b), (0, 0), textcoords="offset points", **given)
        extent = label.get_window_extent()
        half = np.array([extent.width, extent.height]) / 2 + unit
        # the nearest point of the box is about ``reach`` points away
        offsets = reaches * ways * unit + half * np.clip(1.5 * ways, -1, 1)
        centres = points[i] + offsets
        places = np.hstack([centres - half, centres + half])
        outside = (places[:, :2] < frame[:2]).any(axis=1) | (places[:, 2:] > frame[2:]).any(axis=1)
        costs = 0.02 * reaches[:, 0] + 50 * outside + _overlaps(places, np.array(boxes)) @ np.array(weights)
        middle = np.linalg.norm(points - centres[:, None], axis=2) / 2
        apart = np.maximum(_distances(places, points), middle)
        # whose name is it?
        others = (np.delete(apart, i, axis=1) < apart[:, [i]]).any(axis=1)
        best = int(np.argmin(costs + others))
        place, doubtful = offsets[best], others[best]
        label.set_position(tuple(place / unit))
        boxes.append(places[best])
        weights.append(20.0)
        if doubtful or np.abs(place - half * np.sign(place)).max() > 10 * unit:
            label.remove()
            line = {"arrowstyle": "-", "color": "0.6", "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
            at = tuple(place / unit)
            axes.annotate(name, (a, b), at, textcoords="offset points", arrowprops=line, **given)


def _distances(boxes: Any, points: Any) -> Any:
    """How far each of ``points`` [N, 2] lies outside each of ``boxes`` [M, 4], as [M, N]."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return np.linalg.norm(np.maximum(0, np.maximum(low - points, points - high)), axis=2)


def _overlaps(boxes: Any, others: Any) -> Any:
    """Which of ``others`` [N, 4] each of ``boxes`` [M, 4] overlaps, as [M, N]."""
    return ((others[:, :2] < boxes[:, None, 2:]) & (others[:, 2:] > boxes[:, None, :2])).all(axis=2)


def bottom(axes: Sequence[Any], label: str) -> None:
    """Name the x axis under the lowest panel of each column."""
    columns = {round(one.get_position().x0, 2): one for one in axes}
    for one in columns.values():
        one.set_xlabel(label)


def legend_below(figure: Canvas, axes: Any, columns: int = 5) -> None:
    """One legend for all panels, under them."""
    handles: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def error_bars(row: Any, metric: str) -> list[list[float]] | None:
    """Distances from the mean to the ends of the 95 % interval, for `errorbar`; None where there is none."""
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    if low is None or pd.isna(low) or low == high:
        return None
    return [[max(0.0, row[metric] - low)], [max(0.0, high - row[metric])]]
