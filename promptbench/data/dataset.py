"""Datasets: splits, the field's few-shot draw and its base/novel halves.

A dataset is a card (YAML, see `promptbench.data.cards`) in ``datasets/`` and a loader, a module of
``promptbench.datasets`` with ``load(card, folder) -> Found``. Adding one edits nothing else.
"""

import importlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from promptbench.data.cards import Card, Half, Split, cards, read_card
from promptbench.data.classnames import SPECIAL, Classes, readable, words
from promptbench.data.contents import contents
from promptbench.data.draws import draw_file, kept_draw, read_draw
from promptbench.data.images import decode
from promptbench.data.splits import Item, Splits, restrict
from promptbench.errors import UserError, unknown
from promptbench.storage import hash_file, hash_value

Images = Callable[[str], bytes | Image.Image]


class Found(NamedTuple):
    """What a loader returns. ``fingerprint`` covers the splits and, unless ``official``, the contents of the
    images. ``classnames`` is given where the splits do not have all of them; ``nonstandard`` says in a few
    words how the splits differ from the published ones. ``official``: a standard dataset, whose images are
    read as its official loader reads them and are too many to hash. ``notes``: see `Dataset`."""

    splits: Splits
    images: Images
    fingerprint: str
    classnames: tuple[str, ...] | None = None
    nonstandard: str = ""
    official: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Images, labels, class names and splits. ``fingerprint`` identifies splits, template and the contents of
    the images; for a standard dataset (``official``) without the contents, which `files` hashes for the
    images that a trial reads. ``nonstandard`` says how the splits differ from the published ones, empty if
    they do not; ``notes`` hold what a user may not expect, such as files that were left out."""

    card: Card
    classnames: tuple[str, ...]
    splits: Splits
    images: Images
    fingerprint: str
    nonstandard: str = ""
    draws: Path | None = None  # folder of imported draws to use instead of our own
    official: bool = False
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.card.name

    def image(self, path: str) -> Image.Image:
        """The image in RGB, see `images.decode`. Raises UserError naming a file that it cannot decode."""
        try:
            return decode(self.images(path), self.official)
        except UserError:
            raise
        except Exception as error:
            where = str(self.root / path) if self.root else path
            cause = getattr(error, "strerror", "") or str(error).split("\n")[0].replace(where, "it")
            # a ValueError says what to do with the file as it is
            fix = "replace" if isinstance(error, ValueError) else "restore"
            raise UserError(
                f"Image {where!r} of {self.name} cannot be read ({cause or type(error).__name__}); {fix} "
                "the file or take it out of the split."
            ) from None

    @property
    def root(self) -> Path | None:
        """The folder of the image files; None for archives and scans from packages."""
        one = self.images
        return one.args[0] if isinstance(one, partial) and one.func is read_file else None

    def hashes(self, paths: Iterable[str]) -> list[str]:
        """SHA-256 (hex) of the contents of image files, empty for one that cannot be read. Without image
        files (`root` is None) the list is empty, since ``fingerprint`` covers the images."""
        return [one.sha256 for one in contents(self.root, paths)] if self.root else []

    def files(self, items: Iterable[Item]) -> str:
        """A hash of the contents of the images of ``items`` where ``fingerprint`` does not cover them; else
        empty."""
        return hash_value(self.hashes(sorted({item.path for item in items}))) if self.official else ""

    def half(self, half: Half) -> list[int]:
        """Labels of the base half (the first ceil(n/2)), the novel half, or all.

        The cut of KaiyangZhou/CoOp: datasets/oxford_pets.py, subsample_classes.
        """
        n = len(self.classnames)
        middle = (n + 1) // 2
        return list({"base": range(middle), "novel": range(middle, n), "all": range(n)}[half])

    def classes(self, half: Half = "all") -> Classes:
        """The label space of a half: names renumbered from 0."""
        names = tuple(self.classnames[label] for label in self.half(half))
        return Classes(names, self.card.template, self.name)

    def items(self, split: Split, half: Half = "all", limit: int | None = None) -> list[Item]:
        """Items of a split in one half, in file order, labels renumbered; at most ``limit`` per class."""
        return restrict(self.splits[split], self.half(half), limit)

    def style(self, item: Item) -> str:
        """The drawing style of an image, from its path; empty if the card has no pattern.

        Raises UserError naming the path if the card's pattern finds no style in it.
        """
        if not self.card.style:
            return ""
        found = re.search(self.card.style, item.path)
        if not found or not found[1]:
            raise UserError(
                f"The card of {self.name} finds no style in the path {item.path!r}; correct its pattern "
                f"{self.card.style!r} or rename the image."
            )
        return found[1]

    def few_shot(self, shots: int, seed: int, half: Half) -> list[Item]:
        """The training images of `draw`."""
        return self.draw(shots, seed, half)[0]

    def draw(self, shots: int, seed: int, half: Half) -> tuple[list[Item], list[Item]]:
        """The training images of a trial, sampled over all classes, then cut to ``half``; and its
        validation images, min(shots, 4) per class: none where the split's validation images are its test
        images (ImageNet), on which nothing may be selected.

        Raises UserError as `require_shots`.
        """
        self.require_shots(shots, [])
        if self.draws:
            kept = self._imported_draw(shots, seed)
        else:
            kept = kept_draw(self.splits, self.name, self.fingerprint, shots, seed)
        train, val = (restrict(items, self.half(half)) for items in kept)
        return train, [] if list(self.splits["val"]) == list(self.splits["test"]) else val

    def require_shots(self, shots: int, seeds: Sequence[int]) -> None:
        """Raises UserError if a class has fewer than ``shots`` images, or if imported draws are used and
        the draw of a seed is missing or names other images."""
        sizes = Counter(item.label for item in self.splits["train"])
        smallest = min(range(len(self.classnames)), key=sizes.__getitem__)
        if sizes[smallest] < shots:
            raise UserError(
                f"Class {self.classnames[smallest]!r} of {self.name} has {sizes[smallest]} training "
                f"images, fewer than {shots} shots; use --shots {sizes[smallest]} or less."
            )
        for seed in seeds if self.draws else ():
            self._imported_draw(shots, seed)

    def _imported_draw(self, shots: int, seed: int) -> tuple[list[Item], list[Item]]:
        assert self.draws is not None
        path = draw_file(self.draws, self.name, shots, seed)
        if not path.is_file():
            raise UserError(f"--draws has no draw for {shots} shots and seed {seed}: expected {path}.")
        train, val = read_draw(path)
        for split, items in {"training": train, "validation": val}.items():
            known = self.splits["train" if split == "training" else "val"]
            if strange := set(items) - set(known):
                raise UserError(
                    f"{path} names {min(strange).path!r}, which is not a {split} image of {self.name}."
                )
        return train, val


# ---------------------------------------------------------------------- finding and loading


def data_root(given: Path | None = None) -> Path | None:
    """The folder of the user's datasets: ``given``, else PROMPTBENCH_DATA, else None."""
    return given or (Path(found) if (found := os.environ.get("PROMPTBENCH_DATA")) else None)


