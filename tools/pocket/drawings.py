"""Icon sets: their names, licences and drawings, rendered from the npm packages ``@iconify-json/<set>``."""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

SIDE = 64  # pixels of a rendered drawing
LICENCES = {"MIT", "ISC", "Apache-2.0", "BSD-3-Clause", "CC0-1.0", "Unlicense", "CC-BY-3.0", "CC-BY-4.0"}
SHARE_ALIKE = {"CC-BY-SA-4.0"}
SOLID = {"fill", "filled", "solid", "bold", "bulk", "sharp"}
DUOTONE = {"duotone", "twotone", "duo"}
OUTLINE = {"outline", "outlined", "line", "linear", "o", "light", "thin", "regular", "stroke"}
# Words of an icon's name that say how it is drawn, not what it shows.
MANNER = SOLID | DUOTONE | OUTLINE | {
    "alt", "alternate", "round", "rounded", "s", "l", "flat", "color", "colour", "ios", "md", "fa", "i", "f",
    "icon", "small", "large", "big", "mini", "simple", "remix", "broken", "tone", "24px", "expressive", "ui",
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """One icon: its set, its name there, and its SVG text."""

    set: str
    name: str
    svg: str

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the name that say what is shown: no manner, no bare numbers."""
        words = [word for word in re.split(r"[-_ ]+", self.name.lower()) if word]
        return tuple(word for word in words if word not in MANNER and not word.isdigit())

    @property
    def phrase(self) -> str:
        return " ".join(self.words)

    def manner(self, usual: str) -> str:
        """Drawing style where the set's is ``usual``: a style, ``mixed`` or ``mixed-solid``."""
        if not usual.startswith("mixed"):
            return usual
        words = set(re.split(r"[-_ ]+", self.name.lower()))
        if words & DUOTONE:
            return "duotone"
        if usual == "mixed":
            return "solid" if words & SOLID else "outline"
        return "outline" if words & OUTLINE else "solid"


class IconSet:
    """One package. Raises ValueError where its licence is not one of those this recipe may use."""

    def __init__(self, packages: Path, name: str) -> None:
        folder = packages / "@iconify-json" / name
        self.name = name
        self._icons: dict[str, Any] = json.loads((folder / "icons.json").read_text("utf-8"))
        info = json.loads((folder / "info.json").read_text("utf-8"))
        self.title: str = info["name"]
        self.vendor: str = info["author"]["name"]
        self.url: str = info["author"].get("url", "")
        self.licence: str = info["license"]["spdx"]
        self.version: str = json.loads((folder / "package.json").read_text("utf-8"))["version"]
        self.coloured: bool = bool(info.get("palette"))
        if self.licence not in LICENCES | SHARE_ALIKE:
            raise ValueError(f"{name}: licence {self.licence} is not one this recipe may use")
        characters = folder / "chars.json"
        #: Unicode code points, like ``1f468-200d-1f680``, to icon names
        self.characters: dict[str, str] = json.loads(characters.read_text()) if characters.is_file() else {}

    def __iter__(self) -> Iterator[Drawing]:
        for name in sorted(self._icons["icons"]):
            if not self._icons["icons"][name].get("hidden"):
                yield self[name]

    def __contains__(self, name: str) -> bool:
        return name in self._icons["icons"]

    def __getitem__(self, name: str) -> Drawing:
        icon = self._icons["icons"][name]
        left, top, width, height = (
            icon.get(key, self._icons.get(key, usual))
            for key, usual in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{SIDE}" height="{SIDE}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        return Drawing(self.name, name, svg)


def render(drawing: Drawing) -> NDArray[np.uint8]:
    """The drawing as RGBA [64, 64, 4], transparent ground, currentColor black."""
    import resvg_py  # a tool of the recipe only; hashing must work without it

    png = resvg_py.svg_to_bytes(svg_string=drawing.svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def render_all(drawings: Sequence[Drawing], cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Drawings as RGBA [n, 64, 64, 4] and their perceptual hashes [n], on all cores; kept in ``cache``."""
    key = hashlib.sha256("\n".join(drawing.svg for drawing in drawings).encode()).hexdigest()[:16]
    cached = cache / f"{key}.npz"
    if not cached.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            done = list(pool.map(_render_hashed, drawings, chunksize=64))
        pictures, hashes = (
            np.stack([picture for picture, _ in done]),
            np.array([number for _, number in done]),
        )
        np.savez(cached.with_suffix(".tmp.npz"), pictures=pictures, hashes=hashes)
        cached.with_suffix(".tmp.npz").replace(cached)
    stored = np.load(cached)
    return stored["pictures"], stored["hashes"]


def _render_hashed(drawing: Drawing) -> tuple[NDArray[np.uint8], np.uint64]:
    picture = render(drawing)
    return picture, perceptual_hash(on_white(picture))


def on_white(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGBA [..., 4] laid on white: RGB [..., 3]."""
    alpha = pictures[..., 3:].astype(np.uint16)
    return ((pictures[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def usable(picture: NDArray[np.uint8]) -> bool:
    """Whether an RGB picture [64, 64, 3] shows something: neither blank nor one flat square."""
    ink = 255 - picture.min(axis=-1).astype(int)
    return (ink > 32).mean() > 0.015 and picture.astype(float).std() > 6


def perceptual_hash(picture: NDArray[np.uint8]) -> np.uint64:
    """64 bits of an RGB picture: signs of the low DCT terms of the drawing, cut to its bounding box.

    The cut makes the hash blind to margins and size, in which sets of redrawn icons differ.
    """
    grey = Image.fromarray(picture).convert("L")
    ink = np.asarray(grey) < 240
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if len(rows):
        grey = grey.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    small = np.asarray(grey.resize((32, 32), Image.Resampling.BOX), float)
    low = dctn(small, norm="ortho")[:8, :8].ravel()[1:]
    bits = np.append(low > np.median(low), False)
    return np.packbits(bits).view(np.uint64)[0]


def nearest(hashes: NDArray[np.uint64], others: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each hash the smallest Hamming distance to ``others`` and where it is."""
    best = np.full(len(hashes), 65, int)
    where = np.full(len(hashes), -1, int)
    if len(others):
        for start in range(0, len(hashes), 256):
            far = np.bitwise_count(hashes[start : start + 256, None] ^ others[None])
            where[start : start + 256] = far.argmin(1)
            best[start : start + 256] = far.min(1)
    return best, where


@cache
def read_set(packages: Path, name: str) -> IconSet:
    return IconSet(packages, name)


def one_per_manner(drawings: Iterable[Drawing]) -> list[Drawing]:
    """At most an outline and a solid drawing of each phrase: other weights and sizes add little."""
    chosen: dict[tuple[str, str], Drawing] = {}
    for drawing in sorted(drawings, key=lambda one: (len(one.name), one.name)):
        manner = drawing.manner("mixed")
        chosen.setdefault((drawing.phrase, "outline" if manner == "duotone" else manner), drawing)
    return sorted(chosen.values(), key=lambda one: one.name)
