"""Several commands may work on one results folder: each trial is claimed by one of them."""

from contextlib import AbstractContextManager
from pathlib import Path

from promptbench.execution.job import Identity
from promptbench.storage import lock
from promptbench.training.files import RECORD
from promptbench.trials.trial import Trial

CLAIMS = ".claims"  # folder of locks: who is at which trial


def identity(folder: Path) -> Identity | None:
    """Which file the record of a trial's folder is, whatever the clock says; None if there is none."""
    try:
        seen = (folder / RECORD).stat()
    except OSError:
        return None
    return seen.st_ino, seen.st_mtime_ns


def claim(out: Path, trial: Trial, block: bool = False) -> AbstractContextManager[bool]:
    """The right to run a trial in ``out``: False if another process has it; ``block`` waits for it.

    A process that dies gives it back. Where a file system knows no locks it is granted to all, and two
    commands may do the same work twice; records stay whole.
    """
    return lock(out / CLAIMS / f"{trial.hash}.lock", block)
