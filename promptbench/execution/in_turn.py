"""One trial after the other, in this process."""

from collections.abc import Sequence
from dataclasses import replace

from promptbench.clip.arithmetic import resolve_precision
from promptbench.clip.precision import Precision
from promptbench.execution.job import Job, Reporter, Results
from promptbench.execution.worker import Worker
from promptbench.training.device import cpu_count, default_device
from promptbench.trials.trial import Trial


class InTurn:
    """One trial after the other in this process, its images decoded by ``workers`` others."""

    def __init__(self, workers: int | None = None) -> None:
        self.device, self.workers = default_device(), workers

    def precision(self, asked: str) -> Precision:
        return resolve_precision(self.device, asked)

    def decoders(self, jobs: int) -> int:
        """Processes that decode images, for each of ``jobs`` trials at once, if the user does not say."""
        if self.workers is not None:
            return self.workers
        return min(8, (cpu_count() - 1) // jobs) if self.device.type == "cuda" else 0

    def run(self, trials: Sequence[Trial], left: Sequence[int], job: Job, reporter: Reporter) -> Results:
        worker, results = Worker(replace(job, workers=self.decoders(1)), reporter), Results()
        for block in (False, True):
            for i in left:
                if i not in results and (result := worker.attempt(trials[i], i + 1, len(trials), block)):
                    results[i] = result
        return results
