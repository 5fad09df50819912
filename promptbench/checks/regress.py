"""The nightly check: run a recipe again and compare it with a baseline file. See docs/regress.md."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from promptbench.analysis.statistics import jackknife
from promptbench.checks.baseline import Baseline, Limits, Result, read_baseline, require_same
from promptbench.checks.steptime import ATTEMPTS, Pace, against, make_timer
from promptbench.clip.cache import FeatureCache
from promptbench.console import plain
from promptbench.errors import UserError
from promptbench.execution.options import RunOptions
from promptbench.execution.progress import make_reporter
from promptbench.execution.setup import Setup, prepare
from promptbench.reporting.tables import markdown
from promptbench.training.provenance import describe
from promptbench.trials.record import Record
from promptbench.trials.sweep import Sweep, parse_sweep, read_sweep
from promptbench.trials.trial import Trial


@dataclass
class Fresh:
    """A new run: fingerprints of its trials, results, and one sentence per failure."""

    weights: str
    data: dict[str, str]
    results: list[Result]
    failures: list[str]


@dataclass
class Row:
    """One comparison of accuracies in percent: ``change`` with its interval (NaN if there is none)."""

    method: str
    data: str
    before: float
    now: float
    change: float
    low: float
    high: float
    verdict: Literal["ok", "fell", "rose"]


@dataclass
class Report:
    """All comparisons, and one sentence per problem."""

    accuracy: list[Row]
    steps: list[Pace]
    problems: list[str]
    notes: list[str]


# ---------------------------------------------------------------------- the fresh run


def load(recipe: Sweep, data_root: Path | None = None) -> Setup:
    """The recipe with its datasets; runs are always in fp32, so that devices can be compared."""
    return prepare(recipe, RunOptions(data_root=data_root, precision="fp32", force=True))


def run(setup: Setup, out: Path | None = None) -> Fresh:
    """Run the recipe in ``out`` (None: a temporary folder). Records there and cached features are not used: a
    cache filled by an older version would hide the faults of a newer one."""
    trials = setup.trials()
    names = {trial.hash: _label(setup.sweep, name, trial) for name, trial in _by_name(setup)}
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reporter = stack.enter_context(make_reporter(trials))
        outcome = setup.execute(trials, out or temporary, reporter, FeatureCache(temporary / "cache"))
    return Fresh(
        trials[0].weights,
        {trial.dataset: trial.data for trial in trials},
        [one for record in outcome.records for one in _results(record, names[record.hash])],
        [f"{trial.label}: {error}" for trial, error in outcome.failures],
    )


def _by_name(setup: Setup) -> list[tuple[str, Trial]]:
    return [(name, trial) for name in setup.sweep.grid for trial in setup.trials([name])]


def _label(sweep: Sweep, name: str, trial: Trial) -> str:
    """The name in the grid, with those settings that have several values there."""
    varied = [key for key, values in sweep.grid[name].items() if len(values) > 1]
    return " ".join([name, *(f"{key}={trial.settings[key]}" for key in varied)])


def _results(record: Record, method: str) -> list[Result]:
    trial = record.trial
    return [
        Result(
            benchmark=trial.benchmark,
            method=method,
            dataset=counts.dataset,
            classes=counts.classes,
            shots=trial.shots,
            seed=trial.seed,
            parameters=record.trainable_parameters,
            per_class=counts.per_class,
        )
        for counts in record.evaluations
    ]


# ---------------------------------------------------------------------- comparison


def compare(baseline: Baseline, fresh: Fresh, steps: list[Pace]) -> Report:
    """Compare a new run with the baseline, by pairs of results with the same key."""
    before = {one.key: one for one in baseline.results}
    now = {one.key: one for one in fresh.results}
    problems = [f"failed: {failure}" for failure in fresh.failures]
    for key in [key for key in before if key not in now]:
        problems.append(f"missing: {_words(key)} is in the baseline and was not measured")
    pairs = [(before[key], now[key]) for key in before if key in now]
    for old, new in pairs:
        if old.parameters != new.parameters:
            change = f"{old.parameters:,} -> {new.parameters:,}"
            problems.append(f"parameters: {_words(old.key)}: {change}")
    limits, rows = baseline.limits, []
    for method in dict.fromkeys(old.method for old, _ in pairs):
        mine = [(old, new) for old, new in pairs if old.method == method]
        cells = np.array([[old.accuracy, new.accuracy] for old, new in mine])
        rows.append(_row(method, "average", cells, _mean_change, limits.average))
        for dataset in dict.fromkeys(old.dataset for old, _ in mine):
            table = _class_table([(old, new) for old, new in mine if old.dataset == dataset])
            rows.append(_row(method, dataset, table, _class_change, limits.dataset))
    for row in rows:
        if row.verdict == "fell":
            problems.append(f"accuracy: {row.method} on {row.data} fell by {-row.change:.2f} points")
    for step in steps:
        if step.verdict != "ok":
            how = f"takes {step.change:+.0%}" if step.verdict == "slower" else "was not timed"
            problems.append(f"speed: a training step of {step.method} {how}")
    notes = []
    if new_keys := [key for key in now if key not in before]:
        notes.append(f"{len(new_keys)} results are not in the baseline, such as {_words(new_keys[0])}.")
    if risen := [f"{row.method} on {row.data}" for row in rows if row.verdict == "rose"]:
        notes.append(f"Better than the baseline: {', '.join(risen)}; --update-baseline stores it.")
    return Report(rows, steps, problems, notes)


def _words(key: tuple[str, str, str, str, int, int]) -> str:
    benchmark, method, dataset, classes, shots, seed = key
    return f"{method} on {dataset}, {classes} classes ({benchmark}, {shots} shots, seed {seed})"


def _row(
    method: str,
    data: str,
    pairs: np.ndarray,
    change: Callable[[np.ndarray], tuple[float, float]],
    limit: float,
) -> Row:
    """A comparison from pairs [n, ...]; without an interval (one pair) the change alone decides."""
    before, now = change(pairs)
    estimate, low, high = jackknife(pairs, lambda rows: change(rows)[1] - change(rows)[0])
    verdict: Literal["ok", "fell", "rose"] = "ok"
    if estimate < -limit and not high >= 0:
        verdict = "fell"
    elif estimate > limit and not low <= 0:
        verdict = "rose"
    return Row(method, data, before, now, estimate, low, high, verdict)


def _mean_change(cells: np.ndarray) -> tuple[float, float]:
    """Mean accuracy before and now of cells [n, 2]."""
    return float(cells[:, 0].mean()), float(cells[:, 1].mean())


def _class_table(pairs: Sequence[tuple[Result, Result]]) -> np.ndarray:
    """Per class and label space, over seeds: [n, (label space, correct before, correct now, in all)]."""
    found: dict[tuple[str, str], np.ndarray] = {}
    spaces = list(dict.fromkeys(old.classes for old, _ in pairs))
    for old, new in pairs:
        for name, (right, total) in old.per_class.items():
            row = found.setdefault((old.classes, name), np.array([spaces.index(old.classes), 0, 0, 0]))
            row[1:] += (right, new.per_class[name][0], total)
    return np.stack(list(found.values()))


def _class_change(table: np.ndarray) -> tuple[float, float]:
    """Mean over label spaces of the accuracies before and now, of rows of `_class_table`."""
    spaces = [table[table[:, 0] == space] for space in np.unique(table[:, 0])]
    before, now = (
        float(np.mean([100 * rows[:, column].sum() / rows[:, 3].sum() for rows in spaces]))
        for column in (1, 2)
    )
    return before, now


# ---------------------------------------------------------------------- summary


def summary(report: Report, baseline: Baseline) -> str:
    """The report in Markdown."""
    limits, n = baseline.limits, len(report.problems)
    head = "no regression" if not n else f"{n} regression{'s' if n > 1 else ''}"
    lines = [f"## promptbench regress: {head}", ""]
    lines += [
        f"- **{markdown(kind)}**:{markdown(text)}"
        for kind, _, text in (one.partition(":") for one in report.problems)
    ]
    lines += [*([""] if n else []), "| method | data | baseline | now | change [95 %] | verdict |"]
    lines.append("|:--|:--|--:|--:|--:|:--|")
    for row in report.accuracy:
        interval = "" if math.isnan(row.low) else f" [{row.low:+.2f}, {row.high:+.2f}]"
        numbers = f"{row.before:.2f} | {row.now:.2f} | {row.change:+.2f}{interval}"
        lines.append(f"| {markdown(row.method)} | {markdown(row.data)} | {numbers} | {row.verdict} |")
    lines += ["", "| training step | baseline | now | change | verdict |", "|:--|--:|--:|--:|:--|"]
    for pace in report.steps:
        numbers = f"{pace.before:.3f} | {pace.now:.3f} | {pace.change:+.0%}"
        lines.append(f"| {markdown(pace.method)} | {numbers} | {pace.verdict} |")
    made = baseline.environment
    where = (
        f"{made.get('platform')}, {made.get('device_name')}, torch {made.get('packages', {}).get('torch')}"
    )
    lines += [
        "",
        "Accuracy in percent, mean of base and novel half; a fall counts if its 95 % interval excludes zero "
        f"and it is more than {limits.average:g} points on average or {limits.dataset:g} on a dataset. Steps "
        f"in units of a reference workload timed in turn with them; more than {limits.slower:+.0%} counts.",
        markdown(f"Baseline: commit {str(made.get('commit'))[:12]}, {where}."),
        *map(markdown, report.notes),
    ]
    return "\n".join(lines) + "\n"


def publish(text: str) -> str:
    """Append ``text`` to the summary of a GitHub Actions step, if this is one; a sentence if that fails."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        try:
            with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(plain(text, keep="\n"))
        except (OSError, ValueError) as error:
            return f"GITHUB_STEP_SUMMARY={path} was not written ({error})."
    return ""


