"""Records: what a finished trial measured. Every table, plot and check reads records only.

Schema 1. Counts, never rounded percentages. ``seconds``, ``peak_memory_bytes`` and ``environment`` vary
between equal runs; everything else of an equal trial on a CPU is equal.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from promptbench.cards import Half, Split
from promptbench.files import write_atomic
from promptbench.trial import Trial

RECORD = "record.json"


class Confused(BaseModel):
    """``count`` test pictures of class ``true`` that were taken for ``predicted``; paths of up to three."""

    model_config = ConfigDict(extra="forbid")

    true: str
    predicted: str
    count: int
    pictures: list[str]


class Counts(BaseModel):
    """One evaluation: pictures answered correctly and in all, also by class name; ``confused``: the ten
    most frequent mistakes."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    classes: Half
    split: Split
    correct: NonNegativeInt
    total: PositiveInt
    per_class: dict[str, tuple[NonNegativeInt, NonNegativeInt]]
    confused: list[Confused] = []

    @model_validator(mode="after")
    def _is_a_part(self) -> Self:
        if any(correct > total for correct, total in [(self.correct, self.total), *self.per_class.values()]):
            raise ValueError("more pictures answered correctly than there are")
        return self

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.correct / self.total


class Seconds(BaseModel):
    """Wall-clock seconds: training steps, frozen features (0 from a warm cache), evaluation; and how much
    of the training steps went into waiting for pictures."""

    model_config = ConfigDict(extra="forbid")

    train: float = 0.0
    frozen: float = 0.0
    evaluate: float = 0.0
    wait: float = 0.0


class Record(BaseModel):
    """A finished trial."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    hash: str
    trial: Trial
    evaluations: list[Counts]
    trainable_parameters: int
    steps: int
    final_loss: float | None
    hashes: dict[str, str]
    seconds: Seconds
    peak_memory_bytes: int
    environment: dict[str, Any]
    #: what a reader must know about the data, such as "dtd: non-standard split"
    labels: list[str] = []
    #: by tower, relative change of the read-out token after each block (promptbench.influence)
    influence: dict[str, list[float]] = {}
    #: what else a reader of the figures must know, such as "taskres: no residual, so zero-shot text, for ..."
    notes: list[str] = []

    @property
    def pictures_per_second(self) -> float:
        """Training pictures per second, 0 where nothing was trained."""
        seen = self.steps * int(self.trial.settings.get("batch_size", 0))
        return seen / self.seconds.train if self.seconds.train else 0.0

    def write(self, folder: Path) -> None:
        """Write ``record.json``, whole or not at all. Its presence means the trial is done."""
        write_atomic(folder / RECORD, self.model_dump_json(indent=1) + "\n")


class _BriefCounts(Counts):
    """Read without what is most of a record's text."""

    model_config = ConfigDict(extra="ignore")

    per_class: dict[str, tuple[NonNegativeInt, NonNegativeInt]] = Field(
        default_factory=dict, validation_alias="no classes"
    )
    confused: list[Confused] = Field(default_factory=list, validation_alias="no confusions")


class BriefRecord(Record):
    """A record read without classes and confusions: for many thousands of them, in half the time and a
    fraction of the memory."""

    evaluations: list[_BriefCounts]  # type: ignore[assignment]


def read_record(folder: Path | str, kind: type[Record] = Record) -> Record | None:
    """The record in a trial's folder, None if there is none or it cannot be read."""
    try:
        with open(os.path.join(folder, RECORD), "rb") as file:  # noqa: PTH118, PTH123  # twice as fast
            return kind.model_validate_json(file.read())
    except (OSError, ValueError):
        return None


def each_record(out: Path, kind: type[Record] = Record) -> Iterator[tuple[str, Record | None]]:
    """The folders of an output folder that hold a record file, in path order, and their records, read one at
    a time; None where the file is no valid record."""
    for folder in sorted(folder for folder, _, files in os.walk(out / "runs") if RECORD in files):
        record = read_record(folder, kind)
        whole = record is not None and record.hash == record.trial.hash
        yield folder, record if whole else None


def read_records(out: Path, kind: type[Record] = Record) -> tuple[list[Record], list[Path]]:
    """All records of an output folder, in path order, and the files that are no valid records."""
    records, broken = [], []
    with kept():
        for folder, record in each_record(out, kind):
            if record is None:
                broken.append(Path(folder, RECORD))
            else:
                records.append(record)
    return records, broken


@contextmanager
def kept() -> Iterator[None]:
    """What is read inside is no garbage, now and later: looking through it again and again would take longer
    than reading 50,000 records."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.freeze()
            gc.enable()
