"""The command line. Every command imports what it needs when it runs, so that --help answers at once."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptbench.cli.options import Compiled, DataRoot, RunOptions, with_run_options
from promptbench.console import plain, say, steady
from promptbench.errors import UserError
from promptbench.reporting import plots as figures

if TYPE_CHECKING:
    from promptbench.data.dataset import Dataset
    from promptbench.execution.execute import Outcome
    from promptbench.methods._base import Method
    from promptbench.trials.record import Record
    from promptbench.trials.sweep import Setup, Sweep
    from promptbench.trials.trial import Trial

app = typer.Typer(
    name="promptbench",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _examples(*lines: str) -> str:
    """An epilog that keeps its lines: rich joins lines that are not paragraphs."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])


Out = Annotated[Path, typer.Option("--out", help="Folder of the results.", show_default=True)]


def main() -> None:
    """Entry point: a user's mistake is one sentence on standard error and exit code 2."""
    with steady():
        try:
            app()
        except UserError as error:
            say(f"Error: {plain(str(error))}", err=True)
            raise SystemExit(2) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        import promptbench

        say(promptbench.__version__)
        raise typer.Exit


@app.callback(
    epilog=_examples("promptbench run mmlop --benchmark base2novel", "promptbench compare --plot tradeoff")
)
def _app(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Prompt learning on CLIP: train, evaluate and compare methods on one engine."""
    try:
        Path.cwd()  # libraries end the process without a word about it
    except OSError:
        raise UserError("The folder this command was started in is gone; change to another.") from None


@app.command(
    epilog=_examples(
        "promptbench run coop maple mmlop zeroshot --benchmark base2novel --seeds 1,2,3",
        "promptbench run mmlop --dataset icons --set rank=2 --epochs 3",
    )
)
@with_run_options
def run(
    methods: Annotated[list[str], typer.Argument(metavar="METHOD...", help="See `promptbench ls methods`.")],
    options: RunOptions,
) -> None:
    """Train methods and evaluate them; a trial that is done is not run again, one cut off goes on."""
    from promptbench.methods._registry import get_recipe
    from promptbench.trials.sweep import Sweep

    names = [get_recipe(name).name for name in methods]
    _print_tables(_perform(_asked(Sweep(grid={name: {} for name in names}), options), options)[1])


@app.command(
    epilog=_examples(
        "promptbench sweep examples/ranks.yaml --dry-run",
        "promptbench sweep examples/ranks.yaml --shard $SLURM_ARRAY_TASK_ID/16 --out ranks",
    )
)
@with_run_options
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep, see docs/sweep.md.")],
    options: RunOptions,
) -> None:
    """Run every combination of the values in a YAML file; options given here win over the file."""
    from promptbench.trials.sweep import read_sweep

    _print_tables(_perform(_asked(read_sweep(file), options), options)[1])


@app.command(
    epilog=_examples(
        "promptbench ablate mmlop --seeds 1,2,3",
        "promptbench ablate mmlop --seeds 1,2,3 --out results/ablation --format md",
    )
)
@with_run_options
def ablate(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method with ablation recipes.")],
    options: RunOptions,
    group: Annotated[
        list[str] | None, typer.Option(help="Only this table, such as chain; may be repeated.")
    ] = None,
    style: Annotated[str, typer.Option("--format", help="table or md.")] = "table",
) -> None:
    """Run a method's ablation recipes and set each step beside the published one; done trials are kept."""
    from promptbench.analysis.ablation import measure, steps_of, tabulate
    from promptbench.reporting.tables import markdown
    from promptbench.trials.sweep import Sweep

    _one_of("--format", style, ("table", "md"))
    groups = steps_of(method)
    for name in group or ():
        _one_of("--group", name, tuple(groups))
    groups = {name: steps for name, steps in groups.items() if name in (group or groups)}
    names = dict.fromkeys(recipe.name for group in groups.values() for _, recipe in group)
    asked = _asked(Sweep(grid={name: {} for name in names}, shots=(16,)), options)
    if len(asked.shots or ()) > 1:
        raise UserError("An ablation is of one number of shots; give one with --shots.")
    setup, outcome = _perform(asked, options)
    if options.dry_run:
        return
    if options.shard:
        _print_tables(outcome)
        say("The tables of the ablation need all parts: the same command without --shard.", err=True)
        return
    trials = {name: setup.trials([name]) for name in names}
    records = {record.hash: record for record in outcome.records}
    for title, steps in groups.items():
        measured = [measure(step, recipe, trials[recipe.name], records) for step, recipe in steps]
        table = tabulate(measured, trials[steps[0][1].name][0])
        say(f"### {method}: {title}\n" if style == "md" else f"{method}: {title}")
        for rows in (table.values, table.differences):
            _print_rows(rows) if style == "table" else say(_markdown(rows) + "\n")
        notes = table.notes if style == "table" else map(markdown, table.notes)
        say(("\n" if style == "table" else " ").join(notes) + "\n")
    _raise_failure(outcome)


@app.command(
    epilog=_examples(
        "promptbench regress --baseline results/baseline.json",
        "promptbench regress --update-baseline --recipe examples/nightly.yaml",
    )
)
def regress(
    baseline: Annotated[Path, typer.Option(help="What to hold the run against.")] = Path(
        "results/baseline.json"
    ),
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write the baseline instead.")
    ] = False,
    recipe: Annotated[
        Path | None, typer.Option(help="A new baseline's sweep; default: the old baseline's own.")
    ] = None,
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs; default: a temporary one.")] = None,
) -> None:
    """Run the baseline's recipe anew; exit code 1 if accuracy fell, steps got slower, or runs are missing."""
    from promptbench.checks.regress import check, summary, update

    if update_baseline:
        made = update(baseline, recipe, data_root, out)
        say(f"wrote {baseline}: {len(made.results)} results, steps of {', '.join(made.steps)}")
        return
    if recipe is not None:
        raise UserError("--recipe is for a new baseline: add --update-baseline.")
    report, against = check(baseline, data_root, out)
    text = summary(report, against)
    say(text, end="")
    if step_summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(step_summary).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(plain(text, keep="\n"))
        except (OSError, ValueError) as error:
            say(f"GITHUB_STEP_SUMMARY={step_summary} was not written ({error}).", err=True)
    if report.problems:
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "promptbench profile coop mmlop --reference",
        "promptbench profile --backbone ViT-B-16-quickgelu --classes 50,500 --format csv",
    )
)
def profile(
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="[METHOD...]", help="Default: five prompt methods."),
    ] = None,
    backbone: Annotated[str, typer.Option(help="See `promptbench ls backbones`.")] = "pocket",
    pretrained: Annotated[
        str | None, typer.Option(help="Weights; without them random ones: speed does not depend on values.")
    ] = None,
    classes: Annotated[str, typer.Option(help="Numbers of classes, such as 50,500.")] = "50,500",
    batch: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 4,
    reference: Annotated[
        bool, typer.Option("--reference", help="Also the same step the official way, in turn, and the ratio.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each kind; the median counts.")] = 3,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: CUDA if any.")] = None,
    precision: Annotated[
        str, typer.Option(help="auto (bf16 on CUDA, fp32 on CPU), fp32, bf16 or fp16.")
    ] = "auto",
    compiled: Compiled = False,
    format_: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> None:
    """Measure a training step: seconds by part, memory, arithmetic, and the gain over the official way."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its profiler warns about tensors from before
    import json
    from dataclasses import asdict

    from promptbench.checks.profile import csv_line, profile, render, sentence
    from promptbench.clip.arithmetic import resolve_precision, suitable_threads
    from promptbench.clip.frozen_clip import FrozenCLIP
    from promptbench.data.cards import POCKET
    from promptbench.methods._registry import get_recipe
    from promptbench.training.device import default_device

    _one_of("--precision", precision, ("auto", "fp32", "bf16", "fp16"))
    _one_of("--format", format_, ("table", "csv", "json"))
    counts = _numbers("--classes", classes, least=1)
    recipes = [get_recipe(name) for name in methods or ("coop", "ivlp", "maple", "promptsrc", "mmlop")]
    where = default_device(device)
    if pretrained is None and backbone != POCKET:
        clip = FrozenCLIP.untrained(backbone, where)
    else:
        clip = FrozenCLIP.load(backbone, pretrained, where)
    if compiled:
        clip.compile()
    rows = []
    with suitable_threads(where, clip.shape):
        if format_ == "csv":
            say(csv_line(None))
        exact = resolve_precision(where, precision)
        for row in profile(recipes, clip, counts, batch, reference, repeats, exact):
            rows.append(row)  # a large backbone takes minutes for a row: none is lost if it is stopped
            if format_ == "csv":
                say(csv_line(row))
            else:
                say(sentence(row), err=True)
    if format_ == "json":
        say(json.dumps([asdict(row) for row in rows], indent=1))
    elif format_ == "table":
        say(render(rows, backbone), end="")


@app.command(
    epilog=_examples(
        "promptbench compare --plot tradeoff --x seconds --plot heatmap",
        "promptbench compare --source published --plot tradeoff --backbone ViT-B-16-quickgelu",
    )
)
def compare(
    benchmark: Annotated[str, typer.Option(help="See `promptbench ls benchmarks`.")] = "base2novel",
    backbone: Annotated[str | None, typer.Option(help="Only records of this backbone.")] = None,
    style: Annotated[str, typer.Option("--format", help="table, md, csv, latex or json.")] = "table",
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Show only these rows: a dataset, or average; may be repeated."),
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="95 % intervals in every row instead of ± std.")
    ] = False,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="The table of all methods in pairs instead: differences, tests.")
    ] = False,
    source: Annotated[
        str, typer.Option(help="measured, published (results/published.csv alone) or both.")
    ] = "measured",
    published: Annotated[bool, typer.Option("--published", help="The same as --source both.")] = False,
    plot: Annotated[
        list[str] | None,
        typer.Option(help=f"Draw a figure too; may be repeated: {', '.join(figures.names())}."),
    ] = None,
    metric: Annotated[str, typer.Option(help="What figures show: hm, base, novel or all.")] = "hm",
    x: Annotated[
        str, typer.Option("--x", help="Cost in the trade-off: params, seconds, memory or gflop.")
    ] = "params",
    plots: Annotated[Path | None, typer.Option(help="Folder for figures; default: plots in --out.")] = None,
    out: Out = Path("results"),
) -> None:
    """Table, statistics and figures of all records in the results folder. Nothing is trained."""
    from promptbench.analysis.comparison import load_material
    from promptbench.analysis.statistics import all_pairs
    from promptbench.analysis.summary import measured
    from promptbench.errors import unknown
    from promptbench.reporting import pairs as pair_tables
    from promptbench.reporting.sentences import pair_summary
    from promptbench.reporting.tables import caption, render
    from promptbench.trials.benchmarks import get_benchmark

    costs = {"params": "parameters", "seconds": "seconds", "memory": "memory", "gflop": "gflop"}
    _one_of("--format", style, ("table", "md", "csv", "latex", "json"))
    _one_of("--metric", metric, ("hm", "base", "novel", "all"))
    _one_of("--source", source, ("measured", "published", "both"))
    _one_of("--x", x, tuple(costs))
    for name in plot or ():
        _one_of("--plot", name, figures.names())
    count = None
    if x == "gflop":
        from promptbench.checks.training_step import record_gflop

        count = record_gflop
    material = load_material(
        out,
        get_benchmark(benchmark).name,
        backbone,
        metric,
        costs[x],
        "both" if published else source,  # type: ignore[arg-type]  # checked above
        count,
    )
    shown = material.shown
    for name in dataset or ():
        if name not in set(shown["dataset"]):
            raise unknown("dataset of the table", name, shown["dataset"].unique())
    tested = all_pairs(measured(material.table)) if material.records else None
    if pairs:
        if tested is None or tested.empty:
            raise UserError("--pairs needs records of two methods with every dataset and a common seed.")
        say(pair_tables.render(tested, style, caption(shown)))  # type: ignore[arg-type]
    else:
        say(render(shown, style, benchmark, dataset, intervals))  # type: ignore[arg-type]
        if style == "table" and tested is not None:
            say(pair_summary(tested))
    if plot:
        from promptbench.reporting.plots import draw

        for name in dict.fromkeys(plot):
            drawing = draw(name, material)
            for line in drawing.said:
                say(line, err=True)
            for path in drawing.save(plots or out / "plots"):
                say(f"wrote {path}", err=True)


@app.command(
    epilog=_examples(
        "promptbench report --out results/reference",
        "promptbench report --benchmark base2novel --data-root ~/data --file base2novel.html",
    )
)
def report(
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="Only this one of `promptbench ls benchmarks`; may be repeated. Default: all."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Only records of this backbone.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="The file to write; default: report.html in --out.")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Card (.yaml) or folder of pictures of a dataset of your own, for examples of confusions; "
            "may be repeated. Other folders are never opened, whatever a record names."
        ),
    ] = None,
    data_root: DataRoot = None,
    out: Out = Path("results"),
) -> None:
    """One HTML file of all records: summary, tables, figures, classes, confusions, settings. To be mailed."""
    from promptbench.data import dataset as data
    from promptbench.reporting.html.report import finder, write_report
    from promptbench.trials.benchmarks import get_benchmark

    own = [data.load(name, data_root) for name in dict.fromkeys(dataset or ())]
    _tell(own)
    path = file or out / "report.html"
    missing = write_report(
        out,
        path,
        [get_benchmark(name).name for name in benchmark or ()],
        backbone,
        finder(own, data_root),
    )
    for name, reason in sorted(missing.items()):
        say(f"no pictures of {name}: {reason}", err=True)
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", err=True)


data_app = typer.Typer(no_args_is_help=True, help="Check and prepare the standard datasets.")
app.add_typer(data_app, name="data")


@data_app.command(
    "check",
    epilog=_examples(
        "promptbench data check --data-root ~/data", "promptbench data check dtd eurosat --full"
    ),
)
def data_check(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Datasets; default: all.")
    ] = None,
    data_root: DataRoot = None,
    full: Annotated[bool, typer.Option("--full", help="Decode every picture, not a sample.")] = False,
) -> None:
    """Whether the datasets are what their cards say. Exit code 1 if anything is missing or off."""
    from promptbench.data.check import check

    found = check(names or [], data_root, full)
    _print_rows([one.row() for one in found])
    for one in found:
        for problem in [*one.problems, *one.notes]:
            say(f"{one.name}: {problem}")
    if any(one.problems for one in found):
        raise typer.Exit(1)


@data_app.command(
    "prepare",
    epilog=_examples(
        "promptbench data prepare --data-root ~/data", "promptbench data prepare imagenet sun397"
    ),
)
def data_prepare(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Datasets; default: all.")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Unpack archives you downloaded into their layout, sort ImageNet's val pictures, list folders once.

    This writes into the data root; nothing else ever does. Nothing is downloaded.
    """
    from promptbench.data.dataset import data_root as resolve
    from promptbench.data.prepare import prepare

    root = resolve(data_root)
    if root is None:
        raise UserError("Give the folder of the datasets with --data-root or PROMPTBENCH_DATA.")
    for line in prepare(names or [], root):
        say(line)


