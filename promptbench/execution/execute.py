"""Run trials: skip what is done, resume what was cut off, record what finishes, each by one process."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from safetensors.torch import save

from promptbench.clip.cache import FeatureCache
from promptbench.clip.features import chunks
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.tokens import encode
from promptbench.data.classnames import readable
from promptbench.data.dataset import Dataset
from promptbench.data.splits import Item
from promptbench.data.views import Views, load_batches
from promptbench.errors import UserError
from promptbench.methods._base import trainable_parameters, trained_rows
from promptbench.methods._registry import get_method
from promptbench.storage import canonical, hash_file, hash_value, lock, require_writable, sweep, write_atomic
from promptbench.training import environment
from promptbench.training.evaluate import evaluate, predict
from promptbench.training.influence import SAMPLE, influence
from promptbench.training.loop import (
    CHECKPOINT,
    Progress,
    Report,
    autocast,
    create,
    discard_damaged,
    fit,
    resolve_precision,
)
from promptbench.trials.predictions import pack
from promptbench.trials.record import (
    CONFIG,
    FILES,
    PREDICTIONS,
    PROMPTS,
    RECORD,
    Fault,
    Record,
    Seconds,
    examine,
)
from promptbench.trials.trial import Precision, Trial

CLAIMS = ".claims"  # folder of locks: who is at which trial

Identity = tuple[int, int]
Results = dict[int, Record | UserError]  # by index of the trial


class Reporter(Protocol):
    """Who is told how far the work is. Several trials may run at once."""

    def start(self, trial: Trial, number: int, total: int) -> None: ...
    def wait(self, trial: Trial) -> None: ...
    def note(self, trial: Trial, text: str) -> None: ...
    def epoch(self, trial: Trial, progress: Progress, epochs: int) -> None: ...
    def finish(self, trial: Trial, record: Record, skipped: bool) -> None: ...
    def fail(self, trial: Trial, error: UserError) -> None: ...


@dataclass
class Outcome:
    """Records in the order of the trials, and the trials that failed with their one sentence."""

    records: list[Record] = field(default_factory=list)
    failures: list[tuple[Trial, UserError]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What all trials of a command share. ``replace``: identities (see `identity`) of the records that are
    to be made anew, by hash of the trial. ``validate``: write the accuracy on the few-shot validation
    pictures into the metrics of every epoch. ``compiled``: towers through torch.compile. ``share``: so many
    trials have the device's memory between them."""

    datasets: Mapping[str, Dataset]
    out: Path
    device: torch.device
    workers: int = 0
    cache: FeatureCache | None = None
    validate: bool = False
    compiled: bool = False
    replace: Mapping[str, Identity] = field(default_factory=dict)
    share: int = 1


