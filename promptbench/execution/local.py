"""Several trials at once on one machine, each in a worker process of its own.

On CUDA the workers take the GPUs in turn; on the CPU they share the cores. A worker that dies (out of
memory, killed) takes the pool with it: a new one goes on, its trials from their checkpoints.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from promptbench.clip.arithmetic import one_thread
from promptbench.clip.backbones import Shape, backbone_shape
from promptbench.clip.memory import free_memory
from promptbench.errors import UserError
from promptbench.execution.in_turn import InTurn
from promptbench.execution.job import Job, Reporter, Results
from promptbench.execution.worker import Worker
from promptbench.training.checkpoint import Progress
from promptbench.training.device import cpu_count
from promptbench.trials.record import Record
from promptbench.trials.trial import Trial

ATTEMPTS = 3  # so often may the pool die while a trial is running
_WORKER_BYTES = 2 << 30  # a worker with a small backbone: libraries, and the activations of a step

_worker: Worker  # of this process, if it is a worker


def jobs_asked() -> int | None:
    """``PROMPTBENCH_JOBS``. Raises UserError if it is no number of trials."""
    given = os.environ.get("PROMPTBENCH_JOBS")
    if given and not (given.isdecimal() and len(given) < 10 and int(given)):
        raise UserError(f"PROMPTBENCH_JOBS={given} is no number of trials; use one such as 2.")
    return int(given) if given else None


def default_jobs(device: torch.device, shape: Shape, per_gpu: int = 1) -> int:
    """Trials to run at once: ``PROMPTBENCH_JOBS``, else ``per_gpu`` for each GPU; on the CPU as many as there
    are cores (and memory) for a very small backbone, which uses one core, and one for others.

    Raises UserError if ``PROMPTBENCH_JOBS`` is no such number.
    """
    if given := jobs_asked():
        return given
    if device.type == "cuda":
        return per_gpu * len(_devices(device))
    if not one_thread(device, shape):
        return 1
    return max(1, min(cpu_count(), free_memory(device) // _WORKER_BYTES))


def _devices(device: torch.device) -> list[torch.device]:
    """All GPUs, or the one that was asked for."""
    if device.type != "cuda" or os.environ.get("PROMPTBENCH_DEVICE"):
        return [device]
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def _context() -> Any:
    """How workers are made. A fork of this process could not use CUDA; a fork of a server process that has
    the libraries loaded, and nothing else, starts at once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Local(InTurn):
    """Trials on this machine, ``jobs`` at once (None: see `default_jobs`); more than one at once in worker
    processes. A trial that is running when workers die for the third time fails."""

    def __init__(self, jobs: int | None = None, workers: int | None = None, per_gpu: int = 1) -> None:
        super().__init__(workers)
        self.jobs, self.per_gpu = jobs, per_gpu

    def run(self, trials: Sequence[Trial], left: Sequence[int], job: Job, reporter: Reporter) -> Results:
        shapes = [backbone_shape(name) for name in {trials[i].backbone for i in left}]
        jobs = self.jobs or min(default_jobs(self.device, shape, self.per_gpu) for shape in shapes)
        if min(jobs, len(left)) == 1:
            return super().run(trials, left, job, reporter)
        return _run_pools(trials, left, replace(job, workers=self.decoders(jobs)), reporter, jobs)


def _run_pools(
    trials: Sequence[Trial], left: Sequence[int], job: Job, reporter: Reporter, jobs: int
) -> Results:
    """One pool after the other, until all is done. Raises UserError if pools die before a trial has begun."""
    results = Results()
    deaths = [0] * len(trials)
    idle = 0  # pools in turn that died without having done anything
    while remaining := [i for i in left if i not in results]:
        running: set[int] = set()
        try:
            for i, result in _run_pool(trials, remaining, job, reporter, jobs, running):
                results[i] = result
        except BrokenProcessPool:
            idle = 0 if running or results.keys() & set(remaining) else idle + 1
            if idle == ATTEMPTS:
                raise UserError(
                    f"The worker processes died {ATTEMPTS} times before one could begin a trial, possibly "
                    "out of memory; run one at a time (--jobs 1)."
                ) from None
            for i in running - set(results):
                deaths[i] += 1
                if deaths[i] == ATTEMPTS:
                    results[i] = error = UserError(
                        f"the worker process died {ATTEMPTS} times, possibly out of memory; run fewer at "
                        "once (--jobs 1)."
                    )
                    reporter.fail(trials[i], error)
    return results


