"""What an executor gets (`Job`), and the progress it reports (`Reporter`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from promptbench.clip.cache import FeatureCache
from promptbench.clip.precision import Precision
from promptbench.data.dataset import Dataset
from promptbench.errors import UserError
from promptbench.training.checkpoint import Progress
from promptbench.trials.record import Record
from promptbench.trials.trial import Trial

Identity = tuple[int, int]  # of a record file, see `claims.identity`
Results = dict[int, Record | UserError]  # by index of the trial


class Reporter(Protocol):
    """Receives the progress of the work. Several trials may run at once."""

    def start(self, trial: Trial, number: int, total: int) -> None: ...
    def wait(self, trial: Trial) -> None: ...
    def note(self, trial: Trial, text: str) -> None: ...
    def epoch(self, trial: Trial, progress: Progress, epochs: int) -> None: ...
    def finish(self, trial: Trial, record: Record, skipped: bool) -> None: ...
    def fail(self, trial: Trial, error: UserError) -> None: ...


@dataclass(frozen=True)
class Job:
    """What all trials of a command share. ``workers``: processes that decode images, per trial. ``replace``:
    identities (see `claims.identity`) of the records to replace, by hash of the trial. ``validate``: write
    the accuracy on the few-shot validation images into the metrics of every epoch. ``compiled``: towers
    through torch.compile. ``share``: number of trials that share the device's memory."""

    datasets: Mapping[str, Dataset]
    out: Path
    device: torch.device
    workers: int = 0
    cache: FeatureCache | None = None
    validate: bool = False
    compiled: bool = False
    replace: Mapping[str, Identity] = field(default_factory=dict)
    share: int = 1


class Executor(Protocol):
    """Where trials run: `in_turn.InTurn`, `local.Local` or `ray.cluster.RayCluster`."""

    device: torch.device

    def precision(self, asked: str) -> Precision:
        """What "auto" means there. Raises UserError for a precision that its device cannot train in."""

    def run(self, trials: Sequence[Trial], left: Sequence[int], job: Job, reporter: Reporter) -> Results:
        """Results of the trials ``left`` by index; one that another command has claimed is waited for in the
        end. ``job.workers`` is the executor's to set."""
