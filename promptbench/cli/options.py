"""What `run`, `sweep` and `ablate` have in common on the command line, declared once."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from promptbench.cli import names
from promptbench.console import say
from promptbench.execution.options import RunOptions

if TYPE_CHECKING:
    from promptbench.trials.sweep import Sweep


def _option(panel: str, *flags: str, complete: Callable[[], Sequence[str]] | None = None, **more: Any) -> Any:
    completion = names.completing(complete) if complete else None
    return typer.Option(*flags, rich_help_panel=panel, autocompletion=completion, **more)


def _data(*flags: str, **more: Any) -> Any:
    return _option("Data", *flags, **more)


def _training(*flags: str, **more: Any) -> Any:
    return _option("Training", *flags, **more)


def _hardware(*flags: str, **more: Any) -> Any:
    return _option("Hardware", *flags, **more)


def _output(*flags: str, **more: Any) -> Any:
    return _option("Output", *flags, **more)


BENCHMARK_HELP = "See `promptbench ls benchmarks`."
COMPILE = {"help": "Run the towers through torch.compile: slow to start, for long runs on a GPU."}
DATA_ROOT = {"help": "Folder of the standard datasets; default: PROMPTBENCH_DATA."}
PRECISION = {"help": "auto (bf16 on CUDA, fp32 on CPU), fp32, bf16 or fp16."}
DataRoot = Annotated[Path | None, typer.Option("--data-root", metavar="DIR", **DATA_ROOT)]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Results folder.")]
Backbone = Annotated[
    str | None,
    typer.Option(
        help="Only records of this backbone.",
        metavar="NAME",
        autocompletion=names.completing(names.backbones),
    ),
]


@dataclass
class Options:
    """None: not given, so that a sweep file or a preset decides."""

    benchmark: Annotated[
        str | None,
        _data(
            metavar="NAME",
            complete=names.benchmarks,
            help=f"Default: base2novel. {BENCHMARK_HELP}",
        ),
    ] = None
    preset: Annotated[
        str | None,
        _data(
            metavar="NAME",
            complete=names.presets,
            help="Default backbone, weights, suite and seeds: pocket (default) or paper.",
        ),
    ] = None
    suite: Annotated[
        str | None, _data(metavar="NAME", complete=names.suites, help="All datasets of a suite.")
    ] = None
    dataset: Annotated[
        list[str] | None,
        _data(
            metavar="NAME|PATH",
            complete=names.datasets,
            help="Only this dataset: its name, its card (.yaml) or a folder of images. Repeatable.",
        ),
    ] = None
    source: Annotated[
        str | None,
        _data(metavar="NAME", complete=names.datasets, help="Transfer benchmarks: the dataset to train on."),
    ] = None
    data_root: Annotated[Path | None, _data(metavar="DIR", **DATA_ROOT)] = None
    shots: Annotated[
        str | None, _data(metavar="N,...", help="Training images per class, such as 16 or 1,4.")
    ] = None
    seeds: Annotated[str | None, _data(metavar="N,...", help="Seeds, such as 1,2,3.")] = None
    split: Annotated[
        str, _data(metavar="NAME", help="Split to evaluate: test, or val for choosing settings.")
    ] = RunOptions.split
    limit: Annotated[
        int | None,
        _data(
            metavar="N",
            min=1,
            help="Smoke run: evaluate at most N images per class; left out of comparisons.",
        ),
    ] = None
    template: Annotated[
        str | None,
        _data(metavar="TEXT", help="Zero-shot template instead of the card's; {} is the class name."),
    ] = None
    draws: Annotated[
        Path | None,
        _data(metavar="DIR", help="Few-shot draws from `promptbench data import-draw`."),
    ] = None
    allow_nonstandard_split: Annotated[
        bool,
        _data(
            "--allow-nonstandard-split",
            help="Accept datasets without their published split; every record is labelled.",
        ),
    ] = False

    epochs: Annotated[
        int | None, _training(metavar="N", min=0, help="Epochs instead of the method's default.")
    ] = None
    set_: Annotated[
        list[str] | None,
        _training(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of every method that has it, or METHOD.KEY=VALUE for one method. Repeatable.",
        ),
    ] = None
    backbone: Annotated[
        str | None,
        _training(metavar="NAME", complete=names.backbones, help="See `promptbench ls backbones`."),
    ] = None
    pretrained: Annotated[
        str | None,
        _training(
            metavar="TAG|FILE",
            help="Weights: an open_clip tag, a local file, or TAG=FILE for a file that needs the tag's image "
            "normalisation (a file alone: OpenAI's).",
        ),
    ] = None
    validate: Annotated[
        bool, _training("--validate", help="Measure validation accuracy after every epoch, for curves.")
    ] = False

    precision: Annotated[str, _hardware(metavar="NAME", **PRECISION)] = RunOptions.precision
    workers: Annotated[
        int | None, _hardware(metavar="N", min=0, help="Processes that decode images, per running trial.")
    ] = None
    jobs: Annotated[
        int | None,
        _hardware(
            metavar="N",
            min=1,
            help="Concurrent trials; default: PROMPTBENCH_JOBS, else one per GPU, or one per CPU core for a "
            "very small backbone.",
        ),
    ] = None
    per_gpu: Annotated[int, _hardware(metavar="N", min=1, help="Concurrent trials on each GPU.")] = (
        RunOptions.per_gpu
    )
    executor: Annotated[
        str, _hardware(metavar="NAME", help="Where trials run: local (this machine) or ray (a cluster).")
    ] = RunOptions.executor
    address: Annotated[
        str | None,
        _hardware(
            metavar="ADDRESS",
            help="Ray cluster; auto for the one on this machine; default: start one for this command.",
        ),
    ] = None
    compiled: Annotated[bool, _hardware("--compile", **COMPILE)] = False

    out: Annotated[Path | None, _output("--out", metavar="DIR", help="Results folder; default: results.")] = (
        None
    )
    shard: Annotated[
        str | None,
        _output(metavar="I/N", help="Only every N-th trial, starting with the I-th: for array jobs (SLURM)."),
    ] = None
    dry_run: Annotated[bool, _output("--dry-run", help="List the trials and stop.")] = False
    force: Annotated[bool, _output("--force", help="Run finished trials again.")] = False

    def sweep(self, usual: "Sweep") -> "Sweep":
        """``usual`` with what the command line says in its place."""
        from promptbench.trials.sweep import numbers, override, parse_settings

        return override(
            usual,
            parse_settings(self.set_ or ()),
            benchmark=self.benchmark,
            preset=self.preset,
            suite=self.suite,
            datasets=self.dataset or None,
            source=self.source,
            seeds=None if self.seeds is None else numbers("--seeds", self.seeds),
            shots=None if self.shots is None else numbers("--shots", self.shots, least=1),
            epochs=self.epochs,
            backbone=self.backbone,
            pretrained=self.pretrained,
            out=self.out,
        )

    def how(self) -> RunOptions:
        """What is not part of a sweep."""
        return RunOptions(**{field.name: getattr(self, field.name) for field in fields(RunOptions)})


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes `Options` beside its own parameters, as one ``options``, and ends with a sentence
    when it is interrupted."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
    kind, hints = inspect.Parameter.POSITIONAL_OR_KEYWORD, get_type_hints(Options, include_extras=True)
    shared = [
        inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name]) for f in fields(Options)
    ]
    signature = inspect.Signature([*own, *shared])

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        options = Options(**{p.name: given.pop(p.name) for p in shared if p.name in given})
        try:
            command(**given, options=options)
        except KeyboardInterrupt as stopped:
            if str(stopped):
                say(str(stopped), err=True)
            raise SystemExit(130) from None

    wrapper.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
    wrapper.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
    return wrapper