@data_app.command(
    "import-draw",
    epilog=_examples(
        "promptbench data import-draw dtd/split_fewshot/shot_16-seed_1.pkl --dataset dtd",
        "promptbench run coop --dataset dtd --draws draws",
    ),
)
def data_import_draw(
    file: Annotated[Path, typer.Argument(help="A pickle shot_<K>-seed_<S>.pkl of the official code.")],
    dataset: Annotated[str, typer.Option(help="The dataset it was drawn from.")],
    data_root: DataRoot = None,
    draws: Annotated[Path, typer.Option(help="Folder to write the draw to, for `run --draws`.")] = Path(
        "draws"
    ),
) -> None:
    """Turn a few-shot draw of the official code into JSON, and say whether it equals our own draw."""
    import re

    from promptbench.data.dataset import load
    from promptbench.data.draws import draw_few_shot, draw_file, write_draw
    from promptbench.data.official_draws import import_draw

    found = re.fullmatch(r"shot_(\d+)-seed_(\d+)\.pkl", file.name)
    if not found:
        raise UserError(f"{file.name} does not say its shots and seed; name it shot_<K>-seed_<S>.pkl.")
    shots, seed = int(found[1]), int(found[2])
    known = load(dataset, data_root, allow_nonstandard=True)
    train, val = import_draw(file, known)
    own, _ = draw_few_shot(known.splits["train"], known.splits["val"], shots, seed)
    path = draw_file(draws, known.name, shots, seed)
    write_draw(path, train, val)
    same = "equal to our own draw" if train == own else "not our own draw; use it with --draws"
    say(f"wrote {path}: {len(train)} training pictures, {same}")


