"""The one evaluator: top-1 counts of a method on one split of one dataset, in one label space."""

from collections import Counter
from collections.abc import Sequence

import torch

from promptbench.cards import Split
from promptbench.data import Dataset
from promptbench.frozen import chunks, frozen_features, in_chunks
from promptbench.method import Batch, Method
from promptbench.records import Counts
from promptbench.train import autocast
from promptbench.trials import Evaluation, Precision
from promptbench.views import Views, load_batches


@torch.no_grad()
def evaluate(
    method: Method,
    dataset: Dataset,
    evaluation: Evaluation,
    split: Split = "test",
    limit: int | None = None,
    precision: Precision = "fp32",
    workers: int = 0,
) -> Counts:
    """Count correct answers among the classes of ``evaluation`` only (novel never competes with base).

    The classifier is computed once; pictures come in large batches, or their features from the cache if
    the method leaves the image tower alone. ``limit``: at most that many pictures per class.
    """
    method.eval()
    clip = method.clip
    classes = dataset.classes(evaluation.classes)
    items = dataset.items(split, evaluation.classes, limit)
    views = Views(**clip.preprocess)
    labels = torch.tensor([item.label for item in items], device=clip.device)
    with autocast(clip.device, precision):
        classifier = method.classifier(classes)
        if method.needs_images:
            images = load_batches(dataset, items, views, chunks(len(items)), None, clip.device, workers)
            batches = (Batch(y, images=x) for y, x in zip(in_chunks(labels), images, strict=True))
        else:
            frozen = frozen_features(clip, dataset, items, views, None, workers)
            batches = (Batch(y, frozen=x) for y, x in zip(in_chunks(labels), in_chunks(frozen), strict=True))
        right = torch.cat(
            [method.logits(batch, classifier).argmax(dim=-1) == batch.labels for batch in batches]
        )
    total = torch.bincount(labels, minlength=len(classes)).tolist()
    correct = torch.bincount(labels[right], minlength=len(classes)).tolist()
    return Counts(
        dataset=dataset.name,
        classes=evaluation.classes,
        split=split,
        correct=sum(correct),
        total=sum(total),
        per_class=dict(zip(_distinct(classes.names), zip(correct, total, strict=True), strict=True)),
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number after the second of two that are equal (ImageNet has two kinds of missile)."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct
