"""Trials and benchmarks. A trial is one training and the evaluations that follow it: a frozen value.

A benchmark is a pure function from methods, datasets, seeds and shots to a list of trials.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from promptbench import weights
from promptbench.data import Dataset, Half, Split
from promptbench.errors import UserError, unknown
from promptbench.files import hash_file, hash_value
from promptbench.method import Method, Settings, resolve_settings

Precision = Literal["fp32", "bf16", "fp16"]


class Evaluation(BaseModel):
    """Top-1 accuracy on one split of one dataset, among the classes of one half."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    classes: Half


class Trial(BaseModel):
    """Everything the result of a training depends on. Two trials are the same iff their hash is.

    ``data`` fingerprints the dataset, ``weights`` the backbone's weights (file hash or tag), so that a
    changed file is a changed trial. ``pretrained`` is only where the weights were found.
    ``variant`` says, for people, which settings the user changed ("rank=2"); the settings say it all.
    Methods that train nothing have shots 0 and seed 0: there is one such trial, not one per seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    method: str
    settings: dict[str, Any]
    dataset: str
    data: str
    train_classes: Half
    shots: int
    seed: int
    evaluations: tuple[Evaluation, ...]
    split: Split = "test"
    limit: int | None = None
    backbone: str = weights.POCKET
    pretrained: str | None = None
    weights: str = ""
    precision: Precision = "fp32"
    variant: str = ""

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the trial's content."""
        return hash_value(self.model_dump(mode="json", exclude={"pretrained", "variant"}))

    def folder(self, out: Path) -> Path:
        """Where the trial's files go under the output folder."""
        name = f"shots{self.shots}-seed{self.seed}-{self.hash[:8]}"
        return out / "runs" / self.benchmark / self.method / self.dataset / name

    @property
    def label(self) -> str:
        """One line for people."""
        method = f"{self.method} ({self.variant})" if self.variant else self.method
        return f"{method} on {self.dataset}" + (
            f", {self.shots} shots, seed {self.seed}" if self.shots else ""
        )


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark turns a dataset into trials."""

    name: str
    summary: str
    shots: tuple[int, ...]
    train_classes: Half
    evaluations: Callable[[Dataset], tuple[Evaluation, ...]]
    least_classes: int = 2


def _halves(dataset: Dataset) -> tuple[Evaluation, ...]:
    return tuple(Evaluation(dataset=dataset.name, classes=half) for half in ("base", "novel"))


def _all(dataset: Dataset) -> tuple[Evaluation, ...]:
    return (Evaluation(dataset=dataset.name, classes="all"),)


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "base2novel",
            "train on the base half of the classes, 16 shots; test base and novel half apart",
            (16,),
            "base",
            _halves,
            # one class per half would be right by definition
            least_classes=4,
        ),
        Benchmark(
            "fewshot", "train on all classes, 1/2/4/8/16 shots; test all", (1, 2, 4, 8, 16), "all", _all
        ),
    )
}


def get_benchmark(name: str) -> Benchmark:
    """The benchmark called ``name``. Raises UserError with the nearest name."""
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS, "See `promptbench ls benchmarks`.")
    return BENCHMARKS[name]


def tuned_settings(backbone: str, method: str) -> dict[str, Any]:
    """Settings chosen for a backbone whose scale the papers did not know: common ones, then the method's."""
    if backbone != weights.POCKET:
        return {}
    chosen = yaml.safe_load((weights.pocket_folder() / "settings.yaml").read_text())
    return {**chosen["common"], **chosen["settings"].get(method, {})}


def plan(
    benchmark: Benchmark,
    methods: Sequence[type[Method]],
    datasets: Sequence[Dataset],
    seeds: Sequence[int] = (1,),
    shots: Sequence[int] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    epochs: int | None = None,
    split: Split = "test",
    limit: int | None = None,
    backbone: str = weights.POCKET,
    pretrained: str | None = None,
    precision: Precision = "fp32",
) -> list[Trial]:
    """All trials, in the order methods x datasets x shots x seeds; nothing is trained.

    ``overrides``: settings by method name. ``epochs`` overrides training methods only.
    Raises UserError for anything that would fail later: settings, classes, shots, weights.
    """
    path, tag = weights.weights_file(backbone, pretrained)
    fingerprint = hash_file(path) if path else tag
    shape = weights.backbone_shape(backbone)
    shots = tuple(shots or benchmark.shots)
    trials: list[Trial] = []
    for dataset in datasets:
        if len(dataset.classnames) < benchmark.least_classes:
            raise UserError(
                f"{dataset.name} has {len(dataset.classnames)} classes; {benchmark.name} needs at least "
                f"{benchmark.least_classes}."
            )
        for evaluation in benchmark.evaluations(dataset):
            if not dataset.items(split, evaluation.classes):
                raise UserError(
                    f"{dataset.name} has no {split} pictures to evaluate; choose another --split."
                )
        for count in shots if any(method.trains for method in methods) else ():
            dataset.few_shot(count, 1, "all")  # refuses more shots than a class holds
    for method in methods:
        mine = dict((overrides or {}).get(method.name, {}))
        if not method.trains:  # how others are optimised does not make it another trial
            mine = {key: value for key, value in mine.items() if key not in Settings.model_fields}
        if epochs is not None and method.trains:
            mine.setdefault("epochs", epochs)
        tuned = tuned_settings(backbone, method.name)
        for dataset in datasets:
            for count in shots if method.trains else (0,):
                given = (method, benchmark.name, count, dataset.name, tuned)
                default, settings = resolve_settings(*given), resolve_settings(*given, mine)
                method.check(settings, shape)
                if method.trains and not method.parameter_count(settings, shape, 2):
                    raise UserError(f"{method.name}: these settings leave nothing to train; use more tokens.")
                changed = [k for k in mine if getattr(settings, k) != getattr(default, k)]
                trials += [
                    Trial(
                        benchmark=benchmark.name,
                        method=method.name,
                        settings=settings.model_dump(mode="json"),
                        dataset=dataset.name,
                        data=dataset.fingerprint,
                        train_classes=benchmark.train_classes,
                        shots=count,
                        seed=seed,
                        evaluations=benchmark.evaluations(dataset),
                        split=split,
                        limit=limit,
                        backbone=backbone,
                        pretrained=pretrained,
                        weights=fingerprint,
                        precision=precision,
                        variant=" ".join(f"{key}={getattr(settings, key)}" for key in sorted(changed)),
                    )
                    for seed in (seeds if method.trains else (0,))
                ]
    return trials
