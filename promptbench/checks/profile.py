"""What a training step costs, and how much the exact savings save: `promptbench profile`.

Speed does not depend on values, so random pictures serve, and random weights where none are at hand. The
*reference* is the same step done the way the official repositories do it: prompts padded to the whole
context, nothing shared between classes, features of a frozen image tower computed in every step. Both run
in turn in one process, and the medians are compared.
"""

import gc
import io
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from promptbench import console
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.data.classnames import Classes
from promptbench.data.views import Views
from promptbench.errors import UserError
from promptbench.methods._base import (
    Batch,
    Method,
    Recipe,
    Shots,
    get_recipe,
    resolve_settings,
    trainable_parameters,
)
from promptbench.training import environment
from promptbench.training.loop import DTYPES, autocast, create, make_optimizer, resolve_precision
from promptbench.trials.trial import Precision

SHOTS = 16


@dataclass(frozen=True)
class Cost:
    """One row: a method at a number of classes. Seconds are medians over steps.

    ``text``/``image``: forward and backward of that tower alone, ``frozen``: the frozen image tower for a
    batch of views (computed once per view and cached, so no part of the fast step), ``optimiser``: its
    step, ``data``: decoding and transforming a batch of 500 x 375 JPEG pictures in this process.
    ``gflop`` of the fast step; ``gemm_fraction`` of this machine's rate for large matrix products. Peak
    bytes are those allocated in a step above the weights.
    """

    method: str
    classes: int
    batch: int
    parameters: int
    fast_seconds: float
    text: float
    image: float
    frozen: float
    optimiser: float
    data: float
    fast_peak_bytes: int
    gflop: float
    gemm_fraction: float
    reference_seconds: float | None = None
    ratio: float | None = None
    reference_peak_bytes: int | None = None


USUAL = ("coop", "ivlp", "maple", "promptsrc", "mmlop")


def profile_by_name(
    methods: Sequence[str] = (),
    backbone: str = cards.POCKET,
    pretrained: str | None = None,
    n_classes: Sequence[int] = (50, 500),
    batch: int = 4,
    reference: bool = False,
    repeats: int = 3,
    device: str | None = None,
    precision: str = "auto",
    compiled: bool = False,
) -> Iterator[Cost]:
    """`profile` by names: of ``methods`` (none: five prompt methods) on a backbone and a device.

    Without ``pretrained`` the weights are random, except those of the embedded backbone. Raises UserError as
    `profile`, and for names that do not exist.
    """
    recipes = [get_recipe(name) for name in methods or USUAL]
    where = environment.default_device(device)
    if pretrained is None and backbone != cards.POCKET:
        clip = FrozenCLIP.untrained(backbone, where)
    else:
        clip = FrozenCLIP.load(backbone, pretrained, where)
    if compiled:
        clip.compile()
    with environment.suitable_threads(where, clip.shape):
        yield from profile(
            recipes, clip, n_classes, batch, reference, repeats, resolve_precision(where, precision)
        )


def as_json(rows: Sequence[Cost]) -> str:
    """The rows as a JSON list."""
    return json.dumps([asdict(row) for row in rows], indent=1)


def profile(
    recipes: Sequence[Recipe],
    clip: FrozenCLIP,
    n_classes: Sequence[int],
    batch: int,
    reference: bool = False,
    repeats: int = 3,
    precision: Precision = "fp32",
) -> Iterator[Cost]:
    """One row per number of classes and method, each as soon as it is measured.

    Raises UserError for a method that takes no training steps.
    """
    rate, decoding = gemm_rate(clip.device, precision), _data_seconds(clip, batch)
    for classes in map(natural_names, n_classes):
        for recipe in recipes:
            yield Step(recipe, clip, classes, batch, precision).cost(rate, decoding, reference, repeats)


def gemm_rate(device: torch.device, precision: Precision = "fp32", size: int = 2048) -> float:
    """Floating point operations per second of a large matrix product in this precision, the best of five."""
    a = torch.randn(size, size, device=device, dtype=DTYPES[precision])
    return 2 * size**3 / min(timed(lambda: a @ a, device) for _ in range(5))


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``run`` takes, until the device has finished it."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def natural_names(n: int) -> Classes:
    """``n`` names: those of the embedded suite, then pairs of them, so their lengths are natural ones."""
    names = [name for one in cards.suite("pocket") for name in data.load(one).classnames]
    pairs = (f"{a} {b}" for a, b in itertools.product(names, names) if a != b)
    return Classes(tuple(itertools.islice(dict.fromkeys(itertools.chain(names, pairs)), n)))


def csv_line(cost: Cost | None) -> str:
    """The row as a line of CSV, or the line of the column names; what was not measured is empty."""
    row = [field.name for field in fields(Cost)] if cost is None else astuple(cost)
    return ",".join("" if value is None else str(value) for value in row)


def sentence(cost: Cost) -> str:
    """The row in words, for who waits."""
    text = f"{cost.method}, {cost.classes} classes: {1e3 * cost.fast_seconds:.1f} ms a step"
    if cost.reference_seconds is None:
        return text
    return f"{text}, the official way {1e3 * cost.reference_seconds:.1f} ms: {cost.ratio:.2f} times"


