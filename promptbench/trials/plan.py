"""From methods, datasets, seeds and shots to a list of trials: a benchmark is a pure function.

Nothing is trained here. Whatever would fail later is refused here.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from promptbench.clip import backbones, weights
from promptbench.clip.precision import Precision
from promptbench.data.cards import POCKET, Split
from promptbench.data.dataset import Dataset
from promptbench.data.splits import overlap
from promptbench.errors import UserError
from promptbench.methods._base import Method
from promptbench.methods._registry import Recipe, resolve_settings
from promptbench.methods._settings import Settings
from promptbench.storage import hash_value, read_yaml
from promptbench.training.counts import Evaluation
from promptbench.trials.benchmarks import Benchmark
from promptbench.trials.trial import Trial

Overrides = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@cache
def _chosen() -> dict[str, Any]:
    """The settings that tools/pocket/tune.py wrote."""
    return dict(read_yaml(backbones.pocket_folder() / "settings.yaml", "settings"))


def tuned_settings(backbone: str, recipe: Recipe) -> dict[str, Any]:
    """Settings tuned for the embedded backbone, whose scale differs from the papers'; none for others.

    The common ones, then those of the variant or, if it was not tuned, of its method.
    """
    if backbone != POCKET:
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
    backbone: str = POCKET,
    pretrained: str | None = None,
    precision: Precision = "fp32",
    source: Dataset | None = None,
) -> list[Trial]:
    """All trials, without duplicates, in the order methods x overrides x datasets x shots x seeds.

    In a transfer benchmark one training on ``source`` serves all of ``datasets``; in others ``source`` is
    not used. ``overrides``: settings by name of method or recipe, or a list of them for a trial with each.
    ``epochs`` applies only to methods trained by gradient.
    Raises UserError for anything that would fail later: settings, classes, shots, weights.
    """
    fingerprint = weights.weights_identity(backbone, pretrained)
    shape = backbones.backbone_shape(backbone)
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

    @cache
    def files(at: int, count: int, seed: int) -> str:
        """`Dataset.files` of what a trial of the unit ``at`` reads, empty if ``data`` covers it."""
        dataset, tested = units[at]
        read = {
            one.name: [item for half in benchmark.test for item in one.items(split, half, limit)]
            for one in tested
        }
        if count:
            train, val = dataset.draw(count, seed, benchmark.train)
            read[dataset.name] += [*train, *val]
        found = [one.files(read[one.name]) for one in tested]
        return hash_value(found) if any(found) else ""

    for recipe, given in _variants(wanted, overrides or {}):
        method, mine = recipe.method, dict(given)
        gradient = method.Settings.model_fields["epochs"].default > 0
        if not gradient:  # settings of the optimiser do not make it another trial
            mine = {key: value for key, value in mine.items() if key not in Settings.model_fields}
        if epochs is not None and gradient:
            mine.setdefault("epochs", epochs)
        tuned = tuned_settings(backbone, recipe)
        for at, (dataset, tested) in enumerate(units):
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
                        files=files(at, count, seed),
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
    """Every ``count``-th of ``trials``, starting with the ``number``-th (from 1).

    It depends only on the list, so the shards of one command are disjoint and complete, and their sizes
    differ by at most one. Neighbours in the list take about the same time and are in different shards.
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
    """Refuse before any work whatever would fail during it. Raises UserError."""
    for one in tested:
        if len(one.classnames) < benchmark.least_classes:
            raise UserError(
                f"{one.name} has {len(one.classnames)} classes; {benchmark.name} needs at least "
                f"{benchmark.least_classes}."
            )
        for half in benchmark.test:
            if not one.items(split, half):
                raise UserError(f"{one.name} has no {split} images to evaluate; choose another --split.")
        for (first, second), paths in overlap(one.splits).items():
            if second == split or "train" not in (first, second):
                raise UserError(
                    f"{one.name}: {len(paths):,} {second} images are {first} images too, such as "
                    f"{paths[0]!r}, so results would be invalid; remove them from one of the splits."
                )
    for count in shots:
        dataset.require_shots(count, seeds)
