"""The one training loop. It knows no method and no dataset by name.

A trial is a pure function of its configuration: initial values come from the seed, batches and views
from (seed, epoch), and each epoch reseeds whatever else a method may draw. A checkpoint after every
epoch therefore makes a killed run continue bit for bit (on a GPU up to the order in which its kernels add).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptbench.clip.arithmetic import CPU_FP32, Arithmetic
from promptbench.clip.features import frozen_features
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data.classnames import Classes
from promptbench.data.dataset import Dataset
from promptbench.data.splits import Item
from promptbench.data.views import Views, epoch_order, load_batches
from promptbench.errors import UserError
from promptbench.methods._base import Batch, Method, Shots
from promptbench.training.checkpoint import Progress, Report, resume, save
from promptbench.training.schedule import aggregation_weights
from promptbench.training.steps import Steps


def create(method: type[Method], clip: FrozenCLIP, settings: Any, classes: Classes, seed: int) -> Method:
    """A method with initial values drawn from ``seed``, on the CLIP's device.

    The CPU's global random stream is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method(clip, settings, classes).to(clip.device)


@dataclass(frozen=True)
class Training:
    """What a training needs besides the method.

    ``items``: the few-shot images of ``dataset``; ``classes``: their label space; ``validation``: few-shot
    validation images, for methods that choose something by them. With a ``folder``, metrics and a checkpoint
    are written there after every epoch, and a training that was interrupted resumes. ``measure`` is called
    after every epoch; what it returns goes into the metrics and nowhere else. ``report`` is called then.
    """

    dataset: Dataset
    items: Sequence[Item]
    classes: Classes
    seed: int
    validation: Sequence[Item] = ()
    arithmetic: Arithmetic = CPU_FP32
    folder: Path | None = None
    measure: Callable[[], dict[str, float]] = dict
    report: Report = lambda progress, epochs: None


def fit(method: Method, training: Training) -> Progress:
    """Train ``method`` in place.

    Raises UserError if the loss stops being a number, naming epoch, step and learning rate.
    """
    source = _Source(method, training)
    shots = source.shots()
    started = time.perf_counter()
    method.before_training(shots)
    progress = Progress(train_seconds=time.perf_counter() - started)
    settings = method.settings
    if any(p.requires_grad for p in method.parameters()) and (settings.epochs or settings.steps):
        progress = _train(method, training, source, progress)
    with training.arithmetic.autocast():
        method.after_training(shots)
    return progress


def _train(method: Method, training: Training, source: "_Source", fitted: Progress) -> Progress:
    """The epochs that are left. ``fitted``: the progress of a training that starts."""
    steps = Steps(method, len(source.order(0)), training.arithmetic)
    progress = resume(training.folder, steps) if training.folder else fitted
    progress.train_seconds = progress.train_seconds or fitted.train_seconds
    aggregation = aggregation_weights(method.settings, steps.epochs)
    method.train()
    for epoch in range(progress.epoch, steps.epochs):
        losses, lr = _run_epoch(steps, training, source, progress, epoch)
        row = {"epoch": epoch + 1, "lr": lr, "loss": losses.mean().item()}
        progress.history.append({**row, **training.measure()})
        if aggregation:
            _add(progress, steps.parameters, aggregation[epoch])
        if training.folder:
            save(training.folder, progress, steps)
        training.report(progress, steps.epochs)
    if aggregation:  # the sum replaces the parameters; the checkpoint keeps those of the last epoch
        with torch.no_grad():
            for parameter, sum_ in zip(steps.parameters, progress.aggregate, strict=True):
                parameter.copy_(sum_)
    return progress


