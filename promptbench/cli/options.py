"""What `run`, `sweep` and `ablate` can all be told on the command line, declared once."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

Compiled = Annotated[
    bool,
    typer.Option("--compile", help="Towers through torch.compile: slow to start, for long runs on a GPU."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder of the standard datasets; default: PROMPTBENCH_DATA."),
]


@dataclass
class RunOptions:
    """None: not given, so that a sweep file or a preset decides."""

    benchmark: Annotated[
        str | None, typer.Option(help="See `promptbench ls benchmarks`; default: base2novel.")
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(help="Backbone, weights, suite and seeds where not given: pocket (default) or paper."),
    ] = None
    suite: Annotated[str | None, typer.Option(help="All datasets of a suite.")] = None
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this dataset: its name, its card (.yaml) or a folder of pictures; may be repeated."
        ),
    ] = None
    source: Annotated[str | None, typer.Option(help="Transfer benchmarks: the dataset to train on.")] = None
    data_root: DataRoot = None
    template: Annotated[
        str | None, typer.Option(help="Prompt of the frozen classifier instead of the card's, with {}.")
    ] = None
    draws: Annotated[
        Path | None, typer.Option(help="Folder of few-shot draws from `promptbench data import-draw`.")
    ] = None
    allow_nonstandard_split: Annotated[
        bool, typer.Option(help="Go on without the published split; every record is labelled so.")
    ] = False
    shots: Annotated[str | None, typer.Option(help="Training pictures per class, such as 16 or 1,4.")] = None
    seeds: Annotated[str | None, typer.Option(help="Seeds, such as 1,2,3.")] = None
    epochs: Annotated[int | None, typer.Option(min=0, help="Epochs instead of the method's own.")] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of every method that has it, or METHOD.KEY=VALUE of one; may be repeated.",
        ),
    ] = None
    backbone: Annotated[str | None, typer.Option(help="See `promptbench ls backbones`.")] = None
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Weights of the backbone: an open_clip tag, a local file, or TAG=FILE for a file whose "
            "pictures are normalised as the tag's (a file alone: as OpenAI's)."
        ),
    ] = None
    split: Annotated[str, typer.Option(help="Split to evaluate: test, or val for choosing settings.")] = (
        "test"
    )
    precision: Annotated[str, typer.Option(help="auto (bf16 on CUDA, fp32 on CPU), fp32, bf16 or fp16.")] = (
        "auto"
    )
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode pictures, for each trial at work.")
    ] = None
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials at once; default: PROMPTBENCH_JOBS, else one per GPU, on the CPU one per core for a "
            "very small backbone.",
        ),
    ] = None
    per_gpu: Annotated[int, typer.Option(min=1, help="Trials at once on each GPU.")] = 1
    executor: Annotated[
        str, typer.Option(help="Where trials run: local, this machine; or ray, a cluster.")
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to use, auto for the one of this machine; default: one made for it."),
    ] = None
    compiled: Compiled = False
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results; default: results.")] = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Smoke run: evaluate at most so many pictures per class; not compared."),
    ] = None
    validate: Annotated[
        bool,
        typer.Option("--validate", help="Measure validation accuracy after every epoch, for curves."),
    ] = False
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only every N-th trial of the list, from the I-th (1 to N): for array jobs such as SLURM's.",
        ),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the trials and stop.")] = False
    force: Annotated[bool, typer.Option("--force", help="Run trials again that are done.")] = False


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes the options of `RunOptions` beside its own parameters, as one ``options``."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
    kind, hints = inspect.Parameter.POSITIONAL_OR_KEYWORD, get_type_hints(RunOptions, include_extras=True)
    shared = [
        inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name])
        for f in fields(RunOptions)
    ]
    signature = inspect.Signature([*own, *shared])

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        options = RunOptions(**{p.name: given.pop(p.name) for p in shared if p.name in given})
        command(**given, options=options)

    wrapper.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
    wrapper.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
    return wrapper
