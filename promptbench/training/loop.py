"""The one training loop. It knows no method and no dataset by name.

A trial is a pure function of its configuration: initial values come from the seed, batches and views
from (seed, epoch), and each epoch reseeds whatever else a method may draw. A checkpoint after every
epoch therefore makes a killed run continue bit for bit (on a GPU up to the order in which its kernels add).
"""

import hashlib
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptbench.clip.features import frozen_features
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data.classnames import Classes
from promptbench.data.dataset import Dataset
from promptbench.data.splits import Item
from promptbench.data.views import Views, epoch_order, load_batches
from promptbench.errors import UserError
from promptbench.methods._base import Batch, Method, Shots
from promptbench.methods._settings import Settings
from promptbench.storage import canonical, write_atomic
from promptbench.trials.record import METRICS
from promptbench.trials.trial import Precision

CHECKPOINT = "checkpoint.pt"
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass
class Progress:
    """What training has done so far: saved in the checkpoint, reported after every epoch."""

    epoch: int = 0
    steps: int = 0
    train_seconds: float = 0.0
    frozen_seconds: float = 0.0
    wait_seconds: float = 0.0  # of the training time: for pictures
    history: list[dict[str, float]] = field(default_factory=list)
    aggregate: list[Tensor] = field(default_factory=list)  # weighted sum of the parameters so far


Report = Callable[[Progress, int], None]  # after each epoch, with the number of epochs


def learning_rate(settings: Settings, epoch: float, epochs: float | None = None) -> float:
    """The rate at ``epoch`` (counted from 0; a fraction inside an epoch, for ``schedule=step``) of
    ``epochs`` in all, by default the settings'.

    ``warmup_lr`` for the first ``warmup_epochs`` W, then from lr to lr_min by
    lr_min + (lr - lr_min) (1 + cos(pi (epoch - W) / epochs)) / 2: with a warm-up the cosine starts late
    and so never ends (Dassl.pytorch: dassl/optim/lr_scheduler.py, stepped once per epoch).
    """
    if epoch < settings.warmup_epochs:
        return settings.warmup_lr
    part = (epoch - settings.warmup_epochs) / (epochs or settings.epochs)
    height = (1 + math.cos(math.pi * part)) / 2
    return settings.lr_min + (settings.lr - settings.lr_min) * height


def aggregation_weights(settings: Settings, epochs: int | None = None) -> list[float]:
    """Gaussian prompt aggregation: the weight of the parameters after each epoch 1..E, summing to one.

    A normal density with mean ``gpa_mean`` and standard deviation ``gpa_std`` at e = 1..E over its sum
    (muzairkhattak/PromptSRC: trainers/promptsrc.py). Empty if ``gpa_std`` is 0.
    """
    if not settings.gpa_std:
        return []
    away = [
        ((e - settings.gpa_mean) / settings.gpa_std) ** 2 / 2
        for e in range(1, (epochs or settings.epochs) + 1)
    ]
    heights = [math.exp(min(away) - one) for one in away]  # the highest is 1: no density is lost to underflow
    return [height / sum(heights) for height in heights]


def make_optimizer(settings: Settings, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimiser over all trainable parameters alike; the decay acts on prompts and biases too."""
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr, betas=settings.betas, eps=settings.eps, weight_decay=decay)


def resolve_precision(device: torch.device, precision: str) -> Precision:
    """The arithmetic of the frozen towers; prompts stay fp32 in any case.

    "auto": fp32 on a CPU; on CUDA bf16, or fp16 (with loss scaling) where the hardware has no bf16.
    """
    if precision != "auto":
        return precision  # type: ignore[return-value]
    if device.type != "cuda":
        return "fp32"
    native = torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if native else "fp16"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The autocast context of a precision."""
    if precision == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=DTYPES[precision])


