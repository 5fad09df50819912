"""What a training step costs, and how much the exact savings save: `promptbench profile`.

The *reference* is the same step done the way the official repositories do it: prompts padded to the whole
context, nothing shared between classes, features of a frozen image tower computed in every step. Both run
in turn in one process, and the medians are compared.
"""

import csv
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
from PIL import Image

from promptbench import console
from promptbench.checks.training_step import TrainingStep, gflop, natural_names, timed, wait
from promptbench.clip.arithmetic import DTYPES, resolve_precision, suitable_threads
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.precision import Precision
from promptbench.data import cards
from promptbench.data.views import Views
from promptbench.methods._base import trainable_parameters
from promptbench.methods._registry import Recipe, get_recipe
from promptbench.training.device import default_device


@dataclass(frozen=True)
class StepCost:
    """One row: a method at a number of classes. Seconds are medians over steps.

    ``text``/``image``: forward and backward of that tower alone, ``frozen``: the frozen image tower for a
    batch of views (computed once per view and cached, so no part of the fast step), ``optimiser``: its
    step, ``data``: decoding and transforming a batch of 500 x 375 JPEG images in this process.
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
) -> Iterator[StepCost]:
    """`profile` by names: of ``methods`` (none: five prompt methods) on a backbone and a device.

    Without ``pretrained`` the weights are random, except those of the embedded backbone. Raises UserError as
    `profile`, and for names that do not exist.
    """
    recipes = [get_recipe(name) for name in methods or USUAL]
    where = default_device(device)
    if pretrained is None and backbone != cards.POCKET:
        clip = FrozenCLIP.untrained(backbone, where)
    else:
        clip = FrozenCLIP.load(backbone, pretrained, where)
    if compiled:
        clip.compile()
    with suitable_threads(where, clip.shape):
        yield from profile(
            recipes, clip, n_classes, batch, reference, repeats, resolve_precision(where, precision)
        )


def as_json(rows: Sequence[StepCost]) -> str:
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
) -> Iterator[StepCost]:
    """One row per number of classes and method, each as soon as it is measured.

    Raises UserError for a method that takes no training steps.
    """
    rate, decoding = gemm_rate(clip.device, precision), _data_seconds(clip, batch)
    for classes in map(natural_names, n_classes):
        for recipe in recipes:
            step = TrainingStep(recipe, clip, classes, batch, precision)
            yield measure(step, rate, decoding, reference, repeats)


def measure(step: TrainingStep, rate: float, decoding: float, reference: bool, repeats: int) -> StepCost:
    """Fast and reference steps in turn, then the parts."""
    kept, device = step.frozen(), step.clip.device
    runs = [lambda: step.run(kept), *([step.run_reference] if reference else [])]
    runs[0]()  # its state of the optimiser stays, and would count as memory of a step
    peaks = [_peak_bytes(run, device) for run in runs]  # warms up both
    times = [[timed(run, device) for run in runs] for _ in range(repeats)]
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    arithmetic = gflop(runs[0])

    def part(run: Callable[[], object]) -> float:
        run()
        return statistics.median(timed(run, device) for _ in range(repeats))

    trains = step.method.trains
    return StepCost(
        method=step.name,
        classes=len(step.classes),
        batch=step.size,
        parameters=trainable_parameters(step.method),
        fast_seconds=seconds[0],
        text=part(step.text) if "text" in trains else 0.0,
        image=part(step.image) if step.method.needs_images else 0.0,
        frozen=part(step.frozen) if step.method.needs_frozen else 0.0,
        optimiser=part(step.optimizer.step),
        data=decoding,
        fast_peak_bytes=peaks[0],
        gflop=arithmetic,
        gemm_fraction=1e9 * arithmetic / seconds[0] / rate,
        reference_seconds=seconds[1] if reference else None,
        ratio=seconds[1] / seconds[0] if reference else None,
        reference_peak_bytes=peaks[1] if reference else None,
    )


def gemm_rate(device: torch.device, precision: Precision = "fp32", size: int = 2048) -> float:
    """Floating point operations per second of a large matrix product in this precision, the best of five."""
    a = torch.randn(size, size, device=device, dtype=DTYPES[precision])
    return 2 * size**3 / min(timed(lambda: a @ a, device) for _ in range(5))


def csv_line(cost: StepCost | None) -> str:
    """The row as a line of CSV, or the line of the column names; what was not measured is empty."""
    file = io.StringIO()
    row = [field.name for field in fields(StepCost)] if cost is None else astuple(cost)
    csv.writer(file, lineterminator="").writerow(row)
    return file.getvalue()


def sentence(cost: StepCost) -> str:
    """The row in words, to show progress."""
    text = f"{cost.method}, {cost.classes} classes: {1e3 * cost.fast_seconds:.1f} ms a step"
    if cost.reference_seconds is None:
        return text
    return f"{text}, the official way {1e3 * cost.reference_seconds:.1f} ms: {cost.ratio:.2f} times"


def render(costs: Sequence[StepCost], backbone: str) -> str:
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
    note = "* not in the step: frozen features are computed once per view, images are decoded in parallel."
    return f"{drawn}{console.fill(note)}\n"


def _peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors alive at once during ``run``, above those alive before."""
    gc.collect()
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell the terminal about every start and stop
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    results: Any = seen.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    changes: list[int] = [e.nbytes() for e in events]
    return max(itertools.accumulate(changes, initial=0))


def _data_seconds(clip: FrozenCLIP, batch: int) -> float:
    """Seconds to decode and transform ``batch`` JPEG images of 500 x 375, as in a training step."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")
    views = Views(**clip.preprocess)
    started = time.perf_counter()
    for number in range(batch):
        image = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
        views.normalise(views.train(image, 1, 0, str(number)).to(clip.device))
    wait(clip.device)
    return time.perf_counter() - started