cache_app = typer.Typer(no_args_is_help=True, help="Frozen features kept on disk (PROMPTBENCH_CACHE).")
app.add_typer(cache_app, name="cache")


@cache_app.command(
    "ls", epilog=_examples("promptbench cache ls", "PROMPTBENCH_CACHE=/scratch/features promptbench cache ls")
)
def cache_ls() -> None:
    """What is kept, by backbone and dataset, and how much of the bound (PROMPTBENCH_CACHE_GB) it takes."""
    import time
    from collections import defaultdict

    from promptbench.clip.cache import FeatureCache
    from promptbench.storage import default_folder

    cache = FeatureCache(default_folder())
    groups = defaultdict(list)
    for entry in cache.entries():
        of = entry.about.get("dataset") or [""]
        kind = "training views" if entry.about.get("draw") else entry.about.get("what", "?")
        groups[entry.about.get("weights", "?")[:8], kind, of[0]].append(entry)
    rows = []
    for (weights, kind, dataset), entries in sorted(groups.items()):
        rows.append({"weights": weights, "features": kind, "dataset": dataset, "files": str(len(entries))})
        rows[-1]["MB"] = f"{sum(entry.size for entry in entries) / 1e6:.1f}"
        latest = time.localtime(max(entry.used for entry in entries))
        rows[-1]["last used"] = time.strftime("%Y-%m-%d %H:%M", latest)
    if rows:
        _print_rows(rows)
    total = sum(entry.size for group in groups.values() for entry in group)
    say(f"{cache.folder}: {total / 1e6:.1f} MB of at most {cache.bound / 1e6:,.0f} MB")
    files, size = cache.leftovers()
    if files:
        say(
            f"left by killed commands: {files} files, {size / 1e6:.1f} MB; "
            "`promptbench cache clear` deletes them"
        )


