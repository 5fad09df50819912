"""The public API: what `import promptbench as pb` offers. The command line calls the same functions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from promptbench.clip.frozen_clip import FrozenCLIP
    from promptbench.data.dataset import Dataset
    from promptbench.execution.classifier import Classifier
    from promptbench.trials.record import Record


def list_methods(variants: bool = False) -> list[str]:
    """Names of all methods; with ``variants`` also the named variants, such as ``mmlop-rank2``."""
    from promptbench.methods._registry import methods, recipes

    return list(recipes() if variants else methods())


def list_datasets() -> list[str]:
    """Names of all datasets that have a card. The standard ones must be on the disk before they are used."""
    from promptbench.data.cards import cards

    return list(cards())


def list_benchmarks() -> list[str]:
    """Names of all benchmarks: base2novel, fewshot and so on."""
    from promptbench.trials.benchmarks import BENCHMARKS

    return list(BENCHMARKS)


def load_dataset(
    name: str | Path,
    data_root: str | Path | None = None,
    allow_nonstandard_split: bool = False,
    template: str | None = None,
    draws: str | Path | None = None,
) -> "Dataset":
    """A dataset by name, by the path of its card (.yaml), or by the path of a folder of images.

    ``data_root``: folder of the standard datasets (None: PROMPTBENCH_DATA). ``template`` replaces the card's
    zero-shot template; ``{}`` stands for the class name. ``draws``: folder of imported few-shot draws.
    Raises UserError for an unknown name and for files that are missing or do not match the card.
    """
    from promptbench.data.dataset import load, with_draws

    root = None if data_root is None else Path(data_root)
    found = load(str(name), root, allow_nonstandard_split, template)
    return found if draws is None else with_draws(found, Path(draws))


def load_clip(name: str = "pocket", pretrained: str | None = None, device: str | None = None) -> "FrozenCLIP":
    """A frozen backbone by its open_clip name, or "pocket" for the embedded one.

    ``pretrained``: an open_clip tag or a weights file. ``device``: cpu, cuda, cuda:1 ... (None: CUDA if there
    is a GPU). Its ``image_features`` takes normalised images [B, 3, H, W] and returns features [B, e].
    Raises UserError for an unknown backbone, and for weights that are missing or do not fit.
    """
    from promptbench.clip.frozen_clip import FrozenCLIP
    from promptbench.training.device import default_device

    return FrozenCLIP.load(name, pretrained, default_device(device))


def run(
    methods: str | Sequence[str],
    *,
    dataset: str | Path | Sequence[str | Path] | None = None,
    benchmark: str | Sequence[str] | None = None,
    suite: str | None = None,
    source: str | Path | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    shots: int | Sequence[int] | None = None,
    epochs: int | None = None,
    settings: Mapping[str, Any] | None = None,
    preset: str | None = None,
    backbone: str | None = None,
    pretrained: str | None = None,
    data_root: str | Path | None = None,
    split: str = "test",
    limit: int | None = None,
    precision: str = "auto",
    jobs: int = 1,
    out: str | Path = "results",
    force: bool = False,
    quiet: bool = False,
) -> "Record | list[Record]":
    """Train methods and evaluate them, as `promptbench run` does: the record of a single trial, or a list of
    records where the arguments make several trials or one of them is a list.

    Finished trials under ``out`` are not run again (unless ``force``) and interrupted ones resume.

    ``methods``: names of methods or variants. ``dataset``: names, cards (.yaml) or folders of images; by
    default all datasets of the suite. ``source``: the dataset to train on in a transfer benchmark. ``seed``
    is one seed, ``seeds`` several. ``shots``: training images per class. ``settings``: by ``"KEY"`` for every
    method that has it, or by ``"METHOD.KEY"``. ``preset``: "pocket" or "paper", the defaults of backbone,
    weights, suite and seeds. ``split`` is evaluated, at most ``limit`` images per class. ``precision``: auto,
    fp32, bf16 or fp16. ``jobs``: concurrent trials; more than one are run in worker processes, for which a
    script must protect its own start with ``if __name__ == "__main__":``. ``quiet``: no progress on standard
    error.

    Accuracies in records are counts of images; ``record.evaluations[0].accuracy`` is in percent.
    Raises UserError for a name, setting or dataset that does not exist or does not fit, and when a trial
    failed; the records of the others are then under ``out``.
    """
    from promptbench.execution.options import RunOptions
    from promptbench.execution.progress import SilentReporter
    from promptbench.execution.setup import prepare, require_success
    from promptbench.trials.sweep import override, sweep_of

    if seed is not None and seeds is not None:
        raise UserError("Give seed or seeds, not both.")
    names = [methods] if isinstance(methods, str) else list(methods)
    if not names:
        raise UserError("Name at least one method, such as 'mmlop'.")
    one = isinstance(dataset, str | Path)
    if not one and dataset is not None and not isinstance(dataset, list | tuple):
        raise UserError("dataset takes a name, the path of a card (.yaml) or of a folder, or a list of them.")
    sweep = override(
        sweep_of(names),
        list((settings or {}).items()),
        benchmark=benchmark,
        preset=preset,
        suite=suite,
        datasets=[str(dataset)] if one else [str(name) for name in dataset or ()] or None,  # type: ignore[union-attr]
        source=None if source is None else str(source),
        seeds=seeds if seed is None else [seed],
        shots=shots,
        epochs=epochs,
        backbone=backbone,
        pretrained=pretrained,
        out=Path(out),
    )
    root = None if data_root is None else Path(data_root)
    options = RunOptions(
        data_root=root, split=split, limit=limit, precision=precision, jobs=jobs, force=force
    )
    setup = prepare(sweep, options)
    trials = setup.trials()
    outcome = setup.run(trials, SilentReporter() if quiet else None)
    require_success(outcome)
    lists = (benchmark, shots, () if one else dataset, () if isinstance(methods, str) else methods, seeds)
    single = len(trials) == 1 and not any(isinstance(value, list | tuple) and value for value in lists)
    return outcome.records[0] if single else outcome.records


def records(out: str | Path = "results") -> "pd.DataFrame":
    """All records under ``out`` as a tidy table: one row per evaluation of a trial.

    Columns: benchmark, backbone, method, variant (settings that were changed), source (the dataset trained
    on), dataset and classes (what was evaluated), split, limit (NaN: none), shots, seed, correct and total
    (images), accuracy (percent), parameters, seconds (training), memory (peak bytes), hash, folder.
    Smoke runs and other splits than test are included. Without records the table is empty.
    Raises UserError for a record that cannot be read.
    """
    from promptbench.analysis.tidy import tidy

    return tidy(Path(out))


def compare(
    out: str | Path = "results",
    benchmark: str = "base2novel",
    control: str | None = None,
    backbone: str | None = None,
) -> "pd.DataFrame":
    """What `promptbench compare` shows: the summary by method and dataset or, with ``control``, how each
    other method differs from the method ``control``.

    The summary has a row per dataset, method and number of shots, and one for the average over datasets:
    means over seeds in percent (base, novel, hm, or all), their standard deviations (``_std``) and 95 %
    intervals (``_low``, ``_high``).
    With ``control``, one row per other method, number of shots and metric: difference in points with its 95 %
    t-interval, and p-values that are Holm-corrected over all pairs of methods, not only these; the better
    method of a pair comes first, as in `promptbench compare --pairs`.
    Raises UserError if there are no records, if they cannot be compared, or if no pair has ``control``.
    """
    from promptbench.analysis.comparison import load_frame
    from promptbench.analysis.statistics import all_pairs
    from promptbench.analysis.summary import measured, summarise
    from promptbench.errors import unknown
    from promptbench.trials.benchmarks import get_benchmark

    table = load_frame(Path(out), get_benchmark(benchmark).name, backbone)
    if control is None:
        return summarise(table)
    if control not in set(table["method"]):
        raise unknown("method among the records", control, set(table["method"]))
    pairs = all_pairs(measured(table))
    if not pairs.empty:
        pairs = pairs[(pairs["method"] == control) | (pairs["other"] == control)].reset_index(drop=True)
    if pairs.empty:
        raise UserError(
            f"No method can be compared with {control}: both need every dataset and a common seed."
        )
    return pairs


def load(
    path: str | Path,
    *,
    dataset: "str | Path | Dataset | None" = None,
    classes: Sequence[str] | None = None,
    pretrained: str | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
) -> "Classifier":
    """The trained classifier of a finished trial: ``load(path)(images)`` returns logits [B, C].

    ``path``: the trial's folder, or its prompts.safetensors or record.json. The classes are those it was
    trained on, or ``classes`` by name. ``dataset`` is needed where the dataset's name alone does not find it:
    a card, a folder, or what `load_dataset` returned (another template, imported draws). ``pretrained``:
    where the backbone's weights are now, if they were moved.

    The result also has ``classnames``, ``probabilities(images)`` and ``predict(images)``; images are PIL
    images or a normalised tensor [B, 3, H, W].
    Raises UserError if the record or its files are missing or damaged, and if the weights or the dataset are
    not those of the record.
    """
    from promptbench.execution.classifier import load_classifier

    root = None if data_root is None else Path(data_root)
    return load_classifier(Path(path), dataset, classes, pretrained, root, device)