# ---------------------------------------------------------------------- the two commands


def check(path: Path, data_root: Path | None = None, out: Path | None = None) -> tuple[Report, Baseline]:
    """Run the baseline's recipe and compare. Raises UserError if there is no baseline to compare with."""
    baseline = read_baseline(path)
    setup = load(parse_sweep(baseline.recipe, f"The recipe in {path}"), data_root)
    require_same(baseline, setup)
    fresh = run(setup, out)
    steps = against(make_timer(setup), baseline.steps, baseline.limits.slower)
    return compare(baseline, fresh, steps), baseline


def update(
    path: Path, recipe: Path | None, data_root: Path | None = None, out: Path | None = None
) -> Baseline:
    """Write a baseline of ``recipe``, or of the recipe in the old baseline, whose limits are kept.

    Raises UserError if there is neither or a run fails; the old file then stays.
    """
    old = read_baseline(path) if recipe is None or path.exists() else None
    if recipe is not None:
        sweep = read_sweep(recipe)
    else:
        assert old is not None
        sweep = parse_sweep(old.recipe, f"The recipe in {path}")
    setup = load(sweep, data_root)
    fresh = run(setup, out)
    if fresh.failures:
        raise UserError(f"No baseline was written because a run failed: {fresh.failures[0]}")
    measure = make_timer(setup)
    several = [measure() for _ in range(ATTEMPTS)]
    made = Baseline(
        recipe=sweep.model_dump(mode="json", exclude_none=True, exclude={"out"}),
        limits=old.limits if old else Limits(),
        weights=fresh.weights,
        data=fresh.data,
        steps={name: round(min(one[name] for one in several), 4) for name in several[0]},
        environment=describe(setup.executor.device),
        results=fresh.results,
    )
    made.write(path)
    return made
