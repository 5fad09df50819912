"""Records: what a finished trial measured. Every table, plot and check reads records only.

Schema 2. Counts, never rounded percentages. ``seconds``, ``peak_memory_bytes`` and ``environment`` vary
between equal runs; everything else of an equal trial on a CPU is equal.

A record proves itself: the file ends with a digest of all that precedes it, counts add up, and ``files``
holds the hashes of the files beside it. Records of schema 1 have neither digest nor ``files``: they are
read, their counts are checked, and tables say that they have no proof.
"""

import gc
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from promptbench.errors import UserError
from promptbench.storage import hash_file, write_atomic
from promptbench.training.counts import Confused, Counts
from promptbench.training.files import RECORD, SideFile
from promptbench.trials.trial import Trial

SCHEMA: Final = 2
_LARGEST = 64 << 20  # bytes; a record of ImageNet has about 0.1 MB
_DIGEST = re.compile(rb',\n "digest": "([0-9a-f]{64})"\n\}\s*\Z')


class Seconds(BaseModel):
    """Wall-clock seconds: training steps, frozen features (0 from a warm cache), evaluation; and how much
    of the training steps was spent waiting for images."""

    model_config = ConfigDict(extra="forbid")

    train: float = 0.0
    frozen: float = 0.0
    evaluate: float = 0.0
    wait: float = 0.0


