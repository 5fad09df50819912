"""Run trials one after another: skip what is done, resume what was cut off, record what finishes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import yaml
from safetensors.torch import save

from promptbench import environment
from promptbench.cache import FeatureCache
from promptbench.clip import FrozenCLIP
from promptbench.data import Dataset
from promptbench.errors import UserError
from promptbench.evaluate import evaluate, predict
from promptbench.files import canonical, require_writable, write_atomic
from promptbench.frozen import chunks
from promptbench.influence import SAMPLE, influence
from promptbench.method import get_method, trainable_parameters, trained_rows
from promptbench.records import Record, Seconds, read_record
from promptbench.tokens import encode, readable
from promptbench.train import CHECKPOINT, Progress, autocast, create, fit
from promptbench.trials import Trial
from promptbench.views import Views, load_batches

PROMPTS = "prompts.safetensors"


class Reporter(Protocol):
    """Who is told how far the work is."""

    def start(self, trial: Trial, number: int, total: int) -> None: ...
    def epoch(self, progress: Progress, epochs: int) -> None: ...
    def finish(self, trial: Trial, record: Record, skipped: bool) -> None: ...
    def fail(self, trial: Trial, error: UserError) -> None: ...


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
    device: torch.device | None = None,
    workers: int = 0,
    cache: FeatureCache | None = None,
    validate: bool = False,
) -> Outcome:
    """Run ``trials``, writing records under ``out``. A trial that fails by the user's mistake is reported
    and the others go on: finished work is never lost. ``validate``: write the accuracy on the few-shot
    validation pictures into the metrics of every epoch. Raises UserError if ``out`` cannot be written.
    """
    require_writable(out)
    device = device or environment.default_device()
    outcome, clips = Outcome(), {}
    for number, trial in enumerate(trials, 1):
        folder = trial.folder(out)
        if not force and (done := read_record(folder)) and done.hash == trial.hash:
            outcome.records.append(done)
            reporter.finish(trial, done, skipped=True)
            continue
        reporter.start(trial, number, len(trials))
        key = (trial.backbone, trial.pretrained)
        try:
            if key not in clips:
                clips[key] = FrozenCLIP.load(*key, device=device, cache=cache)
            with environment.suitable_threads(device, clips[key].shape):
                record = run_trial(trial, datasets, clips[key], folder, reporter, workers, force, validate)
        except UserError as error:
            outcome.failures.append((trial, error))
            reporter.fail(trial, error)
            continue
        outcome.records.append(record)
        reporter.finish(trial, record, skipped=False)
    return outcome


def run_trial(
    trial: Trial,
    datasets: Mapping[str, Dataset],
    clip: FrozenCLIP,
    folder: Path,
    reporter: Reporter,
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
    write_atomic(folder / "config.yaml", yaml.safe_dump(trial.model_dump(mode="json"), sort_keys=False))

    involved = dict.fromkeys([trial.dataset, *(e.dataset for e in trial.evaluations)])
    strange = [note for name in involved if (note := _strange_words(clip, datasets[name]))]
    method = create(kind, clip, settings, classes, trial.seed)
    counted = trainable_parameters(method)
    if counted != (formula := kind.parameter_count(settings, clip.shape, len(classes))):
        raise RuntimeError(f"{trial.method} trains {counted} parameters, its card says {formula}")
    progress, change = Progress(), {}
    if kind.uses_shots:
        draw = (trial.shots, trial.seed, trial.train_classes)
        items, held_out = dataset.few_shot(*draw), dataset.few_shot_val(*draw)

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
            reporter.epoch,
            validation=held_out,
            measure=measure,
        )
    method.eval()
    started = time.perf_counter()
    counts = [
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
    tested = [datasets[e.dataset].classes(e.classes) for e in trial.evaluations]
    unseen = any(-1 in trained_rows(classes, one) for one in tested)
    record = Record(
        hash=trial.hash,
        trial=trial,
        evaluations=counts,
        trainable_parameters=counted,
        steps=progress.steps,
        final_loss=progress.history[-1]["loss"] if progress.history else None,
        hashes={"weights": clip.fingerprint, "data": dataset.fingerprint, "code": environment.code_hash()},
        seconds=Seconds(
            train=progress.train_seconds,
            frozen=progress.frozen_seconds,
            evaluate=evaluated,
            wait=progress.wait_seconds,
        ),
        peak_memory_bytes=memory.bytes(),
        environment=environment.describe(clip.device),
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