@cache_app.command(
    "clear",
    epilog=_examples(
        "promptbench cache clear", "PROMPTBENCH_CACHE=/scratch/features promptbench cache clear"
    ),
)
def cache_clear() -> None:
    """Delete all kept features, and what killed commands left; features are computed anew when needed."""
    from promptbench.clip.cache import FeatureCache
    from promptbench.storage import default_folder

    files, size = FeatureCache(default_folder()).clear()
    say(f"deleted {files} files, {size / 1e6:.1f} MB")


@app.command(
    epilog=_examples("promptbench verify --out results", "promptbench verify --benchmark crossdataset")
)
def verify(
    benchmark: Annotated[str, typer.Option(help="See `promptbench ls benchmarks`.")] = "base2novel",
    backbone: Annotated[str | None, typer.Option(help="Default: ViT-B-16-quickgelu.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Weights for zero-shot; default: openai.")] = None,
    data_root: DataRoot = None,
    style: Annotated[str, typer.Option("--format", help="table, md, csv or json.")] = "table",
    out: Out = Path("results"),
) -> None:
    """Finished runs beside the published numbers: pass, or off by how much. Exit code 1 if any is off.

    With a data root, zero-shot CLIP runs first where it has not yet and the datasets are there.
    """
    from promptbench.analysis.comparison import load_records
    from promptbench.analysis.published import BACKBONES, WEIGHTS
    from promptbench.analysis.verification import verify as compare_with
    from promptbench.data.dataset import data_root as resolve
    from promptbench.reporting.tables import markdown
    from promptbench.trials.benchmarks import get_benchmark
    from promptbench.trials.trial import PRESETS

    _one_of("--format", style, ("table", "md", "csv", "json"))
    name = get_benchmark(benchmark).name
    backbone = backbone or PRESETS["paper"]["backbone"]
    if backbone not in BACKBONES:
        raise UserError(
            f"Nothing was published for the backbone {backbone!r}; verify is for {', '.join(BACKBONES)} on "
            "the standard datasets."
        )
    if resolve(data_root) is not None:
        _run_zeroshot(name, backbone, pretrained or WEIGHTS, data_root, out)
    found = compare_with(load_records(out, name, backbone), name, backbone)
    for note in found.attrs["notes"]:
        say(note, err=True)
    if found.empty:
        raise UserError(f"None of the records of {name} under {out} has a published number beside it.")
    if style == "json":
        say(found.to_json(orient="records", indent=1))
    elif style == "csv":
        say(found.to_csv(index=False), end="")
    elif style == "md":
        found = found.map(lambda value: markdown(value) if isinstance(value, str) else value)
        say(found.to_markdown(index=False))
    else:
        shown = found.drop(columns="source").astype(str)
        _print_rows([{str(key): text for key, text in row.items()} for row in shown.to_dict("records")])
    if (found["verdict"] != "pass").any():
        raise typer.Exit(1)


