"""Views: the transformed images a backbone sees. A training view is a pure function of (seed, epoch, image).

No global random state, no worker state: every method at one seed sees the same crops, a killed trial
resumes bit for bit, and frozen features of a view serve all methods.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from promptbench.data.dataset import Dataset
from promptbench.data.splits import Item
from promptbench.errors import UserError


@dataclass(frozen=True)
class Views:
    """The field's transforms (Dassl.pytorch: dassl/data/transforms) at a backbone's resolution.

    Training: random resized crop (area ``crop_min``..1, aspect 3/4..4/3, bicubic), horizontal flip with
    p = 0.5. Testing: shorter side to ``size`` (bicubic), centre crop. Both: [0, 1], then ``mean``, ``std``.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_min: float = 0.08
    flip: bool = True

    def identity(self, training: bool) -> dict[str, Any]:
        """What a view depends on besides seed, epoch and image."""
        keys = asdict(self)
        return keys if training else {key: keys[key] for key in ("size", "mean", "std")}

    def train(self, image: Image.Image, seed: int, epoch: int, path: str) -> Tensor:
        """The training view of an image: bytes [3, size, size], to be normalised."""
        stream = random.Random(f"view {seed} {epoch} {path}")
        view = image.crop(_crop(image.size, self.crop_min, stream))
        view = view.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.flip and stream.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _bytes(view)

    def test(self, image: Image.Image) -> Tensor:
        """The test view of an image: bytes [3, size, size], to be normalised."""
        short = min(image.size)
        width, height = (max(self.size, int(self.size * side / short)) for side in image.size)
        view = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return _bytes(view.crop((left, top, left + self.size, top + self.size)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """The backbone's input [B, 3, size, size], float, from bytes on its device (a quarter of the
        transfer)."""
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (self.mean, self.std))
        mean, std = (each.to(pixels.device, non_blocking=True) for each in (mean, std))
        return pixels.float().div_(255).sub_(mean).div_(std)


def _bytes(view: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(view, dtype=np.uint8)).permute(2, 0, 1)


def _crop(size: tuple[int, int], smallest: float, stream: random.Random) -> tuple[int, int, int, int]:
    """A random crop box as torchvision's RandomResizedCrop draws it, from a private stream."""
    width, height = size
    for _ in range(10):
        area = width * height * stream.uniform(smallest, 1)
        aspect = math.exp(stream.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = stream.randint(0, width - w), stream.randint(0, height - h)
            return left, top, left + w, top + h
    # Very elongated images: the largest central crop of an allowed shape.
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def epoch_order(n: int, batch_size: int, seed: int, epoch: int, drop_last: bool = True) -> list[list[int]]:
    """The batches of an epoch as indices into n items: a pure function of (seed, epoch).

    With ``drop_last`` a last short batch is left out if there is at least one full one (Dassl's train
    loader).
    """
    order = list(range(n))
    random.Random(f"order {seed} {epoch}").shuffle(order)
    batches = [order[i : i + batch_size] for i in range(0, n, batch_size)]
    short = len(batches) > 1 and len(batches[-1]) < batch_size
    return batches[:-1] if short and drop_last else batches


class _ImageViews(torch.utils.data.Dataset[Tensor | UserError]):
    """Views of items by index: training views of one epoch, or test views if ``draw`` is None.

    An image that cannot be read is returned as the error: raised inside a worker process, it would reach the
    user with that process's traceback.
    """

    def __init__(
        self, dataset: Dataset, items: Sequence[Item], views: Views, draw: tuple[int, int] | None
    ) -> None:
        self.dataset, self.items, self.views, self.draw = dataset, items, views, draw

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor | UserError:
        path = self.items[index].path
        try:
            image = self.dataset.image(path)
        except UserError as error:
            return error
        return self.views.train(image, *self.draw, path) if self.draw else self.views.test(image)


def _stack(views: list[Tensor | UserError]) -> Tensor | UserError:
    tensors = [view for view in views if isinstance(view, Tensor)]
    errors = [view for view in views if isinstance(view, UserError)]
    return errors[0] if errors else torch.stack(tensors)


def load_batches(
    dataset: Dataset,
    items: Sequence[Item],
    views: Views,
    batches: Sequence[list[int]],
    draw: tuple[int, int] | None,
    device: torch.device,
    workers: int = 0,
) -> Iterator[Tensor]:
    """Views [B, 3, size, size] on ``device``, batch by batch. ``draw`` = (seed, epoch) for training views."""
    loader = torch.utils.data.DataLoader(
        _ImageViews(dataset, items, views, draw),
        batch_sampler=batches,
        collate_fn=_stack,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader draws a seed nobody uses; not from the global stream
    )
    for images in loader:
        if isinstance(images, UserError):
            raise images
        yield views.normalise(images.to(device, non_blocking=True))
