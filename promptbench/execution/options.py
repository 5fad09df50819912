"""How trials are run, beside what is run (`promptbench.trials.sweep.Sweep`), as plain values."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """The options of a command that a sweep file does not contain.

    Data: ``data_root`` is the folder of the standard datasets (None: PROMPTBENCH_DATA), ``template`` replaces
    the zero-shot template of the cards, ``draws`` is a folder of imported few-shot samples,
    ``allow_nonstandard_split`` accepts datasets without their published split, ``split`` is evaluated (train,
    val or test), ``limit`` caps the images per class in the evaluation.

    Hardware: ``precision`` (auto, fp32, bf16 or fp16), ``workers`` that decode images per running trial,
    ``jobs`` trials at once in all and ``per_gpu`` on each GPU, the ``executor`` (local or ray) with the
    ``address`` of a Ray cluster, ``compiled`` towers.

    ``validate`` measures the validation accuracy after every epoch, ``shard`` ("3/16") selects a part of the
    trials, ``force`` runs finished trials again. None: the default.
    """

    data_root: Path | None = None
    template: str | None = None
    draws: Path | None = None
    allow_nonstandard_split: bool = False
    split: str = "test"
    limit: int | None = None
    precision: str = "auto"
    workers: int | None = None
    jobs: int | None = None
    per_gpu: int = 1
    executor: str = "local"
    address: str | None = None
    compiled: bool = False
    validate: bool = False
    shard: str | None = None
    force: bool = False
