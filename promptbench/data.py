"""Datasets: cards, splits, the field's few-shot draw and its base/novel halves.

A dataset is a card (YAML) in ``datasets/`` and a loader, a module of ``promptbench.datasets`` with
``load(card, folder) -> (splits, pictures, fingerprint)``. Adding one edits nothing else.
"""

import importlib
import io
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from promptbench.clip import Classes
from promptbench.errors import UserError, invalid, unknown
from promptbench.files import hash_value
from promptbench.tokens import readable

Half = Literal["base", "novel", "all"]
Split = Literal["train", "val", "test"]


class Item(NamedTuple):
    """One picture: path relative to the dataset's root, label from 0, class name as stored."""

    path: str
    label: int
    classname: str


Splits = Mapping[str, Sequence[Item]]
_Entry = tuple[
    Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")],
    Annotated[int, Field(ge=0)],
    Annotated[str, Field(pattern=r"\S")],
]
Pictures = Callable[[str], bytes | Image.Image]


class Card(BaseModel):
    """What a dataset's YAML says about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str
    loader: str = Field("archive", pattern=r"^[a-z][a-z0-9_]*$", description="module of promptbench.datasets")
    source: str = Field("", description="file or folder with the pictures, relative to the card")
    template: str = Field("a photo of a {}.", pattern=r"\{\}")
    classes: int | None = None
    sizes: dict[Split, int] | None = Field(None, description="pictures per split")
    flip: bool = Field(True, description="False where a mirrored picture is no longer of its class")
    style: str = Field("", description="regular expression: its one group, in a picture's path, is the style")
    suite: str = ""
    licence: str = ""
    description: str = ""

    @field_validator("style")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"no regular expression, {error}") from None
        if pattern and groups != 1:
            raise ValueError(f"needs exactly one group, not {groups}")
        return pattern


@dataclass(frozen=True)
class Dataset:
    """Pictures, labels, class names and splits. ``fingerprint`` identifies splits, pictures and wording."""

    card: Card
    classnames: tuple[str, ...]
    splits: Splits
    pictures: Pictures
    fingerprint: str

    @property
    def name(self) -> str:
        return self.card.name

    def picture(self, path: str) -> Image.Image:
        """The picture in RGB. Raises UserError naming the file if it cannot be decoded."""
        try:
            found = self.pictures(path)
            image = Image.open(io.BytesIO(found)) if isinstance(found, bytes) else found
            return image.convert("RGB")
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"Picture {path!r} of {self.name} cannot be read ({type(error).__name__}); restore the file "
                "or take it out of the split."
            ) from None

    def half(self, half: Half) -> list[int]:
        """Labels of the base half (the first ceil(n/2)), the novel half, or all.

        The cut of KaiyangZhou/CoOp: datasets/oxford_pets.py, subsample_classes.
        """
        n = len(self.classnames)
        middle = (n + 1) // 2
        return list({"base": range(middle), "novel": range(middle, n), "all": range(n)}[half])

    def classes(self, half: Half = "all") -> Classes:
        """The label space of a half: names renumbered from 0."""
        return Classes(tuple(self.classnames[label] for label in self.half(half)), self.card.template)

    def items(self, split: Split, half: Half = "all", limit: int | None = None) -> list[Item]:
        """Items of a split in one half, in file order, labels renumbered; at most ``limit`` per class."""
        return restrict(self.splits[split], self.half(half), limit)

    def style(self, item: Item) -> str:
        """The drawing style of a picture, from its path; empty if the card tells none.

        Raises UserError naming the path if the card's pattern finds no style in it.
        """
        if not self.card.style:
            return ""
        found = re.search(self.card.style, item.path)
        if not found or not found[1]:
            raise UserError(
                f"The card of {self.name} finds no style in the path {item.path!r}; correct its pattern "
                f"{self.card.style!r} or rename the picture."
            )
        return found[1]

    def few_shot(self, shots: int, seed: int, half: Half) -> list[Item]:
        """The training pictures of a trial: sampled over all classes, then cut to ``half``.

        Raises UserError if a class holds fewer than ``shots`` pictures.
        """
        sizes = [0] * len(self.classnames)
        for item in self.splits["train"]:
            sizes[item.label] += 1
        if min(sizes) < shots:
            smallest = sizes.index(min(sizes))
            raise UserError(
                f"Class {self.classnames[smallest]!r} of {self.name} has {sizes[smallest]} training "
                f"pictures, fewer than {shots} shots; use --shots {sizes[smallest]} or less."
            )
        train, _ = draw_few_shot(self.splits["train"], self.splits["val"], shots, seed)
        return restrict(train, self.half(half))


def restrict(items: Iterable[Item], labels: Sequence[int], limit: int | None = None) -> list[Item]:
    """Items whose label is in ``labels``, renumbered by their place in it; at most ``limit`` per class."""
    new = {label: i for i, label in enumerate(labels)}
    left = dict.fromkeys(labels, limit if limit is not None else -1)
    kept = []
    for item in items:
        if item.label in new and left[item.label] != 0:
            left[item.label] -= 1
            kept.append(item._replace(label=new[item.label]))
    return kept


def draw_few_shot(
    train: Sequence[Item], val: Sequence[Item], shots: int, seed: int
) -> tuple[list[Item], list[Item]]:
    """The field's few-shot draw (Dassl.pytorch: dassl/data/datasets/base_dataset.py), bit for bit.

    One private stream seeded with ``seed`` first draws ``shots`` train items per class, then
    min(shots, 4) val items per class, classes in order of first appearance in the list. A class with
    fewer items is taken whole and draws nothing.
    """
    stream = random.Random(seed)

    def draw(items: Sequence[Item], k: int) -> list[Item]:
        groups: dict[int, list[Item]] = {}
        for item in items:
            groups.setdefault(item.label, []).append(item)
        return [x for g in groups.values() for x in (stream.sample(g, k) if len(g) >= k else g)]

    return draw(train, shots), draw(val, min(shots, 4))


# ---------------------------------------------------------------------- finding and loading


def read_card(path: Path) -> Card:
    """A card from YAML. Raises UserError if it is missing or not a card."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"Cannot read the dataset card {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"The dataset card {path} is not valid YAML: {' '.join(str(error).split())}."
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"The dataset card {path} must map field names to values.")
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        raise invalid(error, f"The dataset card {path}") from None


