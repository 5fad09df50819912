"""Frozen image features: of test pictures and of training views, computed once for every method and seed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from promptbench.clip import FrozenCLIP
from promptbench.data import Dataset, Item
from promptbench.views import Views, load_batches

BATCH = 256  # pictures run at once where no gradient is kept


@torch.no_grad()
def frozen_features(
    clip: FrozenCLIP,
    dataset: Dataset,
    items: Sequence[Item],
    views: Views,
    draw: tuple[int, int] | None,
    workers: int = 0,
) -> Tensor:
    """Features before normalisation of the items' views, [N, e] fp32 on the CLIP's device.

    ``draw`` = (seed, epoch) for training views, None for test views. From the cache if they are there.
    """

    def compute() -> Tensor:
        pictures = load_batches(dataset, items, views, chunks(len(items)), draw, clip.device, workers)
        return torch.cat([clip.image_features(images).float() for images in pictures])

    key = {
        "what": "image",
        **clip.identity(),
        "dataset": [dataset.name, dataset.fingerprint],
        "items": [item.path for item in items],
        "files": dataset.stamps(item.path for item in items),
        "views": views.identity(training=draw is not None),
        "draw": draw,
    }
    return clip.cache.get(key, compute).to(clip.device)


def chunks(n: int, size: int = BATCH) -> list[list[int]]:
    """Indices 0..n-1 in order, ``size`` at a time."""
    return [list(range(i, min(i + size, n))) for i in range(0, n, size)]


def in_chunks(tensor: Tensor, size: int = BATCH) -> Iterator[Tensor]:
    """Rows of ``tensor``, ``size`` at a time: the same cuts as `chunks`."""
    return iter(tensor.split(size))