@app.command(
    "ls", epilog=_examples("promptbench ls methods", "promptbench ls methods --backbone ViT-B-16-quickgelu")
)
def list_(
    what: Annotated[str, typer.Argument(help="methods, datasets, benchmarks or backbones.")],
    backbone: Annotated[str, typer.Option(help="Count the methods' parameters on it.")] = "pocket",
) -> None:
    """List what can be named on the command line."""
    listings: dict[str, Callable[[], list[dict[str, str]]]] = {
        "methods": lambda: _list_methods(backbone),
        "datasets": _list_datasets,
        "benchmarks": _list_benchmarks,
        "backbones": _list_backbones,
    }
    _one_of("LIST", what, tuple(listings))
    _print_rows(listings[what]())


@app.command(
    epilog=_examples(
        "promptbench show 3f2a91c0",
        "promptbench show results/runs/base2novel/mmlop/icons/shots16-seed1-3f2a91c0",
    )
)
def show(
    trial: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or the start of its hash.")],
    out: Out = Path("results"),
) -> None:
    """What one run measured, with its settings and where it ran."""
    record = _find_record(trial, out)
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
        ("pictures per second", f"{_or_unknown(lambda: record.pictures_per_second)} in training"),
        *(("data", label) for label in record.labels),
        *(("note", note) for note in record.notes),
        ("peak memory", f"{_or_unknown(lambda: record.peak_memory_bytes / 2**20)} MiB"),
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
    _print_rows([{"": key, " ": value} for key, value in rows])


