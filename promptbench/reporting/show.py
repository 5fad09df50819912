"""One finished trial, in full: `promptbench show`."""

from collections.abc import Callable
from pathlib import Path

from promptbench.errors import UserError
from promptbench.training.files import RECORD
from promptbench.trials.record import BriefRecord, Fault, Record, each_record, examine


def find_record(run: str, out: Path) -> tuple[Record, Path]:
    """The record in the folder ``run``, or else the one under ``out`` whose hash starts with ``run``; and its
    folder.

    Raises UserError if there is none, if it cannot be read, or if several hashes start like that.
    """
    folder = Path(run).parent if run and Path(run).name == RECORD else Path(run)
    found = examine(folder) if run and _is_folder(folder) else None
    if isinstance(found, Record):
        return found, folder
    if isinstance(found, Fault):
        raise found.error
    places = [
        place
        for place, brief in (each_record(out, BriefRecord) if run else ())
        if isinstance(brief, Record) and brief.hash.startswith(run)
    ]
    if len(places) != 1:
        what = "No run" if not places else f"{len(places)} runs"
        such = f" (such as {places[0]} and {places[1]})" if places else ""
        raise UserError(
            f"{what} under {out} with a hash starting with {run!r}{such}; give its folder under "
            f"{out / 'runs'}, whose name ends with the hash."
        )
    if isinstance(found := examine(places[0]), Record):
        return found, Path(places[0])
    raise UserError(f"{places[0]} was removed or changed just now; repeat the command.")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def describe(record: Record, folder: Path) -> list[tuple[str, str]]:
    """What one trial measured, its settings, where it ran, and whether the files in its folder match the
    record: pairs of a heading and a text."""
    seconds = record.seconds
    rows = [
        ("run", f"{record.trial.label} ({record.trial.benchmark}, {record.hash[:8]})"),
        *(
            (f"{c.classes}, {c.split}", f"{c.accuracy:.2f} % ({c.correct}/{c.total})")
            for c in record.evaluations
        ),
        ("trainable parameters", f"{record.trainable_parameters:,}"),
        ("steps", f"{record.steps:,}"),
        (
            "seconds",
            f"{seconds.train:.1f} train ({seconds.wait:.1f} waiting for data), {seconds.frozen:.1f} frozen, "
            f"{seconds.evaluate:.1f} evaluate",
        ),
        ("images per second", f"{_or_unknown(lambda: record.pictures_per_second)} in training"),
        *(("data", label) for label in record.labels),
        *(("note", note) for note in record.notes),
        ("peak memory", f"{_or_unknown(lambda: record.peak_memory_bytes / 2**20)} MiB"),
        ("proof", _proof(record, folder)),
        ("settings", ", ".join(f"{k}={v}" for k, v in record.trial.settings.items())),
        ("backbone", f"{record.trial.backbone}, weights {record.hashes.get('weights', 'unknown')[:12]}"),
        *((key, str(value)) for key, value in record.environment.items() if not isinstance(value, dict)),
        *(
            (key, ", ".join(f"{k} {v}" for k, v in value.items()))
            for key, value in record.environment.items()
            if isinstance(value, dict)
        ),
    ]
    last = record.evaluations[-1].per_class if record.evaluations else {}
    worst = sorted(last.items(), key=lambda kv: kv[1][0] / max(1, kv[1][1]))[:5]
    if worst:
        rows.append(("weakest classes", ", ".join(f"{name} {c}/{n}" for name, (c, n) in worst)))
    return rows


def _proof(record: Record, folder: Path) -> str:
    if not record.proven:
        return "none: the record is of schema 1"
    return record.damage(folder) or f"the digest and {len(record.files)} files beside the record match"


def _or_unknown(number: Callable[[], float]) -> str:
    """A number computed from a record, or "unknown": a record from elsewhere may contain anything."""
    try:
        return f"{number():,.0f}"
    except (ArithmeticError, TypeError, ValueError):
        return "unknown"
