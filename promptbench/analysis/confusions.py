"""What was taken for what: accuracy per class and the most frequent confusions, summed over records.

A record is added and may be forgotten: only sums are kept, so that many thousands of records fit in memory.
"""

import base64
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from promptbench.data.cards import Half, Split
from promptbench.errors import UserError
from promptbench.training.counts import Counts
from promptbench.trials.record import Record
from promptbench.trials.trial import Trial

if TYPE_CHECKING:
    from promptbench.data.dataset import Dataset

PAIRS = 10  # most frequent confusions shown per evaluation
EXAMPLES = 3  # images shown per confusion
PIXELS = 96  # longer side of a thumbnail
MAX_IMAGES = 800
MAX_BYTES = 2_000_000  # of all thumbnails, as text


class Who(NamedTuple):
    """Records that differ in nothing but the seed and the dataset."""

    benchmark: str
    method: str
    variant: str
    precision: str
    shots: int

    @classmethod
    def of(cls, trial: Trial) -> "Who":
        return cls(trial.benchmark, trial.method, trial.variant, trial.precision, trial.shots)


class Where(NamedTuple):
    """One evaluation: a dataset, the label space and the split."""

    dataset: str
    classes: Half
    split: Split


class Pair(NamedTuple):
    """Images of class ``true`` that were taken for ``predicted``."""

    true: str
    predicted: str


@dataclass
class Sums:
    """Sums over the seeds of one `Who` on one evaluation."""

    trainings: int = 0
    #: by class [correct, total]
    classes: dict[str, list[int]] = field(default_factory=dict)
    #: only what was among the ten most frequent of a record: at least so many images
    confused: dict[Pair, int] = field(default_factory=dict)

    def add(self, counts: Counts) -> None:
        """Count one evaluation."""
        self.trainings += 1
        for name, (correct, total) in counts.per_class.items():
            sums = self.classes.setdefault(name, [0, 0])
            sums[0] += correct
            sums[1] += total
        for one in counts.confused:
            pair = Pair(one.true, one.predicted)
            self.confused[pair] = self.confused.get(pair, 0) + one.count

    def accuracy(self, name: str) -> float | None:
        """Percent of a class's images, of all seeds together; None if there are none."""
        correct, total = self.classes.get(name, (0, 0))
        return 100 * correct / total if total else None

    def rate(self, pair: Pair) -> float | None:
        """At least so many percent of the images of ``pair.true`` were taken for ``pair.predicted``;
        None if that was never among the ten most frequent."""
        total = self.classes.get(pair.true, (0, 0))[1]
        return 100 * self.confused[pair] / total if total and pair in self.confused else None


class Mistakes:
    """Sums by evaluation and `Who`, and which images were named for a confusion how often."""

    def __init__(self) -> None:
        self.sums: dict[Where, dict[Who, Sums]] = defaultdict(dict)
        self.images: dict[Where, dict[Pair, dict[str, int]]] = defaultdict(dict)

    def add(self, who: Who, record: Record) -> None:
        """Count a record of ``who``."""
        for counts in record.evaluations:
            where = Where(counts.dataset, counts.classes, counts.split)
            self.sums[where].setdefault(who, Sums()).add(counts)
            images = self.images[where]
            for one in counts.confused:
                named = images.setdefault(Pair(one.true, one.predicted), {})
                for path in one.pictures:
                    named[path] = named.get(path, 0) + 1

    def top(self, where: Where, whose: Sequence[Who]) -> list[Pair]:
        """The confusions with the most images per training, every one of ``whose`` weighing the same."""
        weights: defaultdict[Pair, float] = defaultdict(float)
        for who in whose:
            sums = self.sums[where][who]
            for pair, count in sums.confused.items():
                weights[pair] += count / sums.trainings
        return sorted(weights, key=lambda pair: (-weights[pair], pair))[:PAIRS]

    def examples(self, where: Where, pair: Pair) -> list[str]:
        """Paths of the images most often named for a confusion."""
        named = self.images[where][pair]
        return sorted(named, key=lambda path: (-named[path], path))[:EXAMPLES]


class Thumbnail(NamedTuple):
    """A small JPEG as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


class Album:
    """Thumbnails, each once whatever the number of places that show it, bounded in number and bytes.

    ``find(name)`` gives a dataset or raises UserError. ``missing``: why images of a dataset are not shown;
    ``left_out``: how many found no place within the bounds.
    """

    def __init__(self, find: "Callable[[str], Dataset]") -> None:
        self._find = find
        self._datasets: dict[str, tuple[Dataset | None, frozenset[str]]] = {}
        self._ids: dict[tuple[str, str], int | None] = {}
        self._known: dict[str, int] = {}
        self.thumbnails: list[Thumbnail] = []
        self.missing: dict[str, str] = {}
        self.left_out = 0
        self._bytes = 0

    def fill(self, wanted: Iterable[tuple[Where, Sequence[str]]]) -> None:
        """Take in images, given as paths per confusion: first one of each, then the second, so that every
        confusion has an example before any has two."""
        listed = list(wanted)
        for i in range(EXAMPLES):
            for where, paths in listed:
                if i < len(paths):
                    self._take(where.dataset, where.split, paths[i])

    def number(self, dataset: str, path: str) -> int | None:
        """The place of a image in `thumbnails`, None if it is not there."""
        return self._ids.get((dataset, path))

    def _take(self, name: str, split: Split, path: str) -> None:
        if (name, path) in self._ids:
            return
        self._ids[name, path] = None
        dataset, paths = self._dataset(name, split)
        # Only what the split names is read: a record from elsewhere must not show other files.
        if dataset is None or path not in paths:
            return
        if dataset.root is not None and not _lies_in(dataset.root, path):
            text = f"{path!r} is a link that leads out of its folder; a report does not follow it"
            self.missing.setdefault(name, text)
            return
        try:
            image = dataset.image(path)
        except UserError as error:
            self.missing.setdefault(name, str(error))
            return
        made = thumbnail(image)
        if made.uri not in self._known:
            if len(self.thumbnails) >= MAX_IMAGES or self._bytes + len(made.uri) > MAX_BYTES:
                self.left_out += 1
                return
            self._known[made.uri] = len(self.thumbnails)
            self._bytes += len(made.uri)
            self.thumbnails.append(made)
        self._ids[name, path] = self._known[made.uri]

    def _dataset(self, name: str, split: Split) -> "tuple[Dataset | None, frozenset[str]]":
        if name not in self._datasets:
            try:
                dataset = self._find(name)
                known = frozenset(item.path for item in dataset.splits[split])
                self._datasets[name] = dataset, known
            except UserError as error:
                self.missing[name] = str(error)
                self._datasets[name] = None, frozenset()
        return self._datasets[name]


def _lies_in(root: Path, path: str) -> bool:
    """Whether a image lies under the root of its dataset when all links are followed."""
    return Path(os.path.realpath(root / path)).is_relative_to(os.path.realpath(root))


def thumbnail(image: Image.Image) -> Thumbnail:
    """A image (RGB) with `PIXELS` on its longer side; tiny scans keep their square pixels."""
    longest = max(image.size)
    if longest < PIXELS:
        times = PIXELS // longest
        small = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    else:
        small = image.copy()
        small.thumbnail((PIXELS, PIXELS))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80, optimize=True)
    text = base64.b64encode(file.getvalue()).decode()
    return Thumbnail(f"data:image/jpeg;base64,{text}", *small.size)