# ---------------------------------------------------------------------- helpers


def _find_record(run: str, out: Path) -> "Record":
    """The record in the folder ``run``, else the one under ``out`` whose hash starts so. Raises UserError."""
    from promptbench.training.files import RECORD
    from promptbench.trials.record import BriefRecord, Fault, Record, each_record, examine

    folder = Path(run).parent if run and Path(run).name == RECORD else Path(run)
    found = examine(folder) if run and os.path.isdir(folder) else None  # noqa: PTH112  # whatever the name
    if isinstance(found, Record):
        return found
    if isinstance(found, Fault):
        fix = "update promptbench" if found.newer else "delete it and run the trial again"
        raise UserError(f"{found.path} is no record that can be read ({found.why}); {fix}.")
    places = [
        place
        for place, brief in (each_record(out, BriefRecord) if run else ())
        if isinstance(brief, Record) and brief.hash.startswith(run)
    ]
    if len(places) != 1:
        what = "No run" if not places else f"{len(places)} runs"
        such = f" (such as {places[0]} and {places[1]})" if places else ""
        raise UserError(
            f"{what} under {out} with a hash starting with {run!r}{such}; give its folder, or look with "
            f"`promptbench compare --out {out} --format csv`."
        )
    if isinstance(found := examine(places[0]), Record):
        return found
    raise UserError(f"{places[0]} was removed or changed just now; repeat the command.")


def _or_unknown(number: Callable[[], float]) -> str:
    """A number worked out from a record, or that it is unknown: a record from elsewhere may hold anything."""
    try:
        return f"{number():,.0f}"
    except (ArithmeticError, TypeError, ValueError):
        return "unknown"


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        from promptbench.errors import unknown

        raise unknown(f"value of {option}", value, known)


def _numbers(option: str, text: str, least: int = 0, most: int = 2**31 - 1) -> list[int]:
    """ "1,2,3" -> [1, 2, 3], without doubles."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes numbers such as 1,2,3, not {text!r}.") from None
    if not least <= min(values) <= max(values) <= most:
        wrong = min(values) if min(values) < least else max(values)
        raise UserError(f"{option} takes numbers from {least} to {most}, not {wrong}.")
    return list(dict.fromkeys(values))


def _asked(sweep: "Sweep", options: RunOptions) -> "Sweep":
    """``sweep`` with what the command line says in place of what the file says."""
    grid = {name: dict(values) for name, values in sweep.grid.items()}
    if options.epochs is not None:
        for values in grid.values():
            values.pop("epochs", None)
    for name, settings in _overrides(options.set_ or [], list(grid)).items():
        grid[name] |= {key: (value,) for key, value in settings.items()}
    given: dict[str, Any] = {
        "benchmark": (options.benchmark,) if options.benchmark is not None else None,
        "preset": options.preset,
        "suite": options.suite,
        "datasets": tuple(options.dataset) if options.dataset else None,
        "source": options.source,
        "seeds": tuple(_numbers("--seeds", options.seeds)) if options.seeds is not None else None,
        "shots": tuple(_numbers("--shots", options.shots, least=1)) if options.shots is not None else None,
        "epochs": options.epochs,
        "backbone": options.backbone,
        "pretrained": options.pretrained,
        "out": options.out,
    }
    update = {key: value for key, value in given.items() if value is not None}
    if "suite" in update:
        update.setdefault("datasets", None)
    if "backbone" in update:  # weights in the file are those of its own backbone
        update.setdefault("pretrained", None)
    return sweep.model_copy(update=update | {"grid": grid})


def _perform(asked: "Sweep", options: RunOptions) -> "tuple[Setup, Outcome]":
    """Plan and run, or only show the plan: what `run`, `sweep` and `ablate` have in common."""
    from promptbench.clip.cache import FeatureCache
    from promptbench.execution.execute import Outcome
    from promptbench.execution.progress import make_reporter
    from promptbench.storage import default_folder
    from promptbench.trials.sweep import part_of, prepare

    setup, out = prepare(asked, options), asked.out or Path("results")
    _tell(setup.datasets.values())
    trials = part_of(setup.trials(), options)
    if not trials:
        say(f"No trial falls to --shard {options.shard}.", err=True)
        return setup, Outcome()
    if options.dry_run:
        _show_plan(trials, setup.datasets, out)
        return setup, Outcome()
    with make_reporter(trials) as reporter, _interruptible(trials, out):
        return setup, setup.execute(trials, out, reporter, FeatureCache(default_folder()))


def _tell(datasets: "Iterable[Dataset]") -> None:
    """What the user may not expect of datasets: `Dataset.notes`."""
    for dataset in datasets:
        for note in dataset.notes:
            say(f"Note: {dataset.name}: {note}.", err=True)


def _print_tables(outcome: "Outcome") -> None:
    """The table of each benchmark that was run. Raises UserError if a trial failed."""
    if not (outcome.records or outcome.failures):  # nothing was run
        return
    from promptbench.analysis.summary import frame, summarise
    from promptbench.reporting.tables import render

    for benchmark in dict.fromkeys(record.trial.benchmark for record in outcome.records):
        mine = [record for record in outcome.records if record.trial.benchmark == benchmark]
        say(render(summarise(frame(mine)), "table", _title(benchmark, mine)))
    _raise_failure(outcome)


def _raise_failure(outcome: "Outcome") -> None:
    if outcome.failures:
        trial, error = outcome.failures[0]
        more = f" ({len(outcome.failures)} trials failed)" if len(outcome.failures) > 1 else ""
        raise UserError(f"{trial.label}: {error}{more}")


def _overrides(pairs: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["rank=2", "coop.lr=0.1"]`` -> settings by method name; a key alone goes to all that know it."""
    from promptbench.errors import unknown
    from promptbench.methods._registry import get_method
    from promptbench.storage import parse_yaml

    found: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes KEY=VALUE, not {pair!r}.")
        try:
            value = parse_yaml(text) if text.strip() else ""
        except ValueError:
            value = text
        target, dot, name = key.partition(".")
        if dot and target not in found:
            raise unknown("method in --set", target, found)
        if dot:
            found[target][name] = value
            continue
        known = {method: get_method(method).Settings.model_fields for method in methods}
        if not any(key in fields for fields in known.values()):
            raise unknown(
                f"setting of {', '.join(methods)}", key, {f for fields in known.values() for f in fields}
            )
        for method in methods:
            if key in known[method]:
                found[method][key] = value
    return found


