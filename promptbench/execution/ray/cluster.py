"""Trials as tasks of a Ray cluster. Results come back as bytes: nodes need not share a file system.

This command holds the claim of a trial from the moment it is sent out until its record is written.
"""

import logging
import os
import pickle
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from promptbench.clip.memory import estimate
from promptbench.clip.weights import backbone_shape
from promptbench.errors import UserError
from promptbench.execution.execute import Job, Reporter, Results, Worker, claim
from promptbench.execution.local import jobs_asked
from promptbench.methods._registry import get_method
from promptbench.storage import sweep, write_atomic
from promptbench.training import environment
from promptbench.training.loop import CHECKPOINT, resolve_precision
from promptbench.trials.record import FILES, RECORD, Record, parse
from promptbench.trials.trial import Precision, Trial

try:
    import ray
    from ray import _raylet
    from ray._private import ray_constants, services
    from ray.exceptions import RayError, RayTaskError
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise UserError("Ray is not installed; run `pip install 'promptbench[ray]'` on every node.") from None

from promptbench.execution.ray.task import Events, NodeError, Setup, portable, run_trial_here

RETRIES = 5  # so often may the node or the process of a trial die
JOBS = 200  # trials sent out at once: each is an open file, of which a process usually may have 1,024

Resources = Mapping[str, float]  # by Ray's names: CPU, GPU, memory (bytes)


