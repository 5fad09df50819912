"""The tables of a report about classes: accuracy per class and the most frequent confusions."""

from collections.abc import Mapping

from promptbench.analysis.confusions import Album, Mistakes, Pair, Sums, Where, Who
from promptbench.analysis.vocabulary import SPACES
from promptbench.reporting.html.tables import Cell, Fold, Table

MAX_CLASSES = 300  # rows of classes in a table; the weakest where there are more
SHADES = 10


def evaluations(mistakes: Mistakes, whose: Mapping[str, Who]) -> dict[str, list[Where]]:
    """By dataset the evaluations that any of ``whose`` (by name) has, base before novel."""
    found: dict[str, list[Where]] = {}
    for where in sorted(mistakes.sums, key=lambda w: (w.dataset, list(SPACES).index(w.classes))):
        if any(who in mistakes.sums[where] for who in whose.values()):
            found.setdefault(where.dataset, []).append(where)
    return found


def per_class(mistakes: Mistakes, whose: Mapping[str, Who]) -> list[Fold]:
    """For each dataset a table of classes by methods: accuracy in percent, all seeds together."""
    folds = []
    for dataset, places in evaluations(mistakes, whose).items():
        bodies, left, weakest = [], MAX_CLASSES, []
        total = 0
        for where in places:
            sums = {name: mistakes.sums[where].get(who) for name, who in whose.items()}
            some: Sums = next(one for one in sums.values() if one is not None)
            classes = list(some.classes)
            total += len(classes)
            known = [one for one in sums.values() if one is not None]
            means = {c: sum(one.accuracy(c) or 0 for one in known) / len(known) for c in classes}
            weakest += sorted(classes, key=means.__getitem__)[:3]
            kept = set(sorted(classes, key=means.__getitem__)[: max(left, 0)])
            left -= len(classes)
            rows = [
                [
                    Cell(name),
                    Cell(str(some.classes[name][1] // some.trainings)),
                    *(_percent(one.accuracy(name) if one else None) for one in sums.values()),
                ]
                for name in classes
                if name in kept
            ]
            bodies.append((SPACES[where.classes] if len(places) > 1 else "", rows))
        table = Table(f"Accuracy per class, {dataset}", ["class", "images", *whose], bodies, scale="blue")
        if total > MAX_CLASSES:
            table.remark = f"{total} classes; the {MAX_CLASSES} rows are the weakest of each group."
        folds.append(Fold(dataset, f"{total} classes; weakest: {', '.join(weakest)}", [table]))
    return folds


def confusions(mistakes: Mistakes, whose: Mapping[str, Who], album: Album) -> list[Fold]:
    """For each dataset and label space the most frequent confusions, with images from ``album``."""
    listed = {
        where: mistakes.top(where, [who for who in whose.values() if who in mistakes.sums[where]])
        for places in evaluations(mistakes, whose).values()
        for where in places
    }
    album.fill((where, mistakes.examples(where, pair)) for where, pairs in listed.items() for pair in pairs)
    folds: dict[str, Fold] = {}
    for where, pairs in listed.items():
        if not pairs:
            continue
        rows = [_confusion(mistakes, where, pair, whose, album) for pair in pairs]
        columns = ["image of", "taken for", "examples", *whose]
        label = f"{where.dataset}, {SPACES[where.classes]}"
        fold = folds.setdefault(where.dataset, Fold(where.dataset))
        fold.tables.append(Table(label, columns, [("", rows)], words=3, scale="orange"))
    for name, fold in folds.items():
        first = next(pairs[0] for where, pairs in listed.items() if where.dataset == name and pairs)
        fold.hint = f"most often: {first.true} taken for {first.predicted}"
        if name in album.missing:
            fold.remark = (
                "The images of this dataset were not available when the report was made. It shows only those "
                "of shipped datasets and of what --dataset names, and follows no links out of their folders."
            )
    return list(folds.values())


def _confusion(
    mistakes: Mistakes, where: Where, pair: Pair, whose: Mapping[str, Who], album: Album
) -> list[Cell]:
    paths = mistakes.examples(where, pair)
    numbers = [(album.number(where.dataset, path), path) for path in paths]
    images = [(n, f"{pair.true}: {path}") for n, path in numbers if n is not None]
    sums = [mistakes.sums[where].get(who) for who in whose.values()]
    return [
        Cell(pair.true),
        Cell(pair.predicted),
        Cell("" if images else "-", images=images),
        *(_percent(one.rate(pair) if one else None) for one in sums),
    ]


def _percent(value: float | None) -> Cell:
    if value is None:
        return Cell("-")
    return Cell(f"{value:.0f}", shade=min(int(value * SHADES / 100), SHADES - 1))
