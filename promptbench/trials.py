"""Trials and benchmarks. A trial is one training and the evaluations that follow it: a frozen value.

A benchmark is a pure function from methods, datasets, seeds and shots to a list of trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from promptbench import weights
from promptbench.cards import Half, Split
from promptbench.data import Dataset
from promptbench.errors import UserError, unknown
from promptbench.files import hash_value
from promptbench.method import Method, Recipe, Settings, resolve_settings

Precision = Literal["fp32", "bf16", "fp16"]
Overrides = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Evaluation(BaseModel):
    """Top-1 accuracy on one split of one dataset, among the classes of one half."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    classes: Half


class Trial(BaseModel):
    """Everything the result of a training depends on. Two trials are the same iff their hash is.

    ``data`` fingerprints the datasets, ``weights`` the backbone's weights (file hash or tag), so that a
    changed file is a changed trial. ``pretrained`` is only where the weights were found.
    ``variant`` says, for people, which settings the user changed ("rank=2"); the settings say it all.
    Methods that use no training pictures have shots 0 and seed 0: there is one such trial, not one per seed.
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
        return out.joinpath("runs", self.benchmark, self.method, self.dataset.replace(":", "-"), name)

    @property
    def label(self) -> str:
        """One line for people."""
        method = f"{self.method} ({self.variant})" if self.variant else self.method
        return f"{method} on {self.dataset}" + (
            f", {self.shots} shots, seed {self.seed}" if self.shots else ""
        )


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark turns datasets into trials: a trial trains on the classes ``train`` of one dataset
    and is tested, without further training, among each of the label spaces ``test`` of the same dataset or,
    in a ``transfer`` benchmark, of it (the source) and of every target."""

    name: str
    summary: str
    shots: tuple[int, ...]
    train: Half
    test: tuple[Half, ...]
    transfer: bool = False
    least_classes: int = 2


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "base2novel",
            "train on the base half of the classes, 16 shots; test base and novel half apart",
            (16,),
            "base",
            ("base", "novel"),
            # one class per half would be right by definition
            least_classes=4,
        ),
        Benchmark(
            "fewshot",
            "train on all classes, 1/2/4/8/16 shots; test all",
            (1, 2, 4, 8, 16),
            "all",
            ("all",),
        ),
        Benchmark(
            "crossdataset",
            "train on all classes of one dataset, 16 shots; test on the other datasets",
            (16,),
            "all",
            ("all",),
            transfer=True,
        ),
        Benchmark(
            "domain",
            "train on all classes in one domain, 16 shots; test the same kind of classes in other domains",
            (16,),
            "all",
            ("all",),
            transfer=True,
        ),
    )
}


#: What `promptbench run` takes where the command line says nothing.
PRESETS: dict[str, dict[str, Any]] = {
    "pocket": {"backbone": weights.POCKET, "pretrained": None, "suite": "pocket", "seeds": "1"},
    # the comparison of the papers: 11 datasets, three seeds, OpenAI's weights
    "paper": {
        "backbone": "ViT-B-16-quickgelu",
        "pretrained": "openai",
        "suite": "standard",
        "seeds": "1,2,3",
    },
}


def get_benchmark(name: str) -> Benchmark:
    """The benchmark called ``name``. Raises UserError with the nearest name."""
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS, "See `promptbench ls benchmarks`.")
    return BENCHMARKS[name]


@cache
def _chosen() -> dict[str, Any]:
    """What tools/pocket/tune.py wrote."""
    return dict(yaml.safe_load((weights.pocket_folder() / "settings.yaml").read_text()))


def tuned_settings(backbone: str, recipe: Recipe) -> dict[str, Any]:
    """Settings chosen for a backbone whose scale the papers did not know: common ones, then the variant's or,
    if nobody tuned it, its method's."""
    if backbone != weights.POCKET:
        return {}
    chosen = _chosen()
    own = chosen["settings"]
    return {**chosen["common"], **own.get(recipe.name, own.get(recipe.method.name, {}))}


