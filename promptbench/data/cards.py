"""Dataset cards (YAML), and the datasets and suites that they define."""

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from promptbench.errors import UserError, invalid, unknown
from promptbench.storage import read_yaml

POCKET = "pocket"  # the embedded default backbone and suite
Half = Literal["base", "novel", "all"]
Split = Literal["train", "val", "test"]


Model = TypeVar("Model", bound=BaseModel)


class Archive(BaseModel):
    """A download of a dataset: unpacking what lies under ``strip`` in it into ``to`` gives ``makes``.

    Paths are relative to the dataset's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    makes: str
    strip: str = ""
    to: str = ""


class Card(BaseModel):
    """A dataset's card. Cards with a ``folder`` describe data the user has under a data root."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str
    loader: str = Field("archive", pattern=r"^[a-z][a-z0-9_]*$", description="module of promptbench.datasets")
    source: str = Field("", description="archive, folder or split file, relative to the card or the folder")
    folder: str = Field("", description="folder under the data root; empty for data beside the card")
    images: str = Field("", description="image root inside the folder: what the split's paths start from")
    archives: tuple[Archive, ...] = ()
    options: dict[str, str] = Field({}, description="further options of the loader")
    template: str = Field("a photo of a {}.", pattern=r"\{\}")
    classes: int | None = None
    sizes: dict[Split, int] | None = Field(None, description="images per split")
    halves: dict[Half, int] | None = Field(None, description="test images of base and novel half")
    landmarks: tuple[str, str, str, str] | None = Field(
        None, description="first class, last base class, first novel class, last class"
    )
    published: dict[Half, float] = Field({}, description="published zero-shot accuracy of ViT-B/16, percent")
    repeated_names: bool = Field(False, description="True where two classes share a name, as in ImageNet")
    flip: bool = Field(True, description="False where a mirrored image is no longer of its class")
    style: str = Field("", description="regular expression: its one group, in an image's path, is the style")
    suite: str = ""
    licence: str = ""
    url: str = ""
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


def read_card(path: Path) -> Card:
    """A card from YAML. Raises UserError if it is missing or not a card."""
    values = read_yaml(path, "dataset card")
    if not isinstance(values, dict):
        raise UserError(f"The dataset card {path} must map field names to values.")
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        raise invalid(error, f"The dataset card {path}") from None


def _shipped() -> Path:
    return Path(str(resources.files("promptbench.datasets")))


@cache
def cards() -> dict[str, tuple[Card, Path]]:
    """Every shipped dataset by name: its card and the folder the card lies in."""
    found: dict[str, tuple[Card, Path]] = {}
    for path in sorted(_shipped().glob("*/*.yaml")):
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
