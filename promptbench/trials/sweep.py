"""What to run, as one value: `promptbench run`, `sweep`, `ablate` and `regress` all go through it.

A sweep file is its YAML form. Every combination of the values in ``grid`` becomes trials through
`trials.plan`, as if each had been given to `promptbench run` with ``--set``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from promptbench.cli.options import RunOptions
from promptbench.clip.cache import FeatureCache
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.errors import UserError, brief, invalid, shown, unknown
from promptbench.execution.execute import Outcome, execute
from promptbench.execution.job import Executor, Reporter
from promptbench.execution.local import Local
from promptbench.methods._registry import get_recipe, recipes
from promptbench.storage import read_yaml
from promptbench.trials.benchmarks import BENCHMARKS, Benchmark, get_benchmark
from promptbench.trials.plan import plan, shard
from promptbench.trials.trial import PRESETS, Trial

MOST = 100_000  # trials of one command: planning them takes about ten seconds

T = TypeVar("T")
# One value or a list of them.
Several = Annotated[
    tuple[T, ...],
    BeforeValidator(lambda v: v if isinstance(v, list | tuple) else (v,)),
    Field(min_length=1),
]
#: setting -> its values; nothing for a method as it is
Values = Annotated[dict[str, Several[Any]], BeforeValidator(lambda v: {} if v is None else v)]


class Sweep(BaseModel):
    """Methods with values of their settings, and what they are run on. None: what the preset says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: Annotated[dict[str, Values], Field(min_length=1)]
    benchmark: Several[str] = ("base2novel",)
    preset: str = "pocket"
    suite: str | None = None
    datasets: Several[str] | None = None
    source: str | None = None
    seeds: Several[Annotated[int, Field(ge=0, lt=2**31)]] | None = None
    shots: Several[Annotated[int, Field(ge=1, lt=2**31)]] | None = None
    epochs: Annotated[int, Field(ge=0)] | None = None
    backbone: str | None = None
    pretrained: str | None = None
    out: Path | None = None


def read_sweep(path: Path) -> Sweep:
    """A sweep from YAML. Raises UserError naming the place in the file, such as ``grid.mmlop.rank``."""
    return parse_sweep(read_yaml(path, "sweep"), f"The sweep {path}")