class Record(BaseModel):
    """A finished trial."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1, 2] = SCHEMA
    hash: str
    trial: Trial
    evaluations: list[Counts]
    trainable_parameters: int
    steps: int
    final_loss: float | None
    #: of the backbone's weights, the data, the code and, where images were drawn, the few-shot draw
    hashes: dict[str, str]
    #: SHA-256 of the files beside the record, by name
    files: dict[SideFile, str] = {}
    seconds: Seconds
    peak_memory_bytes: int
    environment: dict[str, Any]
    #: what a reader must know about the data, such as "dtd: non-standard split"
    labels: list[str] = []
    #: by tower, relative change of the read-out token after each block (promptbench.training.influence)
    influence: dict[str, list[float]] = {}
    #: what else a reader of the figures must know, such as "taskres: no residual, so zero-shot text, for ..."
    notes: list[str] = []

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        numbers = [self.trainable_parameters, self.steps, self.peak_memory_bytes]
        numbers += [self.trial.shots, self.trial.seed]
        for one in self.evaluations:
            numbers += [one.total, *(n for counts in one.per_class.values() for n in counts)]
            numbers += [confused.count for confused in one.confused]
        if not self.evaluations or min(numbers) < 0 or max(numbers) >= 2**63:
            raise ValueError("nothing was measured, or a number is negative or beyond 63 bits")
        return self

    @property
    def pictures_per_second(self) -> float:
        """Training images per second, 0 where nothing was trained."""
        seen = self.steps * int(self.trial.settings.get("batch_size", 0))
        return seen / self.seconds.train if self.seconds.train else 0.0

    @property
    def proven(self) -> bool:
        """Whether the record was read with a digest that fits. Schema 1 had none."""
        return self.schema_version > 1

    def write(self, folder: Path) -> None:
        """Write ``record.json`` with its digest, whole or not at all. Where it is, the trial is done."""
        body = self.model_dump_json(indent=1).removesuffix("\n}")
        digest = hashlib.sha256(body.encode()).hexdigest()
        write_atomic(folder / RECORD, f'{body},\n "digest": "{digest}"\n}}\n')

    def damage(self, folder: Path, trial: Trial | None = None) -> str:
        """What of the files in ``folder`` is not as the record says, or that the record is of another trial
        than ``trial``; empty if all is as it should be."""
        if trial is not None and self.hash != trial.hash:
            return f"{RECORD} is that of another trial"
        for name, expected in self.files.items():
            try:
                if hash_file(folder / name) != expected:
                    return f"{name} was changed or cut off after it was written"
            except OSError as error:
                return f"{name} cannot be read ({error.strerror})"
        return ""


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


class Fault(NamedTuple):
    """A record file that is no record: made by a newer version, or damaged; ``why`` in a few words."""

    path: Path
    newer: bool
    why: str
    unread: bool = False  # the system did not give its contents: it may be whole

    @property
    def error(self) -> UserError:
        """What a command says that needs this one record."""
        fix = "update promptbench" if self.newer else "delete it and run the trial again"
        return UserError(f"{self.path} is no record that can be read ({self.why}); {fix}.")


def examine(folder: Path | str, kind: type[Record] = Record) -> Record | Fault | None:
    """The record in a trial's folder, None if there is no file, or what is wrong with it."""
    path = os.path.join(folder, RECORD)  # noqa: PTH118  # twice as fast
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  # reading a pipe would wait for ever
            return Fault(Path(path), False, "not a regular file")
        with open(path, "rb") as file:  # noqa: PTH123
            text = file.read(_LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Fault(Path(path), False, error.strerror or type(error).__name__, unread=True)
    if len(text) > _LARGEST:
        return Fault(Path(path), False, f"larger than {_LARGEST >> 20} MB, as no record is")
    return parse(text, path, kind)


def parse(text: bytes, path: str, kind: type[Record] = Record) -> Record | Fault:
    """The record that the bytes of the file ``path`` hold, or what is wrong with them."""
    text = text.replace(b"\r\n", b"\n")
    found = _DIGEST.search(text)
    body = text[: found.start()] + b"\n}" if found else text
    proven = found is not None and hashlib.sha256(text[: found.start()]).hexdigest().encode() == found[1]
    try:
        if not proven:  # nothing vouches for what a brief reading leaves out
            Record.model_validate_json(body)
        record = kind.model_validate_json(body)
    except ValidationError as error:
        newer = _is_newer(text, error)
        return Fault(Path(path), newer, "made by a newer version" if newer else "not as records are")
    if record.proven and not proven:
        return Fault(Path(path), False, "changed after it was written")
    if record.hash != record.trial.hash:
        return Fault(Path(path), False, "of another trial than its hash says")
    return record


def _is_newer(text: bytes, error: ValidationError) -> bool:
    """Whether a record that is not as this version writes them comes from a newer one: it says so, or it has
    all that we know and more."""
    try:
        document = json.loads(text)
        if int(document["schema_version"]) > SCHEMA:
            return True
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return False
    wrong = [(one["type"], len(one["loc"])) for one in error.errors(include_input=False)]
    return set(wrong) == {("extra_forbidden", 1)} and document.keys() > {*Record.model_fields, "digest"}


def read_record(folder: Path | str, kind: type[Record] = Record) -> Record | None:
    """The record in a trial's folder, None if there is none or it cannot be read."""
    record = examine(folder, kind)
    return record if isinstance(record, Record) else None


def each_record(out: Path, kind: type[Record] = Record) -> Iterator[tuple[str, Record | Fault]]:
    """The folders of an output folder that hold a record file, in path order, and their records, read one at
    a time, or what is wrong with them. Copies of a record count once: the others are left out."""
    seen: dict[str, list[tuple[int, int]]] = {}
    for folder in sorted(_folders(out / "runs")):
        record = examine(folder, kind)
        if isinstance(record, Record):
            counts = [(one.correct, one.total) for one in record.evaluations]
            if seen.setdefault(record.hash, counts) is not counts and seen[record.hash] == counts:
                continue
        if record is not None:
            yield folder, record


def _folders(root: Path) -> Iterator[str]:
    """Folders under ``root`` with a record file, also behind links to folders, each link followed once."""
    followed = {os.path.realpath(root)}
    for folder, below, files in os.walk(root, followlinks=True):
        for name in list(below):
            path = os.path.join(folder, name)  # noqa: PTH118
            if os.path.islink(path):  # noqa: PTH114
                target = os.path.realpath(path)
                if target in followed:
                    below.remove(name)
                followed.add(target)
        if RECORD in files:
            yield folder


def read_records(out: Path, kind: type[Record] = Record) -> tuple[list[Record], list[Fault]]:
    """All records of an output folder, in path order, and the files that are no valid records."""
    records, broken = [], []
    with kept():
        for _, record in each_record(out, kind):
            if isinstance(record, Fault):
                broken.append(record)
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