def _run_zeroshot(benchmark: str, backbone: str, pretrained: str, root: Path | None, out: Path) -> None:
    """Zero-shot CLIP on those of the published datasets that are there; a line says what is not.

    A transfer benchmark is one trial over all of its datasets, and is left out if one is missing.
    """
    from contextlib import redirect_stdout

    from promptbench.analysis.published import datasets
    from promptbench.data.dataset import load

    source, targets = datasets(benchmark)
    present, lines = [], []
    for name in (*([source] if source else []), *targets):
        try:
            nonstandard = load(name, root, False, None).nonstandard
        except UserError as error:
            lines.append(str(error))
        else:
            lines += [f"{name}: {nonstandard}"] if nonstandard else []
            present += [] if nonstandard else [name]
    for line in dict.fromkeys(lines):
        say(f"zero-shot left out: {line}", err=True)
    if not present or (source and lines):
        return
    chosen = [name for name in present if name != source]
    try:
        with redirect_stdout(sys.stderr):  # standard output is for the comparison alone
            run(
                ["zeroshot"],
                benchmark,
                "paper",
                dataset=chosen,
                source=source,
                backbone=backbone,
                pretrained=pretrained,
                data_root=root,
                out=out,
            )
    except UserError as error:
        say(f"zero-shot left out: {error}", err=True)


