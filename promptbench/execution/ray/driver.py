"""Sends trials to the nodes of a Ray cluster and writes what comes back.

This command holds the claim of a trial from the moment it is sent out until its record is written.
"""

import pickle
import time
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from promptbench.errors import UserError
from promptbench.execution.claims import claim
from promptbench.execution.job import Job, Reporter, Results
from promptbench.execution.ray.connection import Resources, nodes_alive
from promptbench.execution.ray.placement import has_room, request
from promptbench.execution.ray.task import Events, NodeError, SharedJob, portable, run_trial_here
from promptbench.execution.worker import Worker
from promptbench.storage import sweep, write_atomic
from promptbench.training.files import CHECKPOINT, FILES, RECORD
from promptbench.training.provenance import code_hash
from promptbench.trials.record import Record, parse
from promptbench.trials.trial import Trial

RETRIES = 5  # so often may the node or the process of a trial die


@dataclass
class _Running:
    index: int
    node: str
    claim: ExitStack


class Driver:
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
        self.setup = [ray.put(SharedJob(bare, datasets, Events(self.events)))]
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
                given = (self.setup, code_hash(), trial, i, len(self.trials), int(needs["CPU"]))
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
                    f"its node or its process died {RETRIES + 1} times ({type(error).__name__}), possibly "
                    "out of memory; see `ray status` and the node's /tmp/ray/session_latest/logs."
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
