"""One trial, from its plan to its record."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from safetensors.torch import save

from promptbench.clip.arithmetic import Arithmetic
from promptbench.clip.features import chunks
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.tokenizer import encode
from promptbench.data.classnames import Classes, readable
from promptbench.data.dataset import Dataset
from promptbench.data.splits import Item
from promptbench.data.views import Views, load_batches
from promptbench.methods._base import Method, trainable_parameters, trained_rows
from promptbench.methods._registry import get_method
from promptbench.storage import canonical, hash_file, hash_value, write_atomic
from promptbench.training.checkpoint import Progress, Report
from promptbench.training.evaluate import Answers, evaluate, predict
from promptbench.training.files import CHECKPOINT, CONFIG, FILES, PREDICTIONS, PROMPTS
from promptbench.training.influence import SAMPLE, influence
from promptbench.training.loop import Training, create, fit
from promptbench.training.provenance import PeakMemory, code_hash, describe
from promptbench.trials.predictions import pack
from promptbench.trials.record import Record, Seconds
from promptbench.trials.trial import Trial


@dataclass
class Trained:
    """A trained method, the images it was trained on, and how the training went."""

    method: Method
    items: Sequence[Item] = ()
    hashes: dict[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)


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

    ``datasets``: by name, at least those of the trial; ``workers``: processes that decode images;
    ``validate``: see `job.Job`. Raises UserError for whatever the user can put right; nothing is then
    recorded.
    """
    if fresh:  # an old record stays until the new one takes its place
        (folder / CHECKPOINT).unlink(missing_ok=True)
    memory, arithmetic = PeakMemory(clip.device), Arithmetic(clip.device, trial.precision, workers)
    write_atomic(folder / CONFIG, yaml.safe_dump(trial.model_dump(mode="json"), sort_keys=False))
    names = dict.fromkeys([trial.dataset, *(e.dataset for e in trial.evaluations)])
    involved = [datasets[name] for name in names]
    strange = [note for one in involved if (note := _strange_words(clip, one))]

    trained = _train(trial, datasets[trial.dataset], clip, folder, arithmetic, report, validate)
    method, progress = trained.method.eval(), trained.progress
    started = time.perf_counter()
    answers = [
        evaluate(method, datasets[e.dataset], e, trial.split, trial.limit, arithmetic)
        for e in trial.evaluations
    ]
    evaluated = time.perf_counter() - started
    change = _influence(trained, datasets[trial.dataset], trial, arithmetic)
    _write_results(trial, method, answers, folder)
    record = Record(
        hash=trial.hash,
        trial=trial,
        evaluations=[one.counts for one in answers],
        trainable_parameters=trainable_parameters(method),
        steps=progress.steps,
        final_loss=progress.history[-1]["loss"] if progress.history else None,
        hashes=trained.hashes,
        files={name: hash_file(folder / name) for name in FILES if (folder / name).exists()},
        seconds=Seconds(
            train=progress.train_seconds,
            frozen=progress.frozen_seconds,
            evaluate=evaluated,
            wait=progress.wait_seconds,
        ),
        peak_memory_bytes=memory.bytes(),
        environment={**describe(clip.device), "compiled": clip.compiled},
        influence=change,
        labels=[f"{one.name}: {note}" for one in involved if (note := one.nonstandard)],
        notes=[*_fallback(trial, datasets), *strange],
    )
    record.write(folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return record


def _train(
    trial: Trial,
    dataset: Dataset,
    clip: FrozenCLIP,
    folder: Path,
    arithmetic: Arithmetic,
    report: Report,
    validate: bool,
) -> Trained:
    """The trial's method, trained on its few-shot draw if it uses one."""
    kind, classes = get_method(trial.method), dataset.classes(trial.train_classes)
    settings = kind.Settings(**trial.settings)
    method = create(kind, clip, settings, classes, trial.seed)
    counted = trainable_parameters(method)
    if counted != (formula := kind.parameter_count(settings, clip.shape, len(classes))):
        raise RuntimeError(f"{trial.method} trains {counted} parameters, its card says {formula}")
    hashes = {"weights": clip.fingerprint, "data": dataset.fingerprint, "code": code_hash()}
    if not kind.uses_shots:
        return Trained(method, hashes=hashes)
    items, validation = dataset.draw(trial.shots, trial.seed, trial.train_classes)
    hashes["draw"] = hash_value([items, validation])
    training = Training(
        dataset,
        items,
        classes,
        trial.seed,
        validation,
        arithmetic,
        folder,
        _validating(method, dataset, classes, validation, arithmetic) if validate and validation else dict,
        report,
    )
    return Trained(method, items, hashes, fit(method, training))


def _validating(
    method: Method, dataset: Dataset, classes: Classes, items: Sequence[Item], arithmetic: Arithmetic
) -> Callable[[], dict[str, float]]:
    """What measures the accuracy on the few-shot validation images, in percent, after an epoch."""

    def measure() -> dict[str, float]:
        predicted = predict(method, dataset, classes, items, arithmetic).tolist()
        right = sum(label == item.label for label, item in zip(predicted, items, strict=True))
        return {"val_accuracy": 100 * right / len(items)}

    return measure


def _influence(
    trained: Trained, dataset: Dataset, trial: Trial, arithmetic: Arithmetic
) -> dict[str, list[float]]:
    """How much a trained method changes what the towers read out; nothing for one that is not trained."""
    method, few = trained.method, trained.items[:SAMPLE]
    if not method.uses_shots:
        return {}
    images = None  # read only where the image tower is changed
    if method.needs_images:
        views = Views(**method.clip.preprocess)
        images = next(load_batches(dataset, few, views, chunks(len(few)), None, arithmetic.device))
    with arithmetic.autocast():
        return influence(method, dataset.classes(trial.train_classes), images)


def _write_results(trial: Trial, method: Method, answers: Sequence[Answers], folder: Path) -> None:
    """Learned tensors, if there are any, and the predicted class of every test image."""
    if method.state_dict():
        state = {key: value.cpu().contiguous() for key, value in method.state_dict().items()}
        # One key only: safetensors writes several in an order that changes from process to process.
        metadata = {"promptbench": canonical({"method": trial.method, "trial": trial.hash})}
        write_atomic(folder / PROMPTS, save(state, metadata))
    write_atomic(folder / PREDICTIONS, pack([(one.labels, one.predicted) for one in answers], trial.hash))


def _fallback(trial: Trial, datasets: Mapping[str, Dataset]) -> list[str]:
    """A note on what the method does for classes that it was not trained on, if any are tested."""
    kind, trained = get_method(trial.method), datasets[trial.dataset].classes(trial.train_classes)
    tested = [datasets[e.dataset].classes(e.classes) for e in trial.evaluations]
    unseen = any(-1 in trained_rows(trained, one) for one in tested)
    return [f"{trial.method}: {kind.fallback}"] if kind.fallback and unseen else []


def _strange_words(clip: FrozenCLIP, dataset: Dataset) -> str:
    """A note on class names with tokens the backbone has no embedding for, empty if there are none."""
    rows = {name: encode(readable(name)) for name in dataset.classnames}
    strange = [name for name, tokens in rows.items() if clip.known(tokens) != tokens]
    return (
        f"{dataset.name}: the backbone has no embedding for words of {', '.join(strange)}" if strange else ""
    )
