"""Shared fixtures: a tiny random CLIP, a tiny dataset of coloured pictures, a private cache."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from promptbench.clip import backbones
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data import dataset as data
from promptbench.data.classnames import Classes
from tests import plain

COLOURS = {
    "red square": (220, 30, 30),
    "green_field": (30, 200, 40),
    "sea": (20, 60, 220),
    "bright yellow sun": (240, 230, 20),
    "night": (10, 10, 15),
}

torch.set_num_threads(1)  # the models are tiny: a second thread only waits


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PROMPTBENCH_JOBS", "1")  # starting worker processes takes seconds


@pytest.fixture(scope="session")
def tiny() -> torch.nn.Module:
    return plain.tiny_model()


@pytest.fixture
def clip(tiny: torch.nn.Module) -> FrozenCLIP:
    """A random CLIP of 4 + 4 layers, widths 64 and 128."""
    return FrozenCLIP(tiny, backbones.shape_of(plain.CONFIG))


@pytest.fixture
def classes() -> Classes:
    return Classes(("golden retriever", "grand_piano", "ox", "Boeing 737-800"))


MakeDataset = Callable[..., Path]


def write_dataset(
    parent: Path,
    name: str = "colours",
    classes: dict[str, tuple[int, int, int]] | None = None,
    per_split: tuple[int, int, int] = (4, 2, 3),
    card: dict[str, Any] | None = None,
) -> Path:
    """A dataset folder with split.json and a card under ``parent``; the card's path."""
    root = parent / name
    splits: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for label, (classname, colour) in enumerate((classes or COLOURS).items()):
        for split, count in zip(splits, per_split, strict=True):
            for i in range(count):
                file = f"images/{label}/{split}{i}.png"
                picture = Image.new("RGB", (20 + 3 * i, 24), colour)
                picture.paste((255, 255, 255), (2, 2, 9 + i, 9))  # so that crops and mirrors differ
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                picture.save(root / file)
                splits[split].append([file, label, classname])
    (root / "split.json").write_text(json.dumps(splits))
    path = root / "card.yaml"
    path.write_text(yaml.safe_dump({"name": name, "title": name, "source": ".", **(card or {})}))
    return path


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Write a dataset folder with split.json and a card; returns the card's path."""
    return partial(write_dataset, tmp_path)


@pytest.fixture
def colours(make_dataset: MakeDataset) -> data.Dataset:
    """Five classes of plain colours, 4 / 2 / 3 pictures per class."""
    return data.load(str(make_dataset()))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Equal up to ``tolerance`` times the largest entry (at least 1)."""
    return bool((a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()))