@contextmanager
def _interruptible(trials: "Sequence[Trial]", out: Path) -> Iterator[None]:
    """Turns Ctrl-C into one sentence: what is done stays done, the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        from promptbench.training.files import RECORD

        done = sum((trial.folder(out) / RECORD).exists() for trial in trials)
        message = f"Interrupted: {done} of {len(trials)} trials are done; the same command resumes."
        say(message, err=True)
        raise SystemExit(130) from None


def _title(benchmark: str, records: Sequence[Any]) -> str:
    backbones = sorted({record.trial.backbone for record in records})
    return f"{benchmark}, backbone {', '.join(backbones)}"


def _show_plan(trials: "Sequence[Trial]", datasets: "Mapping[str, Dataset]", out: Path) -> None:
    """One row per trial, or, where they are very many, per group that differs in nothing but the seed."""
    from promptbench.clip.backbones import backbone_shape
    from promptbench.clip.memory import estimate
    from promptbench.methods._registry import get_method
    from promptbench.training.files import RECORD

    groups: dict[Any, list[Trial]] = {}
    for trial in trials:
        kind = (trial.benchmark, trial.method, trial.variant, trial.dataset, trial.shots)
        groups.setdefault(kind if len(trials) > 200 else trial.hash, []).append(trial)
    finished = {folder for folder, _, files in os.walk(out / "runs") if RECORD in files}
    rows, all_done = [], 0
    for group in groups.values():
        first = group[0]
        names = datasets[first.dataset].classes(first.train_classes).names
        trains, shape = get_method(first.method).trains, backbone_shape(first.backbone)
        memory = estimate(first.settings, trains, shape, names, first.precision)
        done = sum(str(trial.folder(out)) in finished for trial in group)
        all_done += done
        several = len(group) > 1
        steps, epochs = first.settings["steps"], first.settings["epochs"]
        rows.append(
            {
                "trial": f"{first.label.rpartition(', ')[0]}, {len(group)} seeds" if several else first.label,
                "epochs": f"{steps} steps" if steps else str(epochs),
                "lr": f"{first.settings['lr']:g}" if epochs else "-",
                "memory": f"{memory / 2**30:.1f} GiB",
                "hash": "" if several else first.hash[:8],
                "state": f"{done} done" if several else "done" if done else "to run",
            }
        )
    _print_rows(rows)
    say(f"{len(trials)} trials, {all_done} done, {len(trials) - all_done} to run; memory is an estimate")


def _list_methods(backbone: str) -> list[dict[str, str]]:
    from promptbench.clip.backbones import backbone_shape
    from promptbench.methods._registry import methods, recipes
    from promptbench.trials.benchmarks import BENCHMARKS

    shape = backbone_shape(backbone)

    def parameters(kind: "type[Method]") -> str:
        """The count, or how it grows with the classes."""
        one, two = (kind.parameter_count(kind.Settings(), shape, n) for n in (1, 2))
        return f"{one:,}" if one == two else f"{two - one:,} per class"

    rows = [
        {
            "method": name,
            "paper": kind.paper,
            "trains": " + ".join(sorted(kind.trains)) or "nothing",
            "parameters": parameters(kind),
            "benchmarks": "all but " + ", ".join(kind.unfit) if kind.unfit else f"all {len(BENCHMARKS)}",
        }
        for name, kind in methods().items()
    ]
    for name, recipe in recipes().items():
        if recipe.settings:
            kind = recipe.method
            count = kind.parameter_count(kind.Settings(**recipe.settings), shape, 1)
            rows.append({"method": name, "paper": recipe.about, "trains": "", "parameters": f"{count:,}"})
            rows[-1]["benchmarks"] = f"as {kind.name}"
    return rows


def _list_datasets() -> list[dict[str, str]]:
    from promptbench.data.cards import cards

    return [
        {
            "dataset": card.name,
            "suite": card.suite,
            "classes": str(card.classes or ""),
            "train / val / test": " / ".join(str(n) for n in (card.sizes or {}).values()),
            "template": card.template,
            "title": card.title,
        }
        for card, _ in cards().values()
    ]


def _list_benchmarks() -> list[dict[str, str]]:
    from promptbench.trials.benchmarks import BENCHMARKS

    return [{"benchmark": b.name, "what it does": b.summary} for b in BENCHMARKS.values()]


def _list_backbones() -> list[dict[str, str]]:
    from promptbench.clip.backbones import backbone_shape, backbones
    from promptbench.clip.weights import fitting_tags
    from promptbench.data.cards import POCKET

    rows = []
    for name in backbones():
        shape = backbone_shape(name)
        rows.append(
            {
                "backbone": name,
                "pixels": str(shape.image_size),
                "vision": f"{shape.vision_layers} x {shape.vision_width}",
                "text": f"{shape.text_layers} x {shape.text_width}",
                "joint": str(shape.embed_dim),
                "weights (--pretrained)": " ".join(fitting_tags(name))
                or ("embedded" if name == POCKET else "a file"),
            }
        )
    return rows


def _markdown(rows: Sequence[dict[str, str]]) -> str:
    import pandas as pd

    numbers = {"step", "after", "recipe", "direction"} ^ set(rows[0])
    align = ["right" if key in numbers else "left" for key in rows[0]]
    return pd.DataFrame(rows).to_markdown(index=False, colalign=align, disable_numparse=True)


def _print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    from promptbench.console import table

    say(table(list(rows[0]), [list(row.values()) for row in rows]), end="")