class Worker:
    """Runs trials of a job one at a time, each backbone loaded once."""

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self.job, self.reporter = job, reporter
        self.clips: dict[Any, FrozenCLIP] = {}

    def attempt(self, trial: Trial, number: int, total: int, block: bool) -> Record | UserError | None:
        """The record of a trial: of an earlier run, or of this one. The error if it fails by the user's
        mistake. None if another process is at it; with ``block`` its end is waited for."""
        if block:
            self.reporter.wait(trial)
        with claim(self.job.out, trial, block) as mine:
            if not mine:
                return None
            return self.done(trial) or self.run(trial, number, total)

    def done(self, trial: Trial) -> Record | UserError | None:
        """The record of a trial that nothing is left to do for: it is whole, and so are the files beside it.
        The error if a newer version of the program made it, which is never replaced."""
        folder = trial.folder(self.job.out)
        done = examine(folder)
        if isinstance(done, Fault) and done.newer:
            error = UserError(
                f"{done.path} was {done.why} of promptbench and is left as it is; update promptbench, or "
                "choose another --out."
            )
            self.reporter.fail(trial, error)
            return error
        old = self.job.replace.get(trial.hash)
        if done is None or (old is not None and old == identity(folder)):
            return None
        damage = f"{RECORD} is damaged ({done.why})" if isinstance(done, Fault) else done.damage(folder)
        if isinstance(done, Fault) or damage:
            self.reporter.note(trial, f"{damage}; the trial is run again")
            return None
        self.reporter.finish(trial, done, skipped=True)
        return done

    def run(self, trial: Trial, number: int, total: int) -> Record | UserError:
        """The record of a trial that is this process's to do, or the error if it fails by the user's
        mistake."""
        job, key = self.job, (trial.backbone, trial.pretrained)
        self.reporter.start(trial, number, total)
        sweep(trial.folder(job.out))
        failed: UserError | None = None
        try:
            if key not in self.clips:
                loaded = FrozenCLIP.load(*key, device=job.device, cache=job.cache)
                loaded.share = job.share
                self.clips[key] = loaded.compile() if job.compiled else loaded
            clip, fresh = self.clips[key], trial.hash in job.replace
            with environment.suitable_threads(job.device, clip.shape):
                if not fresh and discard_damaged(trial.folder(job.out)):
                    self.reporter.note(trial, "its checkpoint was damaged; the trial starts over")
                record = run_trial(
                    trial,
                    job.datasets,
                    clip,
                    trial.folder(job.out),
                    partial(self.reporter.epoch, trial),
                    job.workers,
                    fresh,
                    job.validate,
                )
        except UserError as error:
            failed = error
        except torch.OutOfMemoryError:
            failed = UserError(
                "it ran out of the GPU's memory; run fewer at once (--per-gpu 1) or use a smaller batch "
                "(--set batch_size=...)."
            )
        if job.device.type == "cuda":
            torch.cuda.empty_cache()  # what this trial needed may be missing to another process
        if failed is not None:
            self.reporter.fail(trial, failed)
            return failed
        self.reporter.finish(trial, record, skipped=False)
        return record


class Executor(Protocol):
    """Where trials run: `InTurn`, `local.Local` or `ray.cluster.RayCluster`."""

    device: torch.device

    def precision(self, asked: str) -> Precision:
        """What "auto" means there. Raises UserError for a precision that its device cannot train in."""

    def run(self, trials: Sequence[Trial], left: Sequence[int], job: Job, reporter: Reporter) -> Results:
        """Results of the trials ``left`` by index; one that another command has claimed is waited for in the
        end. ``job.workers`` is the executor's to set."""


