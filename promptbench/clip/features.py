"""Frozen image features: of test images and of training views, computed once for every method and seed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data.dataset import Dataset
from promptbench.data.splits import Item
from promptbench.data.views import Views, load_batches
from promptbench.errors import UserError

BATCH = 256  # images run at once where no gradient is kept


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
        batches = load_batches(dataset, items, views, chunks(len(items)), draw, clip.device, workers)
        features = torch.cat([clip.image_features(images).float() for images in batches])
        require_finite(features, f"image features of {dataset.name}")
        return features

    key = {
        "what": "image",
        **clip.identity(),
        "dataset": [dataset.name, dataset.fingerprint],
        "items": [item.path for item in items],
        "files": dataset.hashes(item.path for item in items),
        "views": views.identity(training=draw is not None),
        "draw": draw,
    }
    return clip.cache.get(key, compute).to(clip.device)


def require_finite(values: Tensor, what: str) -> None:
    """Raise UserError if ``values`` hold NaN or infinity: an argmax of them would be a number like any other.

    Waits for the device, so it is for whole results, not for batches.
    """
    if not values.isfinite().all():
        raise UserError(
            f"The {what} are not finite numbers; the backbone's weights are damaged or in another scale "
            "(logit_scale must be a logarithm), or too large for this --precision (fp32 reaches farthest)."
        )


def chunks(n: int, size: int = BATCH) -> list[list[int]]:
    """Indices 0..n-1 in order, ``size`` at a time."""
    return [list(range(i, min(i + size, n))) for i in range(0, n, size)]


def in_chunks(tensor: Tensor, size: int = BATCH) -> Iterator[Tensor]:
    """Rows of ``tensor``, ``size`` at a time: the same cuts as `chunks`."""
    return iter(tensor.split(size))
