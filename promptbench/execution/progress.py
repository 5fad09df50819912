"""Progress: bars with an estimate of the time left on a terminal, one plain line per epoch elsewhere.

All of it goes to standard error; standard output holds results only.
"""

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from promptbench.console import plain, say
from promptbench.errors import UserError
from promptbench.training.checkpoint import Progress
from promptbench.trials.record import Record
from promptbench.trials.trial import Trial


def _result(record: Record) -> str:
    several = len({counts.dataset for counts in record.evaluations}) > 1
    shown = [
        f"{counts.dataset if several else counts.classes} {counts.accuracy:.2f} %"
        for counts in record.evaluations
    ]
    return f"{', '.join(shown)} ({record.seconds.train + record.seconds.frozen:.1f} s training)"


class PlainReporter:
    """One line per event, for logs and pipes."""

    def __init__(self) -> None:
        self.running: set[str] = set()  # hashes of the trials that are at work
        self.noted: set[tuple[str, str]] = set()  # by hash of the trial: a worker finds what the command did

    def __enter__(self) -> "PlainReporter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        pass

    def _print(self, line: str) -> None:
        say(plain(line), err=True)

    def start(self, trial: Trial, number: int, total: int) -> None:
        self.running.add(trial.hash)
        self._print(f"[{number}/{total}] {trial.label}")

    def wait(self, trial: Trial) -> None:
        self._print(f"  another command runs {trial.label}; waiting for it")

    def note(self, trial: Trial, text: str) -> None:
        if (trial.hash, text) not in self.noted:
            self.noted.add((trial.hash, text))
            self._print(f"  {trial.label}: {text}")

    def epoch(self, trial: Trial, progress: Progress, epochs: int) -> None:
        last = progress.history[-1]
        which = f"{trial.label}: " if len(self.running) > 1 else ""
        self._print(
            f"  {which}epoch {progress.epoch}/{epochs}  loss {last['loss']:.4f}  lr {last['lr']:.2e}  "
            f"{progress.train_seconds + progress.frozen_seconds:.1f} s"
        )

    def finish(self, trial: Trial, record: Record, skipped: bool) -> None:
        self.running.discard(trial.hash)
        done = "already done" if skipped else "done"
        self._print(f"  {done}: {trial.label}: {_result(record)}{'' if skipped else _pace(record)}")

    def fail(self, trial: Trial, error: UserError) -> None:
        self.running.discard(trial.hash)
        self._print(f"  failed: {trial.label}: {error}")


class SilentReporter(PlainReporter):
    """Nothing is printed."""

    def _print(self, line: str) -> None:
        pass


class RichReporter(PlainReporter):
    """A bar for the epochs of all trials, with the time left, and one for each trial that is at work."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        from rich import progress
        from rich.console import Console

        super().__init__()
        self.bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("epochs"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True, markup=False, emoji=False, highlight=False),
            transient=True,
        )
        self.total = len(trials)
        self.over = 0  # trials that are over
        self.all = self.bars.add_task("all trials", total=sum(map(_epochs, trials)))
        self.tasks: dict[str, Any] = {}  # bar and epochs so far, by hash of the trial

    def __enter__(self) -> "RichReporter":
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self.bars.stop()

    def _print(self, line: str) -> None:
        self.bars.console.print(plain(line))

    def start(self, trial: Trial, number: int, total: int) -> None:
        self.running.add(trial.hash)
        if trial.hash not in self.tasks:  # it may start again where its worker died
            self.tasks[trial.hash] = self.bars.add_task(plain(trial.label), total=_epochs(trial)), 0

    def epoch(self, trial: Trial, progress: Progress, epochs: int) -> None:
        task, before = self.tasks[trial.hash]
        self.tasks[trial.hash] = task, progress.epoch
        self.bars.update(task, completed=progress.epoch)
        self.bars.advance(self.all, progress.epoch - before)

    def finish(self, trial: Trial, record: Record, skipped: bool) -> None:
        self._over(trial)
        super().finish(trial, record, skipped)

    def fail(self, trial: Trial, error: UserError) -> None:
        self._over(trial)
        super().fail(trial, error)

    def _over(self, trial: Trial) -> None:
        task, before = self.tasks.pop(trial.hash, (None, 0))
        if task is not None:
            self.bars.remove_task(task)
        self.over += 1
        self.bars.update(self.all, description=f"{self.over} of {self.total} trials")
        self.bars.advance(self.all, _epochs(trial) - before)


def _pace(record: Record) -> str:
    """Images per second in training and the share of its time spent waiting for them."""
    if not record.steps or not record.seconds.train:
        return ""
    share = record.seconds.wait / record.seconds.train
    return f"  ({record.pictures_per_second:,.0f} images/s, {share:.0%} of it waiting for data)"


def _epochs(trial: Trial) -> int:
    """Epochs of a trial as a measure of work, at least 1: what trains nothing is still evaluated."""
    return max(1, int(trial.settings["epochs"]))


def make_reporter(trials: Sequence[Trial]) -> PlainReporter:
    """Bars if standard error is a terminal, lines otherwise."""
    return RichReporter(trials) if sys.stderr.isatty() else PlainReporter()