def locate(name: str, root: Path | None = None, template: str | None = None) -> tuple[Card, Path]:
    """The card called ``name`` and the folder of its data; ``name`` may also be the path of a card (.yaml)
    or of a folder with one sub-folder of images per class. ``template`` replaces the card's.

    Raises UserError for an unknown name, or if the data would be under a data root and there is none.
    """
    if name in cards():
        card, folder = cards()[name]
    elif name.endswith((".yaml", ".yml")):
        card, folder = read_card(Path(name)), Path(name).parent
    elif Path(name).is_dir():
        folder = Path(name).resolve()
        slug = re.sub("[^a-z0-9_-]+", "-", folder.name.lower()).strip("-_") or "pictures"
        slug = f"my-{slug}" if slug in cards() else slug  # tables must not mix the two
        own = {"source": "."} if (folder / "split.json").is_file() else {"loader": "folders"}
        card = Card(name=slug, title=f"Images in {folder.name}", **own)
    else:
        hint = "See `promptbench ls datasets`; the path of a card (.yaml) or a folder of images works too."
        raise unknown("dataset", name, cards(), hint)
    if template is not None:
        if "{}" not in template:
            raise UserError(f"--template needs {{}} where the class name goes, not {template!r}.")
        card = card.model_copy(update={"template": template})
    if not card.folder:
        return card, folder
    root = data_root(root)
    if root is None:
        raise UserError(
            f"{card.name} is not part of promptbench; give the folder that holds {card.folder}/ with "
            "--data-root or PROMPTBENCH_DATA."
        )
    if not root.is_dir():
        raise UserError(f"There is no data root {root}; give an existing folder with --data-root.")
    if not (root / card.folder).is_dir():
        raise UserError(
            f"{card.name}: expected its folder at {root / card.folder}; see `promptbench data check "
            f"{card.name}` for what belongs there."
        )
    return card, root / card.folder


