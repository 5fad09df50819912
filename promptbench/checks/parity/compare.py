"""Comparisons: the arrays, their differences and the accepted tolerances."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from promptbench.errors import UserError

#: The kind of an array, by the first pattern that its name begins with.
KINDS = (
    (r"(teacher_)?tokens", "tokens"),
    (r"init_(stats|pool)\.", "start"),
    (r"grad", "grad"),
    (r"(wd\d+_|cosine\d+_|train_)?step\d+\.", "steps"),
    (r"(epoch\d+|gpa)\.", "epochs"),
    (r"gpa_weights", "gpa_weights"),
    (r"(cosine\d+_lr|train_lr|lr[\d.e-]+_)", "schedule"),
    (r"(cosine\d+_|train_)?loss_per_step", "loss_per_step"),
    (r"loss_\w+_per_step", "loss_terms"),
    (r"loss", "loss"),
    (r"(logits_\w*after|logits_gpa)", "logits_after"),
    (r"(train_|teacher_)?logits", "logits"),
    (r"merged_after\.", "features_raw"),
    (r"(rep|class)_tokens", "tokens_made"),
    (r"(search_(beta|alpha)$|best_(beta|alpha)$)", "grid"),
    (r"search_margin", "margin"),
    (r"search_accuracy", "search"),
    (r"(train_)?accuracy|best_accuracy|official_best_epoch", "accuracy"),
    (r"(cache_keys|adapter_output|\w*features)\w*", "features"),
    (r"cache_values", "tokens"),
)


def kind_of(name: str) -> str:
    """The kind of an array of that name, "unknown" if there is none."""
    kind = next((kind for pattern, kind in KINDS if re.match(pattern, name)), "unknown")
    raw = kind == "features" and ("_raw" in name or name == "adapter_output")
    return "features_raw" if raw else kind


def difference(ours: Tensor, target: Tensor) -> float:
    """The largest absolute difference; infinite where shapes differ or a value is NaN."""
    if ours.shape != target.shape:
        return float("inf")
    largest = (ours.detach().double() - target.double()).abs().max().item() if ours.numel() else 0.0
    return largest if largest == largest else float("inf")


def relative(ours: Tensor, target: Tensor) -> float:
    """The largest difference relative to the largest entry; infinite where ours is not 0 and the target
    exactly 0."""
    if ours.shape == target.shape and ours[target == 0].any():
        return float("inf")
    return difference(ours, target) / max(target.abs().max().item(), 1e-30)


@dataclass(frozen=True)
class Line:
    """One array, or another quantity that was compared under that name."""

    kind: str
    name: str
    difference: float
    accept: float

    @property
    def share(self) -> float:
        """The difference divided by the tolerance."""
        if self.accept:
            return self.difference / self.accept
        return 0.0 if self.difference == 0 else float("inf")


class Comparison:
    """The arrays of a file and their results; ``accepted`` gives the tolerance of every kind."""

    def __init__(self, arrays: Mapping[str, Tensor], accepted: Mapping[str, float]) -> None:
        self.arrays, self.accepted = arrays, accepted
        self.lines: list[Line] = []
        self.seen: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def take(self, name: str) -> Tensor:
        """An array that serves as input. Raises UserError if there is none."""
        if name not in self.arrays:
            raise UserError(f"the file lacks {name!r}")
        self.seen.add(name)
        return self.arrays[name]

    def starting(self, pattern: str) -> list[str]:
        """Names that begin with a regular expression."""
        return [name for name in self.arrays if re.match(pattern, name)]

    def check(self, name: str, ours: Tensor) -> None:
        """Compare an array, if the file has it."""
        if name not in self.arrays:
            return
        measure = relative if kind_of(name) == "grad" else difference
        self.measured(name, measure(ours, self.take(name)))

    def check_any(self, name: str, candidates: Iterable[Tensor]) -> None:
        """Compare an array whose layout the format leaves open with every possible layout."""
        if name in self.arrays:
            target = self.take(name)
            self.measured(name, min(difference(ours, target) for ours in candidates))

    def check_steps(self, name: str, ours: Tensor) -> None:
        """Compare values before each step; the first ones, before any step, have the tolerance of the
        loss."""
        if name not in self.arrays:
            return
        target = self.take(name)
        self.measured(name, difference(ours, target))
        if ours.shape == target.shape and len(target):
            self.lines.append(Line("loss", name, difference(ours[0], target[0]), self.accepted["loss"]))

    def check_all(
        self, stem: str, ours: Mapping[str, Tensor], exempt: float = 0.0, cap: float = float("inf")
    ) -> None:
        """Compare ``<stem>.<name>`` for every name, if the file has any of them.

        A share ``exempt`` of all entries may be off by up to ``cap``. Raises UserError if a name is missing.
        """
        if not any(f"{stem}.{name}" in self.arrays for name in ours):
            return
        if not exempt:
            for name, tensor in ours.items():
                self.take(f"{stem}.{name}")
                self.check(f"{stem}.{name}", tensor)
            return
        accept, off, total = self.accepted[kind_of(f"{stem}.")], 0, 0
        found: dict[str, Tensor] = {}
        for name, tensor in ours.items():
            target = self.take(f"{stem}.{name}")
            if tensor.shape != target.shape:
                self.measured(f"{stem}.{name}", float("inf"))
                continue
            away = (tensor.detach().double() - target.double()).abs().nan_to_num(nan=float("inf"))
            found[f"{stem}.{name}"] = away
            off, total = off + int((away > accept).sum()), total + away.numel()
        for name, away in found.items():
            if off <= exempt * total:
                away = torch.where((away > accept) & (away <= cap), 0.0, away)
            self.measured(name, away.max().item())

    def measured(self, name: str, value: float, kind: str = "") -> None:
        """Record a difference for an array's kind."""
        kind = kind or kind_of(name)
        self.lines.append(Line(kind, name, value, self.accepted[kind]))

    def unknown(self) -> list[str]:
        """Arrays that were not used."""
        return sorted(self.arrays.keys() - self.seen)


def tolerances(**changes: float) -> dict[str, float]:
    """Accepted largest absolute differences by kind (gradients: by the largest entry), fp32 on a CPU."""
    usual = {
        "tokens": 0.0,
        "features_raw": 2e-5,
        "features": 1e-5,
        "logits": 1e-4,
        "loss": 2e-5,
        "grad": 1e-4,
        "steps": 5e-6,
        "loss_per_step": 3e-4,
        "loss_terms": 3e-4,
        "epochs": 2e-5,
        "logits_after": 1e-3,
        "schedule": 1e-12,
        "gpa_weights": 1e-12,
        "tokens_made": 1e-6,
        "start": 1.0,  # of the bounds of `promptbench.checks.parity.start`
        "grid": 1e-9,
        "search": 1e-9,
        "accuracy": 1e-9,
        "margin": 1e-3,
    }
    return usual | changes


def by_kind(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Lines grouped by kind."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.kind, []).append(line)
    return found