def connect(address: str | None = None) -> None:
    """Use the cluster at ``address`` ("auto": the one this machine belongs to), or Ray's own choice: that of
    ``RAY_ADDRESS``, one that runs here, or a new one of this machine alone that ends with the process; that
    one listens on loopback only, and to this process's token where Ray knows tokens (2.52).

    Raises UserError if there is none at ``address``.
    """
    if ray.is_initialized():
        return
    where = address or os.environ.get("RAY_ADDRESS") or "here"
    host, _, port = where.rpartition(":")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # for a cluster that starts here: tells nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default: no warning
    try:
        if port.isdigit() and "/" not in host:  # Ray itself would take minutes to see that nobody is there
            socket.create_connection((host, int(port)), timeout=10).close()
        found = services.get_ray_address_from_environment(address, None)  # type: ignore[arg-type]  # as documented
        own = found in (None, "local")
        with _private() if own else nullcontext():
            ray.init(
                "local" if own else address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (OSError, ValueError, RuntimeError) as error:
        cause = str(error).split("\n")[0].rstrip(".")
        raise UserError(
            f"No Ray cluster at {where} ({cause}); start one with `ray start --head`, or leave --address out."
        ) from None


@contextmanager
def _private() -> Iterator[None]:
    """A cluster that is started inside is for this process alone. Ray replaces 127.0.0.1 given as a node's
    address by one that others reach, except where it takes the machine for one that can have no cluster."""
    if "RAY_AUTH_MODE" not in os.environ and hasattr(_raylet, "AuthenticationTokenLoader"):
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        _raylet.Config.initialize("")  # type: ignore[attr-defined]  # Ray has read its environment when it was imported
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


class RayCluster:
    """Trials on a Ray cluster, at most ``jobs`` sent out at once, ``per_gpu`` on each GPU, the pictures of
    each decoded by ``workers`` processes. On GPUs if any node has one. A trial whose node or process dies
    goes to another node, ``RETRIES`` times.

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
        return _Driver(trials, left, job, reporter, self.per_gpu).run(self.jobs)


def nodes_alive() -> dict[str, Resources]:
    """What the nodes have, by their ids."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def request(trial: Trial, job: Job, nodes: Sequence[Resources], per_gpu: int) -> dict[str, float]:
    """What a trial asks Ray for. On CUDA a part of a GPU, and a core for itself and each decoder; on the CPU
    one core for a very small backbone, all of a node for others. Memory as estimated; never more than the
    smallest node that could do the work has (class sets that do not fit are recomputed).

    Raises UserError if no node could do it.
    """
    kind = "GPU" if job.device.type == "cuda" else "CPU"
    least = 1 / per_gpu if kind == "GPU" else 1
    fit = [have for have in nodes if have.get(kind, 0) >= least]
    if not fit:
        raise UserError(f"No node of the Ray cluster has a {kind}; start one that has (`ray start`).")
    cores, memory = (min(have.get(what, 0) for have in fit) for what in ("CPU", "memory"))
    shape = backbone_shape(trial.backbone)
    names = job.datasets[trial.dataset].classes(trial.train_classes).names
    need = estimate(trial.settings, get_method(trial.method).trains, shape, names, trial.precision)
    if kind == "GPU":
        wanted, part = min(1 + job.workers, cores), {"GPU": 1 / per_gpu}
    else:
        wanted, part = 1 if environment.one_thread(job.device, shape) else cores, {}
    return {"CPU": wanted, "memory": int(min(need, memory)), **part}


@dataclass
class _Running:
    index: int
    node: str
    claim: ExitStack


class _Driver:
    """Keeps every node one trial ahead of what it can run at once, and writes what comes back."""

    def __init__(
        self, trials: Sequence[Trial], left: Sequence[int], job: Job, reporter: Reporter, per_gpu: int
    ) -> None:
        self.trials, self.job, self.reporter = trials, job, reporter
        self.worker = Worker(job, reporter)  # only to see what is done
        nodes = list(nodes_alive().values())
        self.needs = {i: request(trials[i], job, nodes, per_gpu) for i in left}
        self.waiting = sorted(left, key=lambda i: (*_shared(trials[i]), i))
        self.others: list[int] = []  # claimed by other commands
        self.told: set[int] = set()  # of them: what the reporter knows of
        self.running: dict[Any, _Running] = {}
        self.results = Results()
        self.homes: defaultdict[Hashable, set[str]] = defaultdict(set)  # nodes that have computed features

        own = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": own})
        datasets = {name: portable(dataset) for name, dataset in job.datasets.items()}
        bare = replace(job, datasets={})
        self.setup = [ray.put(Setup(bare, datasets, Events(self.events)))]
        self.task = ray.remote(max_retries=RETRIES)(run_trial_here)

    def run(self, jobs: int) -> Results:
        try:
            while self.waiting or self.running or self.others:
                self._submit(jobs)
                finished: list[Any] = []
                if self.running:
                    finished, _ = ray.wait(list(self.running), timeout=0.1)
                else:  # what is left is another command's, or there is no node for it
                    self._look_again()
                    time.sleep(0.2)
                self._tell()
                for reference in finished:
                    self._collect(reference)
        finally:
            for reference, one in self.running.items():
                ray.cancel(reference, force=True)
                one.claim.close()
            self.events.shutdown(force=True)
        return self.results

    def _submit(self, jobs: int) -> None:
        nodes = nodes_alive() if self.waiting else {}
        while len(self.running) < jobs and (found := self._place(nodes)):
            i, node = found
            trial, needs, mine = self.trials[i], self.needs[i], ExitStack()
            self.waiting.remove(i)
            if not mine.enter_context(claim(self.job.out, trial)):
                self.others.append(i)
            elif (done := self.worker.done(trial)) is not None:  # another command was at it
                self.results[i] = done
                mine.close()
            else:
                task = self.task.options(
                    num_cpus=needs["CPU"],
                    num_gpus=needs.get("GPU", 0),
                    memory=needs["memory"],
                    # soft: another node takes it if this one dies
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
                )
                given = (self.setup, environment.code_hash(), trial, i, len(self.trials), int(needs["CPU"]))
                self.running[task.remote(*given)] = _Running(i, node, mine)
                for features in (trial.dataset, _shared(trial)):
                    self.homes[features].add(node)

    def _place(self, nodes: Mapping[str, Resources]) -> tuple[int, str] | None:
        """The next trial and its node, the least busy first: a trial whose training features the node has,
        else one of a dataset it has features of, else one that the fewest nodes have features for."""
        busy = {node: [self.needs[one.index] for one in self._on(node)] for node in nodes}
        for node in sorted(nodes, key=lambda node: len(busy[node]) / nodes[node].get("CPU", 1)):
            fits = [i for i in self.waiting if has_room(nodes[node], busy[node], self.needs[i])]
            if fits:
                return min(fits, key=lambda i: (*self._distance(self.trials[i], node), i)), node
        return None

    def _on(self, node: str) -> list[_Running]:
        return [one for one in self.running.values() if one.node == node]

    def _distance(self, trial: Trial, node: str) -> tuple[bool, bool, int]:
        near, far = self.homes[_shared(trial)], self.homes[trial.dataset]
        return node not in near, node not in far, len(near) + len(far)

    def _look_again(self) -> None:
        for i in self.others:
            if i not in self.told:
                self.told.add(i)
                self.reporter.wait(self.trials[i])
        self.waiting, self.others = self.waiting + self.others, []

    def _tell(self) -> None:
        """Pass on what the nodes said, but for trials that are over (a node that was thought dead may go on
        for a while)."""
        running = {one.index for one in self.running.values()}
        for event in self.events.get_nowait_batch(self.events.size()):
            name, i, rest = pickle.loads(event)  # noqa: S301  # our own nodes; Ray, too, talks in pickles
            if i in running:
                getattr(self.reporter, name)(self.trials[i], *rest)

    def _collect(self, reference: Any) -> None:
        one = self.running.pop(reference)
        trial = self.trials[one.index]
        with one.claim:
            try:
                answer = ray.get(reference)
            except RayTaskError:  # a mistake of the program's
                raise
            except RayError as error:
                answer = UserError(
                    f"its node or its process died {RETRIES + 1} times ({type(error).__name__}), perhaps for "
                    "want of memory; see `ray status` and the node's /tmp/ray/session_latest/logs."
                )
            if isinstance(answer, NodeError):
                raise answer
            if isinstance(answer, UserError):
                self.reporter.fail(trial, answer)
                self.results[one.index] = answer
                return
            record = parse(answer[RECORD], RECORD)
            assert isinstance(record, Record)  # a node with the same code wrote it
            folder = trial.folder(self.job.out)
            sweep(folder)
            for name in (*FILES, RECORD):
                if name in answer:
                    write_atomic(folder / name, answer[name])
            (folder / CHECKPOINT).unlink(missing_ok=True)  # of an attempt on this machine
            self.results[one.index] = record
            self.reporter.finish(trial, record, skipped=False)


def _shared(trial: Trial) -> tuple[str, str, int, int]:
    """Trials with the same have their training features in common."""
    return trial.dataset, trial.train_classes, trial.shots, trial.seed


def has_room(have: Resources, busy: Sequence[Resources], need: Resources) -> bool:
    """Whether a node that runs ``busy`` takes a trial, if only as the one that waits there."""
    return all(
        amount <= have.get(what, 0) and sum(one.get(what, 0) for one in busy) <= have[what] + 1e-6
        for what, amount in need.items()
        if amount
    )
