"""A training step of a method on its own, to be timed or counted, without data and without a trial.

Speed does not depend on values: random images serve, and random weights where none are at hand.
"""

import itertools
import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.clip.arithmetic import autocast
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.precision import Precision
from promptbench.clip.reference import ReferenceCLIP
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.data.classnames import Classes
from promptbench.errors import UserError
from promptbench.methods._base import Batch, Method, Shots
from promptbench.methods._registry import Recipe, get_method, resolve_settings
from promptbench.training.loop import create
from promptbench.training.steps import make_optimizer
from promptbench.trials.benchmarks import DEFAULT
from promptbench.trials.record import Record

_SHOTS = 16


class TrainingStep:
    """A method with everything a training step of it needs."""

    def __init__(
        self, recipe: Recipe, clip: FrozenCLIP, classes: Classes, batch: int, precision: Precision
    ) -> None:
        settings = resolve_settings(recipe, DEFAULT, _SHOTS, "")
        recipe.method.check(settings, clip.shape)
        self.name, self.clip, self.classes, self.size = recipe.name, clip, classes, batch
        self.precision: Precision = precision
        self.fast, self.reference = clip, ReferenceCLIP(clip)
        self.method: Method = create(recipe.method, clip, settings, classes, seed=1)
        device, e = clip.device, clip.shape.embed_dim
        side = clip.preprocess["size"]
        self.images = torch.randn(batch, 3, side, side, device=device)
        self.labels = torch.arange(batch, device=device) % len(classes)
        kept = torch.randn(_SHOTS * len(classes), e, device=device)
        known = torch.arange(len(classes), device=device).repeat_interleave(_SHOTS)
        self.method.before_training(Shots(known, classes, lambda draw: kept, lambda: None))
        self.parameters = [p for p in self.method.parameters() if p.requires_grad]
        if not self.parameters or not (settings.epochs or settings.steps):
            raise UserError(f"{recipe.name} takes no training steps, so there is nothing to profile.")
        self.optimizer = make_optimizer(settings, self.parameters)
        self.method.train()

    def frozen(self) -> Tensor:
        with torch.no_grad():
            return self.clip.image_features(self.images).float()

    def batch(self, frozen: Tensor | None) -> Batch:
        needs = self.method.needs_frozen
        images = self.images if self.method.needs_images else None
        return Batch(self.labels, images, frozen if needs else None)

    def run(self, frozen: Tensor | None) -> Tensor:
        """One step and its loss; without ``frozen`` features of the views they are computed in it."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.clip.device, self.precision):
            if frozen is None and self.method.needs_frozen:
                frozen = self.frozen()
            loss: Tensor = self.method.loss(self.batch(frozen), self.classes)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def run_reference(self) -> Tensor:
        """The same step the official way."""
        self.clip = self.method.clip = self.reference
        try:
            return self.run(None)
        finally:
            self.clip = self.method.clip = self.fast

    def text(self) -> None:
        """The text tower of a step alone, forward and backward."""
        with autocast(self.clip.device, self.precision):
            image = F.normalize(torch.ones(self.size, self.clip.shape.embed_dim, device=self.clip.device))
            out = self.method.text_for(image, self.classes)
        self._backward(out)

    def image(self) -> None:
        """The image tower of a step alone, forward and backward."""
        with autocast(self.clip.device, self.precision):
            out = self.clip.image_features(self.images, self.method.prompts())
        self._backward(out)

    def _backward(self, out: Tensor) -> None:
        if out.requires_grad:
            out.sum().backward()
        self.optimizer.zero_grad(set_to_none=True)


def natural_names(n: int) -> Classes:
    """``n`` names: those of the embedded suite, then pairs of them, so their lengths are natural ones."""
    names = [name for one in cards.suite("pocket") for name in data.load(one).classnames]
    pairs = (f"{a} {b}" for a, b in itertools.product(names, names) if a != b)
    return Classes(tuple(itertools.islice(dict.fromkeys(itertools.chain(names, pairs)), n)))


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``run`` takes, until the device has finished it."""
    wait(device)
    started = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gflop(run: Callable[[], object]) -> float:
    """Billions of floating point operations of ``run``: of matrix products and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) / 1e9


def record_gflop(record: Record) -> float:
    """GFLOP of one training step of a record's method with its own batch size and settings; 0 where nothing
    is trained by steps. Computed, not measured: it depends on the configuration only.

    The record must hold its classes by name.
    """
    trial = record.trial
    trained = (trial.dataset, trial.train_classes)
    names = next(tuple(c.per_class) for c in record.evaluations if (c.dataset, c.classes) == trained)
    recipe = Recipe(trial.method, get_method(trial.method), trial.settings)
    batch = trial.settings["batch_size"]
    try:
        step = TrainingStep(recipe, _any_weights(trial.backbone), Classes(names), batch, "fp32")
    except UserError:  # fitted in closed form, or not at all
        return 0.0
    kept = step.frozen()
    step.run(kept)  # what is computed once (frozen features of the text) is no part of a step
    return gflop(lambda: step.run(kept))


@cache
def _any_weights(backbone: str) -> FrozenCLIP:
    """The backbone on the CPU, with random weights where none are embedded: values change no count."""
    cpu = torch.device("cpu")
    if backbone == cards.POCKET:
        return FrozenCLIP.load(backbone, None, cpu)
    return FrozenCLIP.untrained(backbone, cpu)