@cache
def cards() -> dict[str, tuple[Card, Path]]:
    """Every shipped dataset by name: its card and the folder the card lies in."""
    root = Path(str(resources.files("promptbench.datasets")))
    found: dict[str, tuple[Card, Path]] = {}
    for path in sorted(root.glob("*/*.yaml")):
        card = read_card(path)
        if card.name in found:
            raise RuntimeError(f"two dataset cards are called {card.name!r}: rename one of them")
        found[card.name] = (card, path.parent)
    return found


def suite(name: str) -> list[str]:
    """Names of a suite's datasets. Raises UserError if no card belongs to it."""
    members = [card.name for card, _ in cards().values() if card.suite == name]
    if not members:
        suites = {card.suite for card, _ in cards().values()} - {""}
        raise unknown("suite", name, suites, "See `promptbench ls datasets`.")
    return members


@cache
def load(name: str) -> Dataset:
    """A dataset by name, or by the path of a card ending in .yaml.

    Raises UserError for an unknown name, a card or split that does not hold together, a class without
    pictures, class names that no text model can tell apart, or fewer than two classes.
    """
    if name.endswith((".yaml", ".yml")):
        card, folder = read_card(Path(name)), Path(name).parent
    elif name in cards():
        card, folder = cards()[name]
    else:
        hint = "See `promptbench ls datasets`; the path of a card (.yaml) works too."
        raise unknown("dataset", name, cards(), hint)
    try:
        loader = importlib.import_module(f"promptbench.datasets.{card.loader}")
    except ModuleNotFoundError as error:
        if error.name != f"promptbench.datasets.{card.loader}":
            raise  # something the loader itself needs is not installed
        raise UserError(
            f"The card of {card.name} names a loader {card.loader!r} that is not in datasets/; correct it."
        ) from None
    if not hasattr(loader, "load"):
        raise UserError(f"The card of {card.name} names {card.loader!r}, which is no loader; correct it.")
    splits, pictures, fingerprint = loader.load(card, folder)
    identity = hash_value([fingerprint, card.template, card.flip])  # all that a result depends on
    return Dataset(card, _classnames(card, splits), splits, pictures, identity)


class _SplitFile(BaseModel):
    """The field's split JSON (KaiyangZhou/CoOp: datasets/oxford_pets.py, read_split)."""

    model_config = ConfigDict(strict=True)

    train: list[_Entry]
    val: list[_Entry]
    test: list[_Entry]


def read_splits(content: bytes, where: str) -> tuple[Splits, str]:
    """Splits in the field's JSON schema {"train": [[path, label, classname], ...], "val", "test"}, and
    their hash. Order is kept: the few-shot draw depends on it. Raises UserError if it is anything else.
    """
    try:
        found = _SplitFile.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{where} is not a split file: it needs train, val and test, each a list of "
            f"[path, label, class name] ({at}: {first['msg']})."
        ) from None
    splits = {split: [Item(*entry) for entry in getattr(found, split)] for split in ("train", "val", "test")}
    return splits, hash_value(splits)


def _classnames(card: Card, splits: Splits) -> tuple[str, ...]:
    """Class names in label order, with everything checked that could go wrong quietly."""
    names: dict[int, str] = {}
    for split, items in splits.items():
        for item in items:
            if names.setdefault(item.label, item.classname) != item.classname:
                raise UserError(
                    f"{card.name}: label {item.label} is called {names[item.label]!r} and, in {split}, "
                    f"{item.classname!r}; give every label one class name."
                )
    labels = sorted(names)
    for split in ("train", "test"):
        present = {item.label for item in splits[split]}
        for label in range(max(labels, default=-1) + 1):
            if label not in present:
                name = names.get(label, f"label {label}")
                raise UserError(f"{card.name}: class {name!r} has no {split} pictures; add some or drop it.")
    if len(labels) < 2:
        raise UserError(f"{card.name} has {len(labels)} class; classification needs at least two.")
    seen: dict[str, str] = {}
    for label in labels:
        # CLIP's tokenizer lower-cases and joins blanks.
        key = " ".join(readable(names[label]).lower().split())
        if key in seen:
            raise UserError(
                f"{card.name}: two classes are called {seen[key]!r} and {names[label]!r}, which CLIP cannot "
                "tell apart; rename one."
            )
        seen[key] = names[label]
    found: dict[str, Any] = {split: len(items) for split, items in splits.items()}
    if card.classes not in (None, len(labels)) or (card.sizes or found) != found:
        raise UserError(
            f"{card.name} has {len(labels)} classes and {found} pictures, but its card says {card.classes} "
            f"and {card.sizes}; correct the card or restore the files."
        )
    return tuple(names[label] for label in labels)