def plan(
    benchmark: Benchmark,
    methods: Sequence[type[Method] | Recipe],
    datasets: Sequence[Dataset],
    seeds: Sequence[int] = (1,),
    shots: Sequence[int] | None = None,
    overrides: Mapping[str, Overrides] | None = None,
    epochs: int | None = None,
    split: Split = "test",
    limit: int | None = None,
    backbone: str = weights.POCKET,
    pretrained: str | None = None,
    precision: Precision = "fp32",
    source: Dataset | None = None,
) -> list[Trial]:
    """All trials, in the order methods x overrides x datasets x shots x seeds, none twice. Trains nothing.

    In a transfer benchmark one training on ``source`` serves all of ``datasets``; in others ``source`` is
    not used. ``overrides``: settings by name of method or recipe, or a list of them for a trial with each.
    ``epochs`` is for those trained by gradient only.
    Raises UserError for anything that would fail later: settings, classes, shots, weights.
    """
    fingerprint = weights.weights_identity(backbone, pretrained)
    shape = weights.backbone_shape(backbone)
    shots = tuple(shots or benchmark.shots)
    units: list[tuple[Dataset, tuple[Dataset, ...]]]
    if not benchmark.transfer:
        units = [(dataset, (dataset,)) for dataset in datasets]
    elif source is None:
        raise UserError(f"{benchmark.name} needs a dataset to train on; give it with --source.")
    else:
        units = [(source, _with_source(source, datasets))]
    wanted = [one if isinstance(one, Recipe) else Recipe(one.name, one) for one in methods]
    for method in (recipe.method for recipe in wanted):
        if reason := method.unfit.get(benchmark.name):
            raise UserError(f"{method.name} is not for {benchmark.name}: {reason}; leave it out.")
    drawn = shots if any(recipe.method.uses_shots for recipe in wanted) else ()
    for dataset, tested in units:
        _check_data(benchmark, dataset, tested, split, drawn, seeds)
    trials: list[Trial] = []
    for recipe, given in _variants(wanted, overrides or {}):
        method, mine = recipe.method, dict(given)
        gradient = method.Settings.model_fields["epochs"].default > 0
        if not gradient:  # how others are optimised does not make it another trial
            mine = {key: value for key, value in mine.items() if key not in Settings.model_fields}
        if epochs is not None and gradient:
            mine.setdefault("epochs", epochs)
        tuned = tuned_settings(backbone, recipe)
        for dataset, tested in units:
            prints = [one.fingerprint for one in tested]
            for count in shots if method.uses_shots else (0,):
                situation = (recipe, benchmark.name, count, dataset.name, tuned)
                default, settings = resolve_settings(*situation), resolve_settings(*situation, mine)
                method.check(settings, shape)
                if method.trains and not method.parameter_count(settings, shape, 2):
                    raise UserError(f"{method.name}: these settings leave nothing to train; use more tokens.")
                changed = [k for k in mine if getattr(settings, k) != getattr(default, k)]
                labels = [recipe.label, *(f"{key}={getattr(settings, key)}" for key in sorted(changed))]
                trials += [
                    Trial(
                        benchmark=benchmark.name,
                        method=method.name,
                        settings=settings.model_dump(mode="json"),
                        dataset=dataset.name,
                        data=hash_value(prints) if benchmark.transfer else dataset.fingerprint,
                        train_classes=benchmark.train,
                        shots=count,
                        seed=seed,
                        evaluations=tuple(
                            Evaluation(dataset=one.name, classes=half)
                            for one in tested
                            for half in benchmark.test
                        ),
                        split=split,
                        limit=limit,
                        backbone=backbone,
                        pretrained=pretrained,
                        weights=fingerprint,
                        precision=precision,
                        variant=" ".join(filter(None, labels)),
                    )
                    for seed in (seeds if method.uses_shots else (0,))
                ]
    unique: dict[str, Trial] = {}
    for trial in trials:
        unique.setdefault(trial.hash, trial)
    return list(unique.values())


def shard(trials: Sequence[Trial], number: int, count: int) -> list[Trial]:
    """Every ``count``-th of ``trials`` from the ``number``-th, counted from 1.

    It depends on nothing but the list, so that the parts of one command are disjoint, make up the whole
    and differ by one trial at most; neighbours in the list, which take about as long, are in different parts.
    """
    return list(trials[number - 1 :: count])


def _variants(
    recipes: Sequence[Recipe], overrides: Mapping[str, Overrides]
) -> list[tuple[Recipe, Mapping[str, Any]]]:
    """Every recipe with each of the overrides it was given, or with none."""
    found: list[tuple[Recipe, Mapping[str, Any]]] = []
    for recipe in recipes:
        given = overrides.get(recipe.name, {})
        found += [(recipe, one) for one in ([given] if isinstance(given, Mapping) else given)]
    return found


def _with_source(source: Dataset, targets: Sequence[Dataset]) -> tuple[Dataset, ...]:
    if not targets or any(target.name == source.name for target in targets):
        raise UserError(
            f"A transfer benchmark needs targets other than its source {source.name}; "
            "give them with --dataset."
        )
    return (source, *targets)


def _check_data(
    benchmark: Benchmark,
    dataset: Dataset,
    tested: Sequence[Dataset],
    split: Split,
    shots: Sequence[int],
    seeds: Sequence[int],
) -> None:
    """Refuse before any work what would fail in the middle of it."""
    for one in tested:
        if len(one.classnames) < benchmark.least_classes:
            raise UserError(
                f"{one.name} has {len(one.classnames)} classes; {benchmark.name} needs at least "
                f"{benchmark.least_classes}."
            )
        for half in benchmark.test:
            if not one.items(split, half):
                raise UserError(f"{one.name} has no {split} pictures to evaluate; choose another --split.")
    for count in shots:
        dataset.require_shots(count, seeds)