def load(
    name: str, root: Path | None = None, allow_nonstandard: bool = False, template: str | None = None
) -> Dataset:
    """A dataset by name, by the path of a card (.yaml) or by the path of a folder of images; with
    ``:style`` after a name, only the images of that drawing style.

    ``allow_nonstandard`` makes a new split where the published one is missing, and accepts class counts that
    differ from the card; `Dataset.nonstandard` then says so.
    Raises UserError for an unknown name, an inconsistent card or split, a class without
    images, class names that no text model can tell apart, or fewer than two classes.
    """
    whole, colon, style = name.rpartition(":")
    if colon and (whole in cards() or whole.endswith((".yaml", ".yml"))):
        return _of_style(load(whole, root, allow_nonstandard, template), style)
    if name in cards() and not cards()[name][0].folder:
        found = _embedded(name, allow_nonstandard, template)
    else:
        found = _read(name, root, allow_nonstandard, template)
    note = _namesake(name)
    return replace(found, notes=(*found.notes, note)) if note else found


@cache
def _embedded(name: str, allow_nonstandard: bool, template: str | None) -> Dataset:
    """`load` of a dataset inside the package. Others are read each time: their files may have changed, and a
    relative path depends on the working folder."""
    return _read(name, None, allow_nonstandard, template)


def _read(name: str, root: Path | None, allow_nonstandard: bool, template: str | None) -> Dataset:
    card, folder = locate(name, root, template)
    kind = card.loader
    if allow_nonstandard and card.folder and card.source and not (folder / card.source).is_file():
        kind = "rebuilt"
    try:
        loader = importlib.import_module(f"promptbench.datasets.{kind}")
    except ModuleNotFoundError as error:
        if error.name != f"promptbench.datasets.{kind}":
            raise  # a dependency of the loader is not installed
        raise UserError(
            f"The card of {card.name} names a loader {card.loader!r} that is not in datasets/; correct it."
        ) from None
    if not hasattr(loader, "load"):
        raise UserError(f"The card of {card.name} names {card.loader!r}, which is not a loader; correct it.")
    found: Found = loader.load(card, folder)
    classnames = found.classnames or _classnames(card, found.splits)
    nonstandard = found.nonstandard or _check_sizes(card, len(classnames), found.splits, allow_nonstandard)
    _check_names(card, classnames)
    # everything a result depends on
    identity = hash_value([found.fingerprint, card.template, card.flip])
    return Dataset(
        card,
        classnames,
        found.splits,
        found.images,
        identity,
        nonstandard,
        official=found.official,
        notes=tuple(found.notes),
    )


def _namesake(name: str) -> str:
    """A note if a shipped dataset is used although the user may have meant a folder of that name."""
    mine = Path(name)
    if name not in cards() or not mine.is_dir() or mine.resolve() == cards()[name][1].resolve():
        return ""
    with suppress(OSError):
        if not (mine / "split.json").is_file() and not any(one.is_dir() for one in mine.iterdir()):
            return ""
    return f"this is promptbench's own dataset {name!r}; for the folder of that name give './{name}'"


