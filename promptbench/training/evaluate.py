"""The one evaluator: top-1 counts of a method on one split of one dataset, in one label space."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from promptbench.clip.arithmetic import CPU_FP32, Arithmetic
from promptbench.clip.features import chunks, frozen_features, in_chunks, require_finite
from promptbench.data.cards import Split
from promptbench.data.classnames import Classes
from promptbench.data.dataset import Dataset
from promptbench.data.splits import Item
from promptbench.data.views import Views, load_batches
from promptbench.errors import UserError
from promptbench.methods._base import Batch, Method
from promptbench.storage import hash_value
from promptbench.training.counts import Confused, Counts, Evaluation


@torch.no_grad()
def predict(
    method: Method,
    dataset: Dataset,
    classes: Classes,
    items: Sequence[Item],
    arithmetic: Arithmetic = CPU_FP32,
) -> Tensor:
    """The label of ``classes`` each item is taken for, [N] on the CLIP's device.

    The classifier is computed once; images come in large batches, or their features from the cache if
    the method leaves the image tower alone. Raises UserError if a score is no finite number, or
    no score says anything.
    """
    clip, training = method.clip, method.training
    views = Views(**clip.preprocess)
    labels = torch.tensor([item.label for item in items], device=arithmetic.device)
    method.eval()
    with arithmetic.autocast():
        classifier = method.classifier(classes)
        if method.needs_images:
            images = load_batches(
                dataset, items, views, chunks(len(items)), None, arithmetic.device, arithmetic.decoders
            )
            batches = (Batch(y, images=x) for y, x in zip(in_chunks(labels), images, strict=True))
        else:
            frozen = frozen_features(clip, dataset, items, views, None, arithmetic.decoders)
            batches = (Batch(y, frozen=x) for y, x in zip(in_chunks(labels), in_chunks(frozen), strict=True))
        found = [_best(method.logits(batch, classifier)) for batch in batches]
    method.train(training)
    predicted, low, high = (torch.cat(parts) for parts in zip(*found, strict=True))
    what = f"scores of {method.name} on {dataset.name}"
    require_finite(torch.stack([low, high]), what)  # once: no synchronisation per batch
    if len(classes) > 1 and not (high > low).any():
        raise UserError(
            f"The {what} are the same for every class of every image; the backbone's weights are zero, or it "
            "knows no word of the class names."
        )
    return predicted


def _best(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The label of the highest score, the lowest and the highest score, [B] each."""
    low, high = logits.float().aminmax(dim=-1)
    return logits.argmax(dim=-1), low, high


class Answers(NamedTuple):
    """One evaluation: its counts, and for each image its class and the predicted class."""

    counts: Counts
    labels: list[int]
    predicted: list[int]


def evaluate(
    method: Method,
    dataset: Dataset,
    evaluation: Evaluation,
    split: Split = "test",
    limit: int | None = None,
    arithmetic: Arithmetic = CPU_FP32,
) -> Answers:
    """Count correct answers among the classes of ``evaluation`` only (novel never competes with base).

    ``limit``: at most that many images per class.
    """
    classes = dataset.classes(evaluation.classes)
    items = dataset.items(split, evaluation.classes, limit)
    predicted = predict(method, dataset, classes, items, arithmetic).tolist()
    names = _distinct(classes.names)
    total, correct = Counter[str](), Counter[str]()
    confused: dict[tuple[str, str], list[str]] = {}
    for item, label in zip(items, predicted, strict=True):
        total[names[item.label]] += 1
        correct[names[item.label]] += label == item.label
        if label != item.label:
            confused.setdefault((names[item.label], names[label]), []).append(item.path)
    most = sorted(confused.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:10]
    counts = Counts(
        dataset=dataset.name,
        classes=evaluation.classes,
        split=split,
        correct=correct.total(),
        total=len(items),
        per_class={name: (correct[name], total[name]) for name in names},
        confused=[Confused(true=a, predicted=b, count=len(p), pictures=p[:3]) for (a, b), p in most],
        order=hash_value([(item.path, item.label) for item in items]),
    )
    return Answers(counts, [item.label for item in items], predicted)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number after the second of two that are equal (ImageNet has two kinds of missile)."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct
