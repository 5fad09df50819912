"""Trials as tasks of a Ray cluster. Results come back as bytes: nodes need not share a file system."""

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from promptbench.clip.arithmetic import resolve_precision
from promptbench.clip.precision import Precision
from promptbench.errors import UserError
from promptbench.execution.job import Job, Reporter, Results
from promptbench.execution.local import jobs_asked
from promptbench.trials.trial import Trial

try:
    import ray
except ImportError:
    raise UserError(
        "Ray is not installed; run `pip install '.[ray]'` on every node, in a checkout of the same version."
    ) from None

from promptbench.execution.ray.connection import connect, nodes_alive
from promptbench.execution.ray.driver import Driver

JOBS = 200  # trials sent out at once: each is an open file, of which a process usually may have 1,024


class RayCluster:
    """Trials on a Ray cluster, at most ``jobs`` sent out at once, ``per_gpu`` on each GPU, the images of
    each decoded by ``workers`` processes. On GPUs if any node has one. A trial whose node or process dies
    goes to another node, ``driver.RETRIES`` times.

    Raises UserError if there is no cluster, or no GPU in it and PROMPTBENCH_DEVICE wants one.
    """

    def __init__(
        self,
        address: str | None = None,
        jobs: int | None = None,
        workers: int | None = None,
        per_gpu: int = 1,
    ) -> None:
        connect(address)
        self.address, self.per_gpu, self.jobs = address, per_gpu, jobs or jobs_asked() or JOBS
        asked = os.environ.get("PROMPTBENCH_DEVICE", "").partition(":")[0]
        nodes = [have for have in nodes_alive().values() if have.get("GPU")]
        usual = 0
        if asked == "cpu" or not nodes:
            if asked == "cuda":
                raise UserError("PROMPTBENCH_DEVICE asks for CUDA, and no node of the Ray cluster has a GPU.")
            self.device = torch.device("cpu")
        else:
            self.device = torch.device("cuda")
            cores = min(have.get("CPU", 0) / (have["GPU"] * per_gpu) for have in nodes)
            usual = max(0, min(8, int(cores) - 1))
        self.workers = usual if workers is None else workers

    def precision(self, asked: str) -> Precision:
        if asked == "auto" and self.device.type == "cuda":  # the machine of this command may have no GPU
            there = ray.remote(num_cpus=0, num_gpus=1 / self.per_gpu)(resolve_precision)
            asked = ray.get(there.remote(self.device, asked))
        return resolve_precision(self.device, asked)

    def run(self, trials: Sequence[Trial], left: Sequence[int], job: Job, reporter: Reporter) -> Results:
        """Raises UserError if no node can do the work, or naming the first one that has other code, data or
        weights than this command; what was finished by then is written."""
        connect(self.address)
        job = replace(job, workers=self.workers, share=self.per_gpu)
        return Driver(trials, left, job, reporter, self.per_gpu).run(self.jobs)