def parse_sweep(values: Any, where: str) -> Sweep:
    """A sweep from plain values. Raises UserError beginning with ``where`` and naming the place in it."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must map keys to values, as in `grid: {{mmlop: {{rank: [1, 2]}}}}`.")
    _refuse_unknown(where, "", "key", values, Sweep.model_fields)
    try:
        found = Sweep.model_validate(values)
    except ValidationError as error:
        raise invalid(error, where) from None
    _refuse_unknown(where, "preset.", "preset", [found.preset], PRESETS)
    _refuse_unknown(where, "benchmark.", "benchmark", found.benchmark, BENCHMARKS)
    _refuse_unknown(where, "grid.", "method", found.grid, recipes())
    for name, settings in found.grid.items():
        kind = get_recipe(name).method
        known = kind.Settings.model_fields
        _refuse_unknown(where, f"grid.{name}.", f"setting of {kind.name}", settings, known)
        for key, several in settings.items():
            field: Any = Annotated[known[key].annotation, known[key]]
            try:
                TypeAdapter(tuple[field, ...]).validate_python(several)
            except ValidationError as error:
                raise invalid(error, f"{where}: grid.{name}.{key}") from None
    return found


def _refuse_unknown(where: str, path: str, kind: str, names: Any, known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{where}: {path}{brief(str(name))}: {unknown(kind, str(name), known)}")


def combinations(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value per setting, the last setting varying fastest; one empty choice for none."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


@dataclass
class Setup:
    """A sweep with its datasets loaded. ``parts``: per benchmark the dataset to train on, if it is another,
    and those to test on."""

    sweep: Sweep
    options: RunOptions
    executor: Executor
    parts: list[tuple[Benchmark, data.Dataset | None, list[data.Dataset]]]

    @property
    def datasets(self) -> dict[str, data.Dataset]:
        """All datasets by name."""
        loaded = [one for _, origin, targets in self.parts for one in (*targets, origin) if one]
        return {one.name: one for one in loaded}

    def trials(self, names: Sequence[str] | None = None) -> list[Trial]:
        """All trials of the sweep, or those of some names of its grid.

        Raises UserError as `trials.plan`, and for more than ``MOST`` trials before any is made.
        """
        sweep, options, usual = self.sweep, self.options, PRESETS[self.sweep.preset]
        backbone, pretrained = sweep.backbone or usual["backbone"], sweep.pretrained
        if backbone == usual["backbone"]:
            pretrained = pretrained or usual["pretrained"]
        chosen = list(sweep.grid) if names is None else names
        seeds = list(dict.fromkeys(sweep.seeds or map(int, usual["seeds"].split(","))))
        shots = list(dict.fromkeys(sweep.shots)) if sweep.shots else None
        grids = sum(math.prod(map(len, sweep.grid[name].values())) for name in chosen)
        cells = sum(
            (1 if benchmark.transfer else len(targets)) * len(shots or benchmark.shots)
            for benchmark, _, targets in self.parts
        )
        if grids * cells * len(seeds) > MOST:
            raise UserError(f"That makes more than {MOST:,} trials; give fewer values, seeds or datasets.")
        precision, found = self.executor.precision(options.precision), list[Trial]()
        for benchmark, origin, targets in self.parts:
            found += plan(
                benchmark,
                [get_recipe(name) for name in chosen],
                targets,
                seeds=seeds,
                shots=shots,
                overrides={name: combinations(sweep.grid[name]) for name in chosen},
                epochs=sweep.epochs,
                split=options.split,  # type: ignore[arg-type]  # checked in `prepare`
                limit=options.limit,
                backbone=backbone,
                pretrained=pretrained,
                precision=precision,
                source=origin,
            )
        return found

    def execute(self, trials: Sequence[Trial], out: Path, reporter: Reporter, cache: FeatureCache) -> Outcome:
        """`execute.execute` with the options of the sweep."""
        asked = self.options
        return execute(
            trials,
            self.datasets,
            out,
            reporter,
            asked.force,
            cache,
            asked.validate,
            asked.compiled,
            self.executor,
        )


def prepare(sweep: Sweep, options: RunOptions) -> Setup:
    """Load the datasets of a sweep. Of ``options`` those that a sweep file cannot say are used.

    Raises UserError for names that do not exist and for datasets that cannot be loaded.
    """
    for option, value, known in (
        ("--split", options.split, ("train", "val", "test")),
        ("--precision", options.precision, ("auto", "fp32", "bf16", "fp16")),
        ("--preset", sweep.preset, PRESETS),
        ("--executor", options.executor, ("local", "ray")),
    ):
        if value not in known:
            raise unknown(f"value of {option}", value, known)
    how = (options.data_root, options.allow_nonstandard_split, options.template)
    benchmarks = [get_benchmark(name) for name in dict.fromkeys(sweep.benchmark)]
    if sweep.source is not None and not any(benchmark.transfer for benchmark in benchmarks):
        name = benchmarks[0].name
        raise UserError(f"--source is for transfer benchmarks; {name} trains on every dataset.")
    parts = []
    for benchmark in benchmarks:
        suite = sweep.suite or PRESETS[sweep.preset]["suite"]
        origin, targets = _datasets(benchmark, suite, sweep.datasets, sweep.source, how)
        if options.draws is not None:
            targets = [data.with_draws(one, options.draws) for one in targets]
            origin = data.with_draws(origin, options.draws) if origin else None
        parts.append((benchmark, origin, targets))
    return Setup(sweep, options, _executor(options), parts)


def _executor(options: RunOptions) -> Executor:
    if options.executor == "local":
        if options.address is not None:
            raise UserError("--address is that of a Ray cluster: add --executor ray.")
        return Local(options.jobs, options.workers, options.per_gpu)
    from promptbench.execution.ray.cluster import RayCluster

    return RayCluster(options.address, options.jobs, options.workers, options.per_gpu)


def parse_shard(text: str) -> tuple[int, int]:
    """ "3/16" -> (3, 16). Raises UserError unless it is I/N with I from 1 to N."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and len(text) < 20 and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard takes I/N with I from 1 to N, such as 3/16, not {shown(text)}.")
    return int(number), int(count)


def part_of(trials: list[Trial], options: RunOptions) -> list[Trial]:
    """The trials of ``--shard``, all without it."""
    return trials if options.shard is None else shard(trials, *parse_shard(options.shard))


def _datasets(
    benchmark: Benchmark,
    suite: str,
    names: Sequence[str] | None,
    source: str | None,
    how: tuple[Path | None, bool, str | None],
) -> tuple[data.Dataset | None, list[data.Dataset]]:
    """The dataset to train on, in transfer benchmarks, and those to test on."""
    wanted = list(dict.fromkeys(names or ()))
    if not benchmark.transfer:
        source = None
    elif not (source and wanted):
        usual, others = benchmark.datasets(suite)
        source, wanted = source or usual, wanted or [name for name in others if name != source]
    found: dict[str, data.Dataset] = {}
    for one in (data.load(name, *how) for name in wanted or cards.suite(suite)):
        if one.name in found:
            raise UserError(f"Two datasets are called {one.name!r}; give one of the cards another name.")
        found[one.name] = one
    return data.load(source, *how) if source else None, list(found.values())
