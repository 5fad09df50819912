"""One HTML file with everything that records of finished runs say. It is self-contained: it can be emailed.

`collect` reads each record once and keeps sums; `build` makes the page from them.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promptbench
from promptbench.analysis.comparison import Material, comparable, is_whole_test, refuse_newer
from promptbench.analysis.confusions import Album, Mistakes, Who
from promptbench.analysis.statistics import all_pairs
from promptbench.analysis.summary import measured
from promptbench.console import plain
from promptbench.data.cards import cards
from promptbench.errors import UserError, unknown
from promptbench.reporting import sentences as wording
from promptbench.reporting.html import classes as class_tables
from promptbench.reporting.html import tables as report_tables
from promptbench.reporting.html.figures import Embedded, figures
from promptbench.reporting.html.tables import Fold, Table
from promptbench.reporting.tables import notes
from promptbench.storage import write_atomic
from promptbench.trials.benchmarks import BENCHMARKS, DEFAULT, get_benchmark
from promptbench.trials.record import BriefRecord, Fault, Record, each_record, kept, read_record

if TYPE_CHECKING:
    from promptbench.data.dataset import Dataset

MAX_BROKEN = 20  # paths of records that cannot be read
MAX_SEEDS = 5  # of a method on a dataset, for classes and confusions; all count in every other table


@dataclass
class Section:
    """All about one benchmark. ``verdicts`` are (what, sentence)."""

    name: str
    about: str
    lead: str
    verdicts: list[tuple[str, str]]
    caution: str
    averages: Table
    notes: list[str]
    figures: list[Embedded]
    datasets: list[Fold]
    shots: int
    classes: list[Fold]
    confusions: list[Fold]
    settings: Fold


@dataclass
class Collected:
    """What is kept of the records under ``out``: the records without classes and confusions, and the sums of
    these in ``mistakes``; one record's hash for each `Who`; files that are no records; and how many
    records no table counts."""

    out: Path
    records: list[Record] = field(default_factory=list)
    mistakes: Mistakes = field(default_factory=Mistakes)
    first: dict[Who, str] = field(default_factory=dict)
    broken: list[Path] = field(default_factory=list)
    aside: int = 0


def write_report(
    out: Path,
    file: Path,
    benchmarks: Sequence[str] = (),
    backbone: str | None = None,
    find: "Callable[[str], Dataset] | None" = None,
) -> dict[str, str]:
    """Write the report of the records under ``out`` to ``file``; by dataset, why images are not shown.

    ``benchmarks``: only these, else all there are records of. ``find`` gives a dataset by name for its
    images, or raises UserError. Raises UserError where `comparison.load_records` and `summary.frame` do,
    except that records which cannot be read are listed in the report.
    """
    album = Album(find or finder())
    write_atomic(file, build(collect(out, benchmarks, backbone), benchmarks, backbone, album))
    return album.missing


def finder(own: "Sequence[Dataset]" = (), root: Path | None = None) -> "Callable[[str], Dataset]":
    """Which datasets a report shows images of: those the user named (``own``) and shipped ones, embedded or
    under the data root; ``finder()(name)`` gives one or raises UserError.

    A record may come from anybody: what it calls its dataset opens no card and no folder.
    """
    from promptbench.data.dataset import load

    named = {one.name: one for one in own}
    if len(named) < len(own):
        twice = next(one.name for one in own if named[one.name] is not one)
        raise UserError(f"Two datasets are called {twice!r}; give one of them with --dataset.")

    def find(name: str) -> "Dataset":
        if name in named:
            return named[name]
        if name in cards() or name.rpartition(":")[0] in cards():
            return load(name, root)
        hint = "A report opens shipped datasets and what --dataset names (a card or a folder), nothing else."
        raise unknown("dataset", name, [*named, *cards()], hint)

    return find


def collect(out: Path, benchmarks: Sequence[str] = (), backbone: str | None = None) -> Collected:
    """Read every record once. Only what the report of these benchmarks and this backbone needs is summed."""
    with kept():
        return _collect(out, benchmarks, backbone)


def _collect(out: Path, benchmarks: Sequence[str], backbone: str | None) -> Collected:
    found = Collected(out)
    environments: dict[str, dict[str, Any]] = {}
    taken: Counter[tuple[Who, str]] = Counter()
    for folder, record in each_record(out, BriefRecord):
        if isinstance(record, Fault):
            refuse_newer([record])
            found.broken.append(record.path)
            continue
        if record.trial.benchmark not in BENCHMARKS:  # nothing is known of how it is read
            found.aside += 1
            continue
        if not benchmarks or record.trial.benchmark in benchmarks:
            who = Who.of(record.trial)
            if not is_whole_test(record):
                found.aside += 1
            elif backbone in (None, record.trial.backbone) and taken[who, record.trial.dataset] < MAX_SEEDS:
                whole = read_record(folder)
                if whole is None:  # deleted or replaced since
                    continue
                found.mistakes.add(who, whole)
                found.first.setdefault(who, record.hash)
                taken[who, record.trial.dataset] += 1
        record.environment = environments.setdefault(str(record.environment), record.environment)
        found.records.append(record)
    return found


def build(found: Collected, benchmarks: Sequence[str], backbone: str | None, album: Album) -> str:
    """The page. Raises UserError as `write_report`."""
    sections, used = [], []
    for name in _benchmarks(found, benchmarks, backbone):
        records = comparable(found.records, found.out, name, backbone)
        sections.append(_section(name, found, records, album))
        used += records
    texts = Counter(text for record in used for text in (*record.labels, *record.notes))
    return _render(
        sections=sections,
        out=found.out.resolve().name,
        count=len(used),
        broken=[str(path.relative_to(found.out)) for path in found.broken[:MAX_BROKEN]],
        more_broken=max(0, len(found.broken) - MAX_BROKEN),
        aside=found.aside,
        codes=len({record.hashes.get("code") for record in used}),
        environments=report_tables.environments(used),
        hashes=report_tables.hashes(used),
        texts=sorted(texts.items()),
        album=album,
        max_seeds=MAX_SEEDS,
        version=promptbench.__version__,
    )


# ---------------------------------------------------------------------- a benchmark's section


def _benchmarks(found: Collected, asked: Sequence[str], backbone: str | None) -> list[str]:
    """Those asked for, else those with records to compare; at least one, so that having none is an error."""
    if asked:
        return list(dict.fromkeys(asked))
    whole = [record.trial for record in found.records if is_whole_test(record)]
    fitting = {trial.benchmark for trial in whole if backbone in (None, trial.backbone)}
    names = fitting or {trial.benchmark for trial in whole} or {DEFAULT}
    return sorted(names, key=lambda name: list(BENCHMARKS).index(get_benchmark(name).name))


def _section(name: str, found: Collected, records: Sequence[Record], album: Album) -> Section:
    material = Material(records, found.out, name, records[0].trial.backbone)
    table, summary = material.table, material.summary
    verdicts = wording.verdicts(material, all_pairs(measured(table)))
    labels = material.labels
    most = int(summary["shots"].max())
    named = {
        labels[hash_[:8]]: who
        for who, hash_ in found.first.items()
        if who.benchmark == name and who.shots in (0, most)
    }
    methods = list(dict.fromkeys(summary["method"]))
    whose = {method: named[method] for method in methods if method in named}
    strong = {(method, v.shots, v.metric) for v in verdicts for method in v.top}
    by_method = sorted(
        ((labels[record.hash[:8]], record) for record in records), key=lambda one: methods.index(one[0])
    )
    several = len({verdict.shots for verdict in verdicts}) > 1
    return Section(
        name=name,
        about=get_benchmark(name).summary,
        lead=wording.lead(material),
        verdicts=[(wording.title(verdict, several), wording.sentence(verdict)) for verdict in verdicts],
        caution=wording.caution(verdicts),
        averages=report_tables.averages(material.overall, strong),
        notes=notes(summary),
        figures=figures(material),
        datasets=report_tables.by_dataset(summary),
        shots=most,
        classes=class_tables.per_class(found.mistakes, whose),
        confusions=class_tables.confusions(found.mistakes, whose, album),
        settings=report_tables.settings(by_method),
    )


# ---------------------------------------------------------------------- the page


def _render(**values: Any) -> str:
    """Fill in the template. Everything is escaped, and by the page's policy only the package's own style and
    script act, which it knows by their hashes."""
    import jinja2

    def shown(value: Any) -> Any:
        """Text from records without characters that hide; the page's own stays as it is."""
        return plain(value) if type(value) is str else value

    loader = jinja2.PackageLoader("promptbench.reporting.html", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = {kind: loader.get_source(environment, f"report.{kind}")[0] for kind in ("css", "js")}
    digests = {
        f"{kind}_hash": base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in parts.items()
    }
    return environment.get_template("report.html").render(**values, **parts, **digests)
