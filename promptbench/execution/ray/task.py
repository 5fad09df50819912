"""What a node of a Ray cluster does: one trial in a folder of its own, its files sent back as bytes."""

import pickle
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

from promptbench.clip.cache import FeatureCache
from promptbench.clip.weights import weights_identity
from promptbench.data import dataset as data
from promptbench.data.cards import cards
from promptbench.data.dataset import Dataset, with_draws
from promptbench.errors import UserError
from promptbench.execution.claims import claim
from promptbench.execution.job import Job
from promptbench.execution.local import Messenger
from promptbench.execution.worker import Worker
from promptbench.storage import default_folder, require_writable
from promptbench.training.device import default_device
from promptbench.training.files import FILES, RECORD
from promptbench.training.provenance import code_hash
from promptbench.trials.trial import Trial


class NodeError(UserError):
    """A node is not fit for the work: nothing is sent to any node until the user has put that right."""


class Events:
    """Where a node tells how far it is. Bytes, so that the queue's process needs nothing but Ray."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def put(self, event: tuple[str, int, tuple[Any, ...]]) -> None:
        """Returns when the event has arrived: before the trial's files do."""
        if event[0] in ("start", "note", "epoch"):  # the command itself knows the rest
            self.queue.put(pickle.dumps(event))


@dataclass(frozen=True)
class Shipped:
    """A dataset that every installation has, so that its images are not sent."""

    name: str
    template: str
    draws: Path | None
    fingerprint: str

    def load(self) -> Dataset:
        """Raises UserError if the one that is installed here is another."""
        dataset = data.load(self.name, template=self.template)
        if self.draws is not None:
            dataset = with_draws(dataset, self.draws)
        if dataset.fingerprint != self.fingerprint:
            raise UserError(f"its dataset {self.name} or its draws differ; install the same on every node.")
        return dataset


@dataclass(frozen=True)
class SharedJob:
    """What all trials of a command share, in the object store once. ``job``: datasets and features are the
    node's own matter."""

    job: Job
    datasets: dict[str, Dataset | Shipped]
    events: Events


def portable(dataset: Dataset) -> Dataset | Shipped:
    """A dataset as it goes to the nodes."""
    shipped = Shipped(dataset.name, dataset.card.template, dataset.draws, dataset.fingerprint)
    card, _ = cards().get(dataset.name.partition(":")[0], (None, None))
    if card is None or card.folder:
        return dataset
    try:
        shipped.load()
    except UserError:  # a card of the user's with the name of a shipped one
        return dataset
    return shipped


_ready: tuple[str, Worker] | None = None  # of this process: whose setup, and who works by it


def run_trial_here(
    setup: list[Any], code: str, trial: Trial, index: int, total: int, threads: int
) -> dict[str, bytes] | UserError:
    """The files of a trial by name, or the user's mistake it failed by; a NodeError if it is this node's.

    ``setup`` holds the reference to the SharedJob (alone it would be fetched anew for every trial). The
    folder it works in depends on trial and code only: where the trial was interrupted, the next attempt on
    this node goes on; what other code left is never used.
    """
    try:
        if code != code_hash():
            raise UserError("it has another version of promptbench; install the same on every node.")
        worker = _prepare(setup[0])
        if weights_identity(trial.backbone, trial.pretrained) != trial.weights:
            raise UserError(f"its weights {trial.pretrained} differ; install the same file on every node.")
    except UserError as error:
        return NodeError(f"Node {platform.node()} ({ray.util.get_node_ip_address()}): {error}")
    messenger, out = worker.reporter, worker.job.out
    assert isinstance(messenger, Messenger)
    messenger.index = index
    if worker.job.device.type == "cpu":
        torch.set_num_threads(threads)
    # An attempt on a node that was only thought dead may still be at it.
    with claim(out, trial, block=True):
        result = worker.run(trial, index + 1, total)
        if isinstance(result, UserError):
            return result
        folder = trial.folder(out)
        files: dict[str, bytes] = {}
        for name in (*FILES, RECORD):
            with suppress(FileNotFoundError):  # not every method has all
                files[name] = (folder / name).read_bytes()
        shutil.rmtree(folder, ignore_errors=True)
    if RECORD not in files:
        return UserError("the node's cache was deleted while it ran; run the same command again.")
    return files


def _prepare(reference: Any) -> Worker:
    global _ready
    if _ready is None or _ready[0] != reference.hex():
        setup: SharedJob = ray.get(reference)
        datasets = {}
        for name, one in setup.datasets.items():
            datasets[name] = dataset = one.load() if isinstance(one, Shipped) else one
            if dataset.root is not None and not dataset.root.is_dir():
                raise UserError(f"it has no {dataset.root}; the data must be at the same path on every node.")
        out = default_folder() / "ray" / code_hash()[:16]
        require_writable(out)
        job = replace(
            setup.job,
            datasets=datasets,
            out=out,
            device=default_device(setup.job.device.type),
            cache=FeatureCache(default_folder()) if setup.job.cache else None,
        )
        _ready = reference.hex(), Worker(job, Messenger(setup.events))
    return _ready[1]
