"""Run trials: finished ones are skipped, interrupted ones resume, each is run by one process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from promptbench.clip.cache import FeatureCache
from promptbench.data.dataset import Dataset
from promptbench.errors import UserError
from promptbench.execution.claims import identity
from promptbench.execution.in_turn import InTurn
from promptbench.execution.job import Executor, Job, Reporter, Results
from promptbench.execution.worker import Worker
from promptbench.storage import require_writable
from promptbench.trials.record import Record
from promptbench.trials.trial import Trial


@dataclass
class Outcome:
    """Records in the order of the trials, and the trials that failed with their one sentence."""

    records: list[Record] = field(default_factory=list)
    failures: list[tuple[Trial, UserError]] = field(default_factory=list)


def execute(
    trials: Sequence[Trial],
    datasets: Mapping[str, Dataset],
    out: Path,
    reporter: Reporter,
    force: bool = False,
    cache: FeatureCache | None = None,
    validate: bool = False,
    compiled: bool = False,
    executor: Executor | None = None,
) -> Outcome:
    """Run ``trials`` by the ``executor`` (None: in turn, in this process), writing records under ``out``. A
    trial that fails by the user's mistake is reported and the others go on: finished work is never lost.
    Other commands may work on the same folder: a trial that one of them is at is left to it, and waited for
    in the end.

    ``force``: also trials that have a record; ``validate``, ``compiled``: see `Job`. Raises UserError if
    ``out`` cannot be written, or a cluster is not fit.
    """
    require_writable(out)
    executor = executor or InTurn()
    old = {trial.hash: identity(trial.folder(out)) for trial in trials} if force else {}
    anew = {hash_: one for hash_, one in old.items() if one is not None}
    job = Job(datasets, out, executor.device, 0, cache, validate, compiled, anew)
    worker, results = Worker(job, reporter), Results()
    for i, trial in enumerate(trials):
        if (done := worker.done(trial)) is not None:
            results[i] = done
    left = [i for i in range(len(trials)) if i not in results]
    if left:
        results |= executor.run(trials, left, job, reporter)
    outcome = Outcome()
    for i, trial in enumerate(trials):
        result = results[i]
        if isinstance(result, UserError):
            outcome.failures.append((trial, result))
        else:
            outcome.records.append(result)
    return outcome