class Steps:
    """The steps of one training: optimiser, learning rate and loss scaling.

    ``per_epoch`` batches make an epoch; ``length`` is the training's in epochs, ``epochs`` that rounded up.
    """

    def __init__(self, method: Method, per_epoch: int, precision: Precision = "fp32") -> None:
        self.method, self.per_epoch, self.precision = method, per_epoch, precision
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        settings, self.device = method.settings, method.clip.device
        self.optimizer = make_optimizer(settings, self.parameters)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.length = settings.steps / per_epoch if settings.steps else settings.epochs
        self.epochs = math.ceil(self.length)

    def rate(self, epoch: int, step: int = 0) -> float:
        """The learning rate of a step of an epoch, both counted from 0; the optimiser has it from now on."""
        within = step / self.per_epoch if self.method.settings.schedule == "step" else 0.0
        rate = learning_rate(self.method.settings, epoch + within, self.length)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def take(self, batch: Batch, classes: Classes, epoch: int, step: int) -> tuple[Tensor, float]:
        """Take one step; the loss before it [], still on the device, and the learning rate."""
        rate = self.rate(epoch, step)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            loss = self.method.loss(batch, classes)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), rate


def create(method: type[Method], clip: FrozenCLIP, settings: Any, classes: Classes, seed: int) -> Method:
    """A method with initial values drawn from ``seed``, on the CLIP's device.

    The CPU's global random stream is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method(clip, settings, classes).to(clip.device)


def fit(
    method: Method,
    dataset: Dataset,
    items: Sequence[Item],
    classes: Classes,
    seed: int,
    folder: Path | None = None,
    precision: Precision = "fp32",
    workers: int = 0,
    report: Report = lambda progress, epochs: None,
    validation: Sequence[Item] = (),
    measure: Callable[[], dict[str, float]] = dict,
) -> Progress:
    """Train ``method`` in place on ``items``; with a ``folder``, checkpoint there and resume from it.

    ``validation``: few-shot validation pictures, for methods that choose something by them. ``measure``:
    called after every epoch; what it returns goes into the metrics and nowhere else.

    Raises UserError if the loss stops being a number, naming epoch, step and learning rate.
    """
    clip, settings = method.clip, method.settings
    views = Views(**clip.preprocess, crop_min=settings.crop_min, flip=dataset.card.flip)
    labels = torch.tensor([item.label for item in items], device=clip.device)

    def features(draw: int | None, chosen: Sequence[Item] = items) -> Tensor:
        with autocast(clip.device, precision):
            at = None if draw is None else (seed, draw)
            return frozen_features(clip, dataset, chosen, views, at, workers)

    def held_out() -> tuple[Tensor, Tensor] | None:
        known = torch.tensor([item.label for item in validation], device=clip.device)
        return (features(None, validation), known) if validation else None

    def fitted_on(number: int | None) -> Tensor:
        # views of their own: those of training are numbered from 0
        return features(None if number is None else -1 - number)

    shots = Shots(labels, classes, fitted_on, held_out)

    def choose() -> None:
        with autocast(clip.device, precision):
            method.after_training(shots)

    started = time.perf_counter()
    method.before_training(shots)
    fitted = time.perf_counter() - started
    if not any(p.requires_grad for p in method.parameters()) or not (settings.epochs or settings.steps):
        choose()
        return Progress(train_seconds=fitted)

    def order(epoch: int) -> list[list[int]]:
        return epoch_order(len(items), settings.batch_size, seed, epoch, settings.drop_last)

    steps = Steps(method, len(order(0)), precision)
    parameters, epochs = steps.parameters, steps.epochs
    progress = _resume(folder, method, steps.optimizer, steps.scaler)
    progress.train_seconds = progress.train_seconds or fitted
    aggregation = aggregation_weights(settings, epochs)

    method.train()
    for epoch in range(progress.epoch, epochs):
        batches = order(epoch)
        batches = batches[: settings.steps - progress.steps if settings.steps else None]
        draw = (seed, epoch)
        started = time.perf_counter()
        frozen = features(epoch) if method.needs_frozen else None
        progress.frozen_seconds += time.perf_counter() - started

        started = time.perf_counter()
        lr = steps.rate(epoch)
        images: Iterator[Tensor] = iter(())
        if method.needs_images:
            images = load_batches(dataset, items, views, batches, draw, clip.device, workers)
        losses = []
        with torch.random.fork_rng(devices=[clip.device] if clip.device.type == "cuda" else []):
            torch.manual_seed((seed << 20) + epoch)  # for methods that draw while training (dropout)
            indices = torch.tensor([i for one in batches for i in one], device=clip.device)  # one copy
            for step, index in enumerate(indices.split([len(one) for one in batches])):
                waiting = time.perf_counter()
                pictures = next(images, None)
                progress.wait_seconds += time.perf_counter() - waiting
                batch = Batch(labels[index], pictures, None if frozen is None else frozen[index])
                loss, lr = steps.take(batch, classes, epoch, step)
                losses.append(loss)  # read once per epoch: no synchronisation per step
        values = torch.stack(losses).float().cpu()
        _require_finite(values, parameters, method.name, epoch, lr)
        progress.epoch, progress.steps = epoch + 1, progress.steps + len(batches)
        progress.train_seconds += time.perf_counter() - started
        progress.history.append({"epoch": epoch + 1, "lr": lr, "loss": values.mean().item(), **measure()})
        if aggregation:
            sums = progress.aggregate or [torch.zeros_like(p) for p in parameters]
            added = zip(sums, parameters, strict=True)
            progress.aggregate = [sum_ + aggregation[epoch] * p.detach() for sum_, p in added]
        _save(folder, progress, method, steps.optimizer, steps.scaler)
        report(progress, epochs)
    if aggregation:  # the sum replaces the parameters; the checkpoint keeps those of the last epoch
        with torch.no_grad():
            for parameter, sum_ in zip(parameters, progress.aggregate, strict=True):
                parameter.copy_(sum_)
    choose()
    return progress


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


def _save(
    folder: Path | None, progress: Progress, method: Method, optimizer: torch.optim.Optimizer, scaler: Any
) -> None:
    if folder is None:
        return
    state = {
        "progress": vars(progress),
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
    }
    # The checkpoint last: a run resumed from it never goes back to an epoch whose metrics were lost.
    write_atomic(folder / METRICS, "".join(canonical(row) + "\n" for row in progress.history))
    content = io.BytesIO()
    torch.save(state, content)
    write_atomic(folder / CHECKPOINT, content.getvalue() + hashlib.sha256(content.getbuffer()).digest())


def discard_damaged(folder: Path) -> bool:
    """Remove the checkpoint in ``folder`` if it is not as it was written: the trial then starts over.

    Returns whether there was such a one.
    """
    path = folder / CHECKPOINT
    if _checkpoint(path) is not None or not path.exists():
        return False
    path.unlink(missing_ok=True)
    return True


def _checkpoint(path: Path) -> bytes | None:
    """What was saved in a checkpoint, which ends with its SHA-256; None if that does not fit."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    saved, digest = content[:-32], content[-32:]
    return saved if hashlib.sha256(saved).digest() == digest else None


def _resume(folder: Path | None, method: Method, optimizer: torch.optim.Optimizer, scaler: Any) -> Progress:
    """Continue from the checkpoint if there is one that is as it was written.

    Raises UserError, and removes it, if another version of the program wrote it.
    """
    saved = _checkpoint(folder / CHECKPOINT) if folder else None
    if folder is None or saved is None:
        return Progress()
    try:
        # On the CPU: what belongs on the device is copied there, and Adam's count of steps does not.
        state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        if scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
        progress = Progress(**state["progress"])
        progress.aggregate = [one.to(method.clip.device) for one in progress.aggregate]
        return progress
    except torch.OutOfMemoryError:  # no fault of the file's
        raise
    except (EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError):
        (folder / CHECKPOINT).unlink(missing_ok=True)
        raise UserError(
            f"The checkpoint in {folder} was written by another version of promptbench and has been removed; "
            "run the same command again to start this trial over."
        ) from None