def render(costs: Sequence[Cost], backbone: str) -> str:
    """The rows as a table for the terminal, in milliseconds and MB."""
    compared = any(cost.ratio is not None for cost in costs)
    left = ["method"]
    right = ["classes", "batch", "step", "text", "image", "optimiser", "frozen*", "data*", "MB", "GFLOP"]
    right += ["of matmul", "parameters", *(["official way", "MB", "ratio"] if compared else [])]
    rows = []
    for row in map(asdict, costs):
        parts = [row[key] for key in ("fast_seconds", "text", "image", "optimiser", "frozen", "data")]
        cells = [row["method"], str(row["classes"]), str(row["batch"]), *(f"{1e3 * x:.1f}" for x in parts)]
        cells += [f"{row['fast_peak_bytes'] / 1e6:.1f}", f"{row['gflop']:.2f}", f"{row['gemm_fraction']:.0%}"]
        cells += [f"{row['parameters']:,}"]
        if compared:
            cells += [f"{1e3 * row['reference_seconds']:.1f}", f"{row['reference_peak_bytes'] / 1e6:.1f}"]
            cells += [f"{row['ratio']:.2f}"]
        rows.append(cells)
    drawn = console.table(left + right, rows, f"One training step on {backbone}, ms", right=set(right))
    note = "* no part of the step: frozen features are computed once per view, pictures are decoded beside."
    return f"{drawn}{console.fill(note)}\n"


class Step:
    """A method with everything a training step of it needs."""

    def __init__(
        self, recipe: Recipe, clip: FrozenCLIP, classes: Classes, batch: int, precision: Precision
    ) -> None:
        settings = resolve_settings(recipe, "base2novel", SHOTS, "")
        recipe.method.check(settings, clip.shape)
        self.name, self.clip, self.classes, self.size = recipe.name, clip, classes, batch
        self.precision: Precision = precision
        self.method: Method = create(recipe.method, clip, settings, classes, seed=1)
        device, e = clip.device, clip.shape.embed_dim
        side = clip.preprocess["size"]
        self.images = torch.randn(batch, 3, side, side, device=device)
        self.labels = torch.arange(batch, device=device) % len(classes)
        kept = torch.randn(SHOTS * len(classes), e, device=device)
        known = torch.arange(len(classes), device=device).repeat_interleave(SHOTS)
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
            loss = self.method.loss(self.batch(frozen), self.classes)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def run_reference(self) -> Tensor:
        """The same step the official way."""
        self.clip.reference = True
        try:
            return self.run(None)
        finally:
            self.clip.reference = False

    def cost(self, rate: float, decoding: float, reference: bool, repeats: int) -> Cost:
        """Fast and reference steps in turn, then the parts."""
        kept, device = self.frozen(), self.clip.device
        runs = [lambda: self.run(kept), *([self.run_reference] if reference else [])]
        runs[0]()  # its state of the optimiser stays, and would count as memory of a step
        peaks = [_peak_bytes(run, device) for run in runs]  # warms up both
        times = [[timed(run, device) for run in runs] for _ in range(repeats)]
        seconds = [statistics.median(column) for column in zip(*times, strict=True)]
        arithmetic = gflop(runs[0])

        def part(run: Callable[[], object]) -> float:
            run()
            return statistics.median(timed(run, device) for _ in range(repeats))

        trains = self.method.trains
        return Cost(
            method=self.name,
            classes=len(self.classes),
            batch=self.size,
            parameters=trainable_parameters(self.method),
            fast_seconds=seconds[0],
            text=part(self.text) if "text" in trains else 0.0,
            image=part(self.image) if self.method.needs_images else 0.0,
            frozen=part(self.frozen) if self.method.needs_frozen else 0.0,
            optimiser=part(self.optimizer.step),
            data=decoding,
            fast_peak_bytes=peaks[0],
            gflop=arithmetic,
            gemm_fraction=1e9 * arithmetic / seconds[0] / rate,
            reference_seconds=seconds[1] if reference else None,
            ratio=seconds[1] / seconds[0] if reference else None,
            reference_peak_bytes=peaks[1] if reference else None,
        )

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


def gflop(run: Callable[[], object]) -> float:
    """Billions of floating point operations of ``run``: of matrix products and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def _peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors alive at once during ``run``, above those alive before."""
    gc.collect()
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell the terminal about every start and stop
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    results: Any = seen.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(itertools.accumulate((e.nbytes() for e in events), initial=0))


def _data_seconds(clip: FrozenCLIP, batch: int) -> float:
    """Seconds to decode and transform ``batch`` JPEG pictures of 500 x 375, as in a training step."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")
    views = Views(**clip.preprocess)
    started = time.perf_counter()
    for number in range(batch):
        image = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
        views.normalise(views.train(image, 1, 0, str(number)).to(clip.device))
    _wait(clip.device)
    return time.perf_counter() - started