def _run_epoch(
    steps: Steps, training: Training, source: "_Source", progress: Progress, epoch: int
) -> tuple[Tensor, float]:
    """All steps of an epoch: their losses [steps] on the CPU, and the last learning rate."""
    method, device, batches = steps.method, training.arithmetic.device, source.order(epoch)
    if method.settings.steps:
        batches = batches[: method.settings.steps - progress.steps]
    started = time.perf_counter()
    frozen = source.features(epoch) if method.needs_frozen else None
    progress.frozen_seconds += time.perf_counter() - started

    started = time.perf_counter()
    lr, losses = steps.rate(epoch), []
    images = source.images(epoch, batches) if method.needs_images else iter(())
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((training.seed << 20) + epoch)  # for methods that draw while training (dropout)
        indices = torch.tensor([i for one in batches for i in one], device=device)  # one copy
        for step, index in enumerate(indices.split([len(one) for one in batches])):
            waiting = time.perf_counter()
            views = next(images, None)
            progress.wait_seconds += time.perf_counter() - waiting
            batch = Batch(source.labels[index], views, None if frozen is None else frozen[index])
            loss, lr = steps.take(batch, training.classes, epoch, step)
            losses.append(loss)  # read once per epoch: no synchronisation per step
    values = torch.stack(losses).float().cpu()
    _require_finite(values, steps.parameters, method.name, epoch, lr)
    progress.epoch, progress.steps = epoch + 1, progress.steps + len(batches)
    progress.train_seconds += time.perf_counter() - started
    return values, lr


class _Source:
    """Batches, images and frozen features of a training's images."""

    def __init__(self, method: Method, training: Training) -> None:
        self.clip, self.settings, self.training = method.clip, method.settings, training
        dataset, crop_min = training.dataset, method.settings.crop_min
        self.views = Views(**self.clip.preprocess, crop_min=crop_min, flip=dataset.card.flip)
        self.labels = self._labels(training.items)

    def order(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as indices of the items."""
        size, drop_last = self.settings.batch_size, self.settings.drop_last
        return epoch_order(len(self.training.items), size, self.training.seed, epoch, drop_last)

    def images(self, epoch: int, batches: list[list[int]]) -> Iterator[Tensor]:
        """The random views of an epoch, batch by batch: [B, 3, H, W] each."""
        one, how = self.training, self.training.arithmetic
        at = (one.seed, epoch)
        return load_batches(one.dataset, one.items, self.views, batches, at, how.device, how.decoders)

    def features(self, epoch: int | None) -> Tensor:
        """Frozen features of the random views of an epoch, or of the test views for None: [N, e]."""
        return self._features(self.training.items, None if epoch is None else (self.training.seed, epoch))

    def shots(self) -> Shots:
        """The few-shot images as methods get them that fit something in closed form."""

        def features(number: int | None) -> Tensor:
            # views of their own: those of training are numbered from 0
            return self.features(None if number is None else -1 - number)

        return Shots(self.labels, self.training.classes, features, self._validation)

    def _validation(self) -> tuple[Tensor, Tensor] | None:
        items = self.training.validation
        return (self._features(items, None), self._labels(items)) if items else None

    def _features(self, items: Sequence[Item], draw: tuple[int, int] | None) -> Tensor:
        how = self.training.arithmetic
        with how.autocast():
            return frozen_features(self.clip, self.training.dataset, items, self.views, draw, how.decoders)

    def _labels(self, items: Sequence[Item]) -> Tensor:
        return torch.tensor([item.label for item in items], device=self.training.arithmetic.device)


def _add(progress: Progress, parameters: Sequence[Tensor], weight: float) -> None:
    """Add the parameters to the sum of Gaussian prompt aggregation."""
    sums = progress.aggregate or [torch.zeros_like(p) for p in parameters]
    added = zip(sums, parameters, strict=True)
    progress.aggregate = [sum_ + weight * p.detach() for sum_, p in added]


def _require_finite(losses: Tensor, parameters: Sequence[Tensor], name: str, epoch: int, lr: float) -> None:
    """An epoch's losses, and the parameters its last step left, must be numbers."""
    values = losses.tolist() + [p.detach().sum().item() for p in parameters]
    bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is not None:
        what, step = (
            (f"loss of {name}", bad + 1) if bad < len(losses) else (f"prompts of {name}", len(losses))
        )
        raise UserError(
            f"The {what} became {values[bad]} at epoch {epoch + 1}, step {step}, learning rate {lr:.3g}; "
            "use a smaller one (--set lr=...)."
        )
