"""From a sweep to results: load its datasets, make its trials and run them.

`promptbench run`, `sweep`, `ablate` and `regress` and `promptbench.run` all go through `prepare` and `Setup`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from promptbench.clip.cache import FeatureCache
from promptbench.clip.precision import Precision
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.errors import UserError, unknown
from promptbench.execution.execute import Outcome, execute
from promptbench.execution.job import Executor, Reporter
from promptbench.execution.local import Local
from promptbench.execution.options import RunOptions
from promptbench.execution.progress import PlainReporter, make_reporter
from promptbench.methods._registry import get_recipe
from promptbench.storage import default_folder
from promptbench.training.files import RECORD
from promptbench.trials.benchmarks import Benchmark, get_benchmark
from promptbench.trials.plan import plan, shard
from promptbench.trials.sweep import MOST, Sweep, combinations, parse_shard
from promptbench.trials.trial import PRESETS, Trial

EXECUTORS = ("local", "ray")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the text says how many trials are finished."""


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

    @property
    def out(self) -> Path:
        """The results folder."""
        return self.sweep.out or Path("results")

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

    def selected(self) -> list[Trial]:
        """The trials to run: those of ``options.shard``, or all."""
        trials, part = self.trials(), self.options.shard
        return trials if part is None else shard(trials, *parse_shard(part))

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

    def run(self, trials: Sequence[Trial], reporter: PlainReporter | None = None) -> Outcome:
        """Run ``trials``, writing records under `out`; frozen features come from the user's cache.

        Progress goes to standard error, or to ``reporter``. Raises UserError as `execute.execute`, and
        `Interrupted` on Ctrl-C.
        """
        cache = FeatureCache(default_folder())
        with reporter or make_reporter(trials) as told, _interruptible(trials, self.out):
            return self.execute(trials, self.out, told, cache)


def prepare(sweep: Sweep, options: RunOptions) -> Setup:
    """Load the datasets of a sweep.

    Raises UserError for names that do not exist and for datasets that cannot be loaded.
    """
    for option, value, known in (
        ("--split", options.split, get_args(cards.Split)),
        ("--precision", options.precision, ("auto", *get_args(Precision))),
        ("--preset", sweep.preset, PRESETS),
        ("--executor", options.executor, EXECUTORS),
    ):
        if value not in known:
            raise unknown(f"value of {option}", value, known)
    least = {"limit": (options.limit, 1), "jobs": (options.jobs, 1), "per-gpu": (options.per_gpu, 1)}
    for name, (number, smallest) in {**least, "workers": (options.workers, 0)}.items():
        if number is not None and number < smallest:
            raise UserError(f"--{name} must be at least {smallest}, not {number}.")
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


def require_success(outcome: Outcome) -> None:
    """Raise UserError with the first failure and the number of failures, if a trial failed."""
    if outcome.failures:
        trial, error = outcome.failures[0]
        more = f" ({len(outcome.failures)} trials failed)" if len(outcome.failures) > 1 else ""
        raise UserError(f"{trial.label}: {error}{more}")


@contextmanager
def _interruptible(trials: Sequence[Trial], out: Path) -> Iterator[None]:
    """Turn Ctrl-C into one sentence: finished trials stay finished, the same command resumes."""
    try:
        yield
    except KeyboardInterrupt:
        done = sum((trial.folder(out) / RECORD).exists() for trial in trials)
        raise Interrupted(
            f"Interrupted: {done} of {len(trials)} trials are done; the same command resumes."
        ) from None


def _executor(options: RunOptions) -> Executor:
    if options.executor == "local":
        if options.address is not None:
            raise UserError("--address is the address of a Ray cluster; add --executor ray.")
        return Local(options.jobs, options.workers, options.per_gpu)
    from promptbench.execution.ray.cluster import RayCluster

    return RayCluster(options.address, options.jobs, options.workers, options.per_gpu)


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