class InTurn:
    """One trial after the other in this process, its pictures decoded by ``workers`` others."""

    def __init__(self, workers: int | None = None) -> None:
        self.device, self.workers = environment.default_device(), workers

    def precision(self, asked: str) -> Precision:
        return resolve_precision(self.device, asked)

    def decoders(self, jobs: int) -> int:
        """Processes that decode pictures, for each of ``jobs`` trials at once, if the user does not say."""
        if self.workers is not None:
            return self.workers
        return min(8, (environment.cpu_count() - 1) // jobs) if self.device.type == "cuda" else 0

    def run(self, trials: Sequence[Trial], left: Sequence[int], job: Job, reporter: Reporter) -> Results:
        worker, results = Worker(replace(job, workers=self.decoders(1)), reporter), Results()
        for block in (False, True):
            for i in left:
                if i not in results and (result := worker.attempt(trials[i], i + 1, len(trials), block)):
                    results[i] = result
        return results


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


def run_trial(
    trial: Trial,
    datasets: Mapping[str, Dataset],
    clip: FrozenCLIP,
    folder: Path,
    report: Report,
    workers: int = 0,
    fresh: bool = False,
    validate: bool = False,
) -> Record:
    """Train, evaluate and record one trial in ``folder``; resumes from a checkpoint there unless ``fresh``.

    Raises UserError for whatever the user can put right; nothing is then recorded.
    """
    if fresh:  # an old record stays until the new one takes its place
        (folder / CHECKPOINT).unlink(missing_ok=True)
    memory = environment.PeakMemory(clip.device)
    kind = get_method(trial.method)
    settings = kind.Settings(**trial.settings)
    dataset = datasets[trial.dataset]
    classes = dataset.classes(trial.train_classes)
    write_atomic(folder / CONFIG, yaml.safe_dump(trial.model_dump(mode="json"), sort_keys=False))

    involved = dict.fromkeys([trial.dataset, *(e.dataset for e in trial.evaluations)])
    strange = [note for name in involved if (note := _strange_words(clip, datasets[name]))]
    method = create(kind, clip, settings, classes, trial.seed)
    counted = trainable_parameters(method)
    if counted != (formula := kind.parameter_count(settings, clip.shape, len(classes))):
        raise RuntimeError(f"{trial.method} trains {counted} parameters, its card says {formula}")
    progress, change = Progress(), {}
    hashes = {"weights": clip.fingerprint, "data": dataset.fingerprint, "code": environment.code_hash()}
    items: list[Item] = []
    if kind.uses_shots:
        items, held_out = dataset.draw(trial.shots, trial.seed, trial.train_classes)
        hashes["draw"] = hash_value([items, held_out])

        def measure() -> dict[str, float]:
            if not (validate and held_out):
                return {}
            predicted = predict(method, dataset, classes, held_out, trial.precision, workers).tolist()
            right = sum(label == item.label for label, item in zip(predicted, held_out, strict=True))
            return {"val_accuracy": 100 * right / len(held_out)}

        progress = fit(
            method,
            dataset,
            items,
            classes,
            trial.seed,
            folder,
            trial.precision,
            workers,
            report,
            validation=held_out,
            measure=measure,
        )
    method.eval()
    started = time.perf_counter()
    answers = [
        evaluate(method, datasets[e.dataset], e, trial.split, trial.limit, trial.precision, workers)
        for e in trial.evaluations
    ]
    evaluated = time.perf_counter() - started
    if kind.uses_shots:
        views, few = Views(**clip.preprocess), items[:SAMPLE]
        images = None  # read only where the image tower is changed
        if method.needs_images:
            images = next(load_batches(dataset, few, views, chunks(len(few)), None, clip.device))
        with autocast(clip.device, trial.precision):
            change = influence(method, classes, images)
    if method.state_dict():
        state = {key: value.cpu().contiguous() for key, value in method.state_dict().items()}
        # One key only: safetensors writes several in an order that changes from process to process.
        metadata = {"promptbench": canonical({"method": trial.method, "trial": trial.hash})}
        write_atomic(folder / PROMPTS, save(state, metadata))
    write_atomic(folder / PREDICTIONS, pack([(one.labels, one.predicted) for one in answers], trial.hash))
    tested = [datasets[e.dataset].classes(e.classes) for e in trial.evaluations]
    unseen = any(-1 in trained_rows(classes, one) for one in tested)
    record = Record(
        hash=trial.hash,
        trial=trial,
        evaluations=[one.counts for one in answers],
        trainable_parameters=counted,
        steps=progress.steps,
        final_loss=progress.history[-1]["loss"] if progress.history else None,
        hashes=hashes,
        files={name: hash_file(folder / name) for name in FILES if (folder / name).exists()},
        seconds=Seconds(
            train=progress.train_seconds,
            frozen=progress.frozen_seconds,
            evaluate=evaluated,
            wait=progress.wait_seconds,
        ),
        peak_memory_bytes=memory.bytes(),
        environment={**environment.describe(clip.device), "compiled": clip.compiled},
        influence=change,
        labels=[f"{name}: {note}" for name in involved if (note := datasets[name].nonstandard)],
        notes=[*([f"{trial.method}: {kind.fallback}"] if kind.fallback and unseen else []), *strange],
    )
    record.write(folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return record


def _strange_words(clip: FrozenCLIP, dataset: Dataset) -> str:
    """A note on class names with tokens the backbone has no embedding for, empty if there are none."""
    rows = {name: encode(readable(name)) for name in dataset.classnames}
    strange = [name for name, tokens in rows.items() if clip.known(tokens) != tokens]
    return (
        f"{dataset.name}: the backbone has no embedding for words of {', '.join(strange)}" if strange else ""
    )
