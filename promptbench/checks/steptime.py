"""The time of a training step in units of a reference workload, on a machine that has other things to do."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from promptbench.checks.training_step import TrainingStep, natural_names, timed
from promptbench.clip.arithmetic import suitable_threads
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.execution.setup import Setup
from promptbench.methods._registry import get_recipe

ROUNDS = 25  # timed steps of each method and of the reference, in turn
ATTEMPTS = 3  # a step is slower only if it was in each of them
CLASSES, BATCH = 25, 4  # of a timed step

Measure = Callable[[], dict[str, float]]


@dataclass
class Pace:
    """A method's step time, before and now, in units of the reference; NaN where it was not timed."""

    method: str
    before: float
    now: float
    verdict: Literal["ok", "slower", "missing"]

    @property
    def change(self) -> float:
        """0.25: a quarter more time."""
        return self.now / self.before - 1


class Reference:
    """A fixed workload that shares no code with this project: a small transformer, forward and backward, and
    two matrix products; some 50 ms on one core."""

    def __init__(self, device: torch.device) -> None:
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
        self.tower = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(device)
        self.tokens = torch.randn(8, 48, 128, device=device)
        self.matrix = torch.randn(640, 640, device=device)

    def run(self) -> None:
        self.tower.zero_grad()
        self.tower(self.tokens).square().mean().backward()
        _ = self.matrix @ self.matrix @ self.matrix


def make_timer(setup: Setup) -> Measure:
    """A function that times a training step of each method in the grid that takes any: in every round the
    reference and then each step; per method the median over rounds of step / reference.

    What slows the machine for longer than a round slows both, and what hits single steps is not the median.
    """
    trial = setup.trials()[0]
    clip = FrozenCLIP.load(trial.backbone, trial.pretrained, setup.executor.device)
    recipes = [get_recipe(name) for name in setup.sweep.grid]
    trained = [one for one in recipes if one.method.trains and one.method.Settings().epochs]
    steps = [TrainingStep(one, clip, natural_names(CLASSES), BATCH, "fp32") for one in trained]
    jobs: list[Callable[[], object]] = [Reference(setup.executor.device).run]
    jobs += [partial(step.run, step.frozen()) for step in steps]

    def measure() -> dict[str, float]:
        with suitable_threads(setup.executor.device, clip.shape):
            for job in jobs:  # to warm up
                job()
            rounds = [[timed(job, setup.executor.device) for job in jobs] for _ in range(ROUNDS)]
        ratios = zip(*([seconds / row[0] for seconds in row[1:]] for row in rounds), strict=True)
        return {step.name: statistics.median(column) for step, column in zip(steps, ratios, strict=True)}

    return measure


def against(measure: Measure, baseline: Mapping[str, float], limit: float) -> list[Pace]:
    """Each step's time against the baseline's. Where one seems slower by more than ``limit`` (0.25: a
    quarter) all are measured again, and the smallest time counts: what really is slower is so every time."""
    best: dict[str, float] = {}
    for _ in range(ATTEMPTS):
        for name, ratio in measure().items():
            best[name] = min(ratio, best.get(name, math.inf))
        if not any(best.get(name, 0) > before * (1 + limit) for name, before in baseline.items()):
            break
    found = []
    for name, before in baseline.items():
        now = best.get(name, math.nan)
        slow: Literal["ok", "slower"] = "slower" if now > before * (1 + limit) else "ok"
        found.append(Pace(name, before, now, "missing" if math.isnan(now) else slow))
    return found