def with_draws(dataset: Dataset, folder: Path) -> Dataset:
    """The dataset with the few-shot draws in ``folder`` instead of its own, and another fingerprint."""
    files = sorted((folder / dataset.name).glob("shot_*.json"))
    prints = [dataset.fingerprint, *([path.name, hash_file(path)] for path in files)]
    return replace(dataset, draws=folder, fingerprint=hash_value(prints))


def _of_style(dataset: Dataset, style: str) -> Dataset:
    """The images of one drawing style; all classes stay."""
    styles = {split: [dataset.style(item) for item in items] for split, items in dataset.splits.items()}
    known = sorted({one for found in styles.values() for one in found} - {""})
    if style not in known:
        raise unknown(f"style of {dataset.name}", style, known)
    splits = {
        split: [item for item, one in zip(items, styles[split], strict=True) if one == style]
        for split, items in dataset.splits.items()
    }
    card = dataset.card.model_copy(update={"sizes": None, "halves": None})
    name = f"{dataset.name}:{style}"
    return replace(
        dataset,
        card=card.model_copy(update={"name": name}),
        splits=splits,
        fingerprint=hash_value([dataset.fingerprint, style]),
    )


def read_file(root: Path, path: str) -> bytes:
    """An image's bytes. Not a closure, since worker processes must be able to unpickle it."""
    return (root / path).read_bytes()


def _classnames(card: Card, splits: Splits) -> tuple[str, ...]:
    """Class names in label order, with checks for mistakes that would raise no error later."""
    names: dict[int, str] = {}
    for split, items in splits.items():
        for item in items:
            if names.setdefault(item.label, item.classname) != item.classname:
                raise UserError(
                    f"{card.name}: label {item.label} is called {names[item.label]!r} and, in {split}, "
                    f"{item.classname!r}; give every label one class name."
                )
    labels = sorted(names)
    if labels and labels[0] > 0:
        raise UserError(f"{card.name}: labels start at {labels[0]}; number the classes from 0.")
    for split in ("train", "test"):
        present = {item.label for item in splits[split]}
        for label in range(max(labels, default=-1) + 1):
            if label not in present:
                name = names.get(label, f"label {label}")
                raise UserError(f"{card.name}: class {name!r} has no {split} images; add some or drop it.")
    return tuple(names[label] for label in labels)


def _check_names(card: Card, classnames: Sequence[str]) -> None:
    if len(classnames) < 2:
        raise UserError(f"{card.name} has {len(classnames)} class; classification needs at least two.")
    if blank := [name for name in classnames if not words(readable(name))]:
        raise UserError(f"{card.name}: the class name {blank[0]!r} contains no word; rename it.")
    if special := [name for name in classnames if set(SPECIAL) & set(words(readable(name)))]:
        raise UserError(
            f"{card.name}: CLIP reads a part of {special[0]!r} as the end of a prompt; rename it."
        )
    seen: dict[tuple[str, ...], int] = {}
    for label, name in enumerate(classnames if not card.repeated_names else ()):
        if (other := seen.setdefault(words(readable(name)), label)) != label:
            raise UserError(
                f"{card.name}: two classes are called {classnames[other]!r} and {name!r}, which CLIP cannot "
                "tell apart; rename one."
            )


def _check_sizes(card: Card, classes: int, splits: Splits, allow_nonstandard: bool) -> str:
    """How the sizes differ from the card's, for data under a data root; other data must have these sizes.

    A published split has the published sizes, so other sizes mean another split. Raises UserError.
    """
    found: dict[str, Any] = {split: len(items) for split, items in splits.items()}
    if card.classes in (None, classes) and (card.sizes is None or card.sizes.items() <= found.items()):
        return ""
    what = f"{classes} classes and {found} pictures, but its card says {card.classes} and {card.sizes}"
    if not card.folder:
        raise UserError(f"{card.name} has {what}; correct the card or restore the files.")
    if card.classes not in (None, classes) and not allow_nonstandard:
        raise UserError(
            f"{card.name} has {classes} classes instead of {card.classes}; run `promptbench data check "
            f"{card.name}`, or add --allow-nonstandard-split to continue with results labelled "
            "as non-standard."
        )
    return f"non-standard split: {what}"
