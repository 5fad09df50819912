"""Check datasets against their cards: files, class counts, split sizes, class order, images."""

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from promptbench.data import dataset as data
from promptbench.data.cards import Card, cards
from promptbench.data.classnames import readable
from promptbench.data.contents import SEVERAL
from promptbench.data.dataset import Dataset
from promptbench.data.folders import note
from promptbench.data.images import several_frames
from promptbench.data.splits import Item, overlap
from promptbench.errors import UserError, unknown

SAMPLE = 10  # images decoded per split where not all are


@dataclass
class Check:
    """What was found for one dataset. It is in order if ``problems`` is empty; ``notes`` hold what else the
    user may want to know."""

    name: str
    found: bool = False
    classes: str = "-"
    sizes: str = "-"
    halves: str = "-"
    decoded: str = "-"
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self) -> dict[str, str]:
        verdict = "ok" if not self.problems else "off" if self.found else "missing"
        return {
            "dataset": self.name,
            "state": verdict,
            "classes": self.classes,
            "train / val / test": self.sizes,
            "base / novel test": self.halves,
            "images decoded": self.decoded,
        }


def check(names: Sequence[str], root: Path | None, full: bool = False) -> list[Check]:
    """Check datasets by name (none: all that are shipped or are under the data root). ``full`` decodes every
    image, otherwise a sample is decoded. Raises UserError for an unknown name."""
    for name in names:
        if name.partition(":")[0] not in cards() and not Path(name).exists():
            raise unknown("dataset", name, cards(), "See `promptbench ls datasets`.")
    return [_check(name, root, full) for name in names or list(cards())]


def _check(name: str, root: Path | None, full: bool) -> Check:
    result = Check(name)
    card = cards()[name][0] if name in cards() else None
    try:
        dataset = data.load(name, root)
    except UserError as error:
        as_it_is = _as_it_is(card, root)
        if as_it_is is None:
            source = f" It comes from {card.url}" if card and card.url else ""
            text = str(error).removeprefix(f"{name}: ")
            result.problems.append(_missing(card, root) or f"{text}{source}")
            return result
        dataset = as_it_is
    result.found = True
    card, splits = dataset.card, dataset.splits
    result.classes = f"{len(dataset.classnames)}"
    result.sizes = " / ".join(f"{len(splits[split]):,}" for split in ("train", "val", "test"))
    base, novel = (len(dataset.items("test", half)) for half in ("base", "novel"))
    result.halves = f"{base:,} / {novel:,}"
    if dataset.nonstandard:
        result.problems.append(dataset.nonstandard)
    if card.halves and (card.halves["base"], card.halves["novel"]) != (base, novel):
        wanted = f"{card.halves['base']:,} / {card.halves['novel']:,}"
        result.problems.append(f"{base:,} / {novel:,} test images in base and novel half instead of {wanted}")
    _check_order(card, dataset, result)
    _check_overlap(dataset, result)
    result.notes += dataset.notes
    _check_copies(dataset, full, result)
    _decode(dataset, full, result)
    return result


def _as_it_is(card: Card | None, root: Path | None) -> Dataset | None:
    """A dataset that has its split file but differs from its card; None if it cannot be loaded like that."""
    folder = data.data_root(root)
    if not (card and card.folder and folder and (folder / card.folder / card.source).is_file()):
        return None
    try:
        return data.load(card.name, root, allow_nonstandard=True)
    except UserError:
        return None


def _missing(card: Card | None, root: Path | None) -> str:
    """What the dataset's folder must contain, if there is no folder; else empty."""
    folder = data.data_root(root)
    if card is None or not card.folder or folder is None or (folder / card.folder).is_dir():
        return ""
    parts = [name for name in (card.source, f"{card.images}/" if card.images else "") if name]
    archives = ", ".join(archive.file for archive in card.archives)
    made = f" (`promptbench data prepare {card.name}` unpacks {archives})" if archives else ""
    source = f"; it comes from {card.url}" if card.url else ""
    return f"expected its folder at {folder / card.folder} with {' and '.join(parts)}{made}{source}"


def _check_overlap(dataset: Dataset, result: Check) -> None:
    """Duplicates within a split or across splits; ImageNet's validation images are its test images."""
    paths = {split: [item.path for item in items] for split, items in dataset.splits.items()}
    for split, mine in paths.items():
        if twice := len(mine) - len(set(mine)):
            result.problems.append(f"{twice:,} images are duplicated in {split}")
    for (one, other), both in overlap(dataset.splits).items():
        result.problems.append(f"{len(both):,} images are in both {one} and {other}, such as {both[0]!r}")


def _check_copies(dataset: Dataset, full: bool, result: Check) -> None:
    """Test images with the contents of a training image but another name. For a standard dataset only with
    ``full``, since this reads all images."""
    if dataset.official and not full:
        return
    hashes = {split: _hashes(dataset, items) for split, items in dataset.splits.items()}
    known = dict(zip(hashes["train"], dataset.splits["train"], strict=True))
    test = zip(hashes["test"], dataset.splits["test"], strict=True)
    copies = [(item.path, known[one].path) for one, item in test if one and one in known]
    if copies := [pair for pair in copies if pair[0] != pair[1]]:
        mine, other = copies[0]
        result.notes.append(
            f"{len(copies):,} test images are copies of train images, such as {mine!r} of {other!r}"
        )


def _hashes(dataset: Dataset, items: Sequence[Item]) -> list[str]:
    """Hashes of the items' contents; empty where an image is not a file."""
    if dataset.root:
        return dataset.hashes(item.path for item in items)
    found = (dataset.images(item.path) for item in items)
    return [hashlib.sha256(one).hexdigest() if isinstance(one, bytes) else "" for one in found]


def _check_order(card: Card, dataset: Dataset, result: Check) -> None:
    """Check first and last classes of both halves: a wrong class order moves the cut without any error."""
    if not card.landmarks:
        return
    names, middle = dataset.classnames, len(dataset.half("base"))
    for place, name, wanted in zip(
        ("first class", "last base class", "first novel class", "last class"),
        (names[0], names[middle - 1], names[middle], names[-1]),
        card.landmarks,
        strict=True,
    ):
        if readable(name).lower() != readable(wanted).lower():
            result.problems.append(f"the {place} is {name!r} instead of {wanted!r}: another class order")


def _decode(dataset: Dataset, full: bool, result: Check) -> None:
    items: list[Item] = []
    for split in ("train", "val", "test"):
        mine = dataset.splits[split]
        items += mine if full else random.Random(split).sample(mine, min(SAMPLE, len(mine)))
    items = list({item.path: item for item in items}.values())
    bad, several = [], []
    for item in items:
        try:
            dataset.image(item.path)
        except UserError as error:
            bad.append(str(error))
        if dataset.root is None and isinstance(found := dataset.images(item.path), bytes):
            several += [item.path] if several_frames(io.BytesIO(found)) else []
    result.notes += note(SEVERAL, several)
    result.decoded = f"{len(items) - len(bad):,} of {len(items):,}"
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        result.problems.append(bad[0] + more)
