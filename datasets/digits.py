"""scikit-learn's handwritten digits: 1,797 real scans of 8 x 8 grey levels, as dark ink on white."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from promptbench.data.cards import Card
from promptbench.data.dataset import Found
from promptbench.data.splits import read_splits
from promptbench.errors import UserError
from promptbench.storage import hash_value


def load(card: Card, folder: Path) -> Found:
    """Splits from ``card.source``, whose paths are indices into the scans."""
    source = folder / card.source
    if not source.is_file():
        raise UserError(f"{card.name}: there is no split file {source}.")
    splits, fingerprint = read_splits(source.read_bytes(), str(source))

    return Found(splits, _image, hash_value([fingerprint, "scikit-learn digits, ink on white"]))


@cache
def _scans() -> Any:
    """[1797, 8, 8], 0 (paper) to 16 (ink); read when the first image is looked at, not to plan a run."""
    from sklearn.datasets import load_digits

    return load_digits().images


def _image(path: str) -> Image.Image:
    return Image.fromarray((255 - _scans()[int(path)] * (255 / 16)).round().astype(np.uint8))