def _run_pool(
    trials: Sequence[Trial],
    left: Sequence[int],
    job: Job,
    reporter: Reporter,
    jobs: int,
    running: set[int],
) -> Iterator[tuple[int, Record | UserError]]:
    """Results as they come; ``running`` holds the trials that are in some worker's hands."""
    others = set(multiprocessing.active_children())
    context = _context()
    jobs, found = min(jobs, len(left)), _devices(job.device)
    with _startable():
        events, devices = context.Queue(), context.Queue()
    for i in range(jobs):
        devices.put(str(found[i % len(found)]))
    job = replace(job, share=-(-jobs // len(found)))

    def tell() -> None:
        """Pass on what the workers said."""
        while True:
            try:
                name, i, rest = events.get(timeout=0.01)
            except queue.Empty:
                return
            if name == "start":
                running.add(i)
            getattr(reporter, name)(trials[i], *rest)

    threads = max(1, cpu_count() // jobs)
    pool = ProcessPoolExecutor(jobs, context, _start, (job, events, devices, threads))
    try:
        with _startable():
            at: dict[Future[Record | UserError | None], int] = {
                pool.submit(_attempt, trials[i], i, len(trials), False): i for i in left
            }
        while at:
            finished, _ = wait(at, timeout=0.1, return_when=FIRST_COMPLETED)
            tell()
            for future in finished:
                i = at.pop(future)
                result = future.result()
                if result is None:  # another command is at it: once more when all else is done
                    at[pool.submit(_attempt, trials[i], i, len(trials), True)] = i
                    continue
                running.discard(i)
                yield i, result
        pool.shutdown()
        tell()
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # after Ctrl-C: no worker outlives the command


@contextmanager
def _startable() -> Iterator[None]:
    """Raises UserError if the machine has no more processes, files or memory to give to workers."""
    try:
        yield
    except (OSError, EOFError) as error:
        cause = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(
            f"Worker processes cannot be started ({cause}); run one at a time (--jobs 1)."
        ) from None


class Messenger:
    """The reporter of a worker: everything goes to the parent's through ``events``, anything with `put`."""

    def __init__(self, events: Any) -> None:
        self.events, self.index = events, 0

    def start(self, trial: Trial, number: int, total: int) -> None:
        self.events.put(("start", self.index, (number, total)))

    def wait(self, trial: Trial) -> None:
        self.events.put(("wait", self.index, ()))

    def note(self, trial: Trial, text: str) -> None:
        self.events.put(("note", self.index, (text,)))

    def epoch(self, trial: Trial, progress: Progress, epochs: int) -> None:
        self.events.put(("epoch", self.index, (replace(progress, aggregate=[]), epochs)))

    def finish(self, trial: Trial, record: Record, skipped: bool) -> None:
        self.events.put(("finish", self.index, (record, skipped)))

    def fail(self, trial: Trial, error: UserError) -> None:
        self.events.put(("fail", self.index, (error,)))


def _start(job: Job, events: Any, devices: Any, threads: int) -> None:
    """In a new worker process."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker = Worker(replace(job, device=torch.device(devices.get())), Messenger(events))


def _end_with_parent() -> None:
    """A worker whose command was killed would wait for its next trial for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(trial: Trial, index: int, total: int, block: bool) -> Record | UserError | None:
    """In a worker process."""
    messenger = _worker.reporter
    assert isinstance(messenger, Messenger)
    messenger.index = index
    return _worker.attempt(trial, index + 1, total, block)
