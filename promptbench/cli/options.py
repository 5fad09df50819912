"""Options that several commands share; those of `run`, `sweep` and `ablate` in groups."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from promptbench.cli import names
from promptbench.execution.options import RunOptions


def _panel(panel: str) -> Callable[..., Any]:
    """What makes the options of one group of ``--help``."""

    def option(metavar: str | None, help: str, complete: Any = None, *flags: str, **more: Any) -> Any:
        completion = names.completing(complete) if complete else None
        more |= {"rich_help_panel": panel, "autocompletion": completion}
        return typer.Option(*flags, metavar=metavar, help=help, **more)

    return option


def _flag(panel: str, name: str, help: str) -> Any:
    return typer.Option(name, help=help, rich_help_panel=panel)


_data, _training, _hardware, _output = map(_panel, ("Data", "Training", "Hardware", "Output"))
Text: TypeAlias = str | None
Number: TypeAlias = int | None

BENCHMARK = "See `promptbench ls benchmarks`."
BACKBONE = "See `promptbench ls backbones`."
COMPILE = "Run the towers through torch.compile: slow to start, for long runs on a GPU."
DATA_ROOT = "Folder of the standard datasets; default: PROMPTBENCH_DATA."
PRECISION = "auto (bf16 on CUDA, fp32 on CPU), fp32, bf16 or fp16."
DataRoot = Annotated[Path | None, typer.Option("--data-root", metavar="DIR", help=DATA_ROOT)]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Results folder.")]
Backbone = Annotated[
    Text,
    typer.Option(
        metavar="NAME",
        help="Only records of this backbone.",
        autocompletion=names.completing(names.backbones),
    ),
]


@dataclass
class Options:
    """None: not given, so that a sweep file or a preset decides."""

    benchmark: Annotated[Text, _data("NAME", f"Default: base2novel. {BENCHMARK}", names.benchmarks)] = None
    preset: Annotated[
        Text,
        _data(
            "NAME", "Defaults of backbone, weights, suite, seeds: pocket (default) or paper.", names.presets
        ),
    ] = None
    suite: Annotated[Text, _data("NAME", "All datasets of a suite.", names.suites)] = None
    dataset: Annotated[
        list[str] | None,
        _data(
            "NAME|PATH",
            "Only this dataset: its name, its card (.yaml) or a folder of images. Repeatable.",
            names.datasets,
        ),
    ] = None
    source: Annotated[
        Text, _data("NAME", "Transfer benchmarks: the dataset to train on.", names.datasets)
    ] = None
    data_root: Annotated[Path | None, _data("DIR", DATA_ROOT)] = None
    shots: Annotated[Text, _data("N,...", "Training images per class, such as 16 or 1,4.")] = None
    seeds: Annotated[Text, _data("N,...", "Seeds, such as 1,2,3.")] = None
    split: Annotated[str, _data("NAME", "Split to evaluate: test, or val for choosing settings.")] = (
        RunOptions.split
    )
    limit: Annotated[
        Number,
        _data("N", "Smoke run: evaluate at most N images per class; left out of comparisons.", min=1),
    ] = None
    template: Annotated[
        Text, _data("TEXT", "Zero-shot template instead of the card's; {} is the class name.")
    ] = None
    draws: Annotated[Path | None, _data("DIR", "Few-shot draws from `promptbench data import-draw`.")] = None
    allow_nonstandard_split: Annotated[
        bool,
        _flag(
            "Data",
            "--allow-nonstandard-split",
            "Accept datasets without their published split; every record is labelled.",
        ),
    ] = False

    epochs: Annotated[Number, _training("N", "Epochs instead of the method's default.", min=0)] = None
    set_: Annotated[
        list[str] | None,
        _training(
            "KEY=VALUE",
            "A setting of every method that has it, or METHOD.KEY=VALUE for one method. Repeatable.",
            None,
            "--set",
        ),
    ] = None
    backbone: Annotated[Text, _training("NAME", BACKBONE, names.backbones)] = None
    pretrained: Annotated[
        Text,
        _training(
            "TAG|FILE",
            "Weights: an open_clip tag, a local file, or TAG=FILE for a file that needs the tag's image "
            "normalisation (a file alone: OpenAI's).",
        ),
    ] = None
    validate: Annotated[
        bool,
        _flag("Training", "--validate", "Measure validation accuracy after every epoch, for curves."),
    ] = False

    precision: Annotated[str, _hardware("NAME", PRECISION)] = RunOptions.precision
    workers: Annotated[Number, _hardware("N", "Processes that decode images, per running trial.", min=0)] = (
        None
    )
    jobs: Annotated[
        Number,
        _hardware(
            "N",
            "Concurrent trials; default: PROMPTBENCH_JOBS, else one per GPU, or one per CPU core for a very "
            "small backbone.",
            min=1,
        ),
    ] = None
    per_gpu: Annotated[int, _hardware("N", "Concurrent trials on each GPU.", min=1)] = RunOptions.per_gpu
    executor: Annotated[
        str, _hardware("NAME", "Where trials run: local (this machine) or ray (a cluster).")
    ] = RunOptions.executor
    address: Annotated[
        Text,
        _hardware(
            "ADDRESS", "Ray cluster; auto for the one on this machine; default: start one for this command."
        ),
    ] = None
    compiled: Annotated[bool, _flag("Hardware", "--compile", COMPILE)] = False

    out: Annotated[Path | None, _output("DIR", "Results folder; default: results.")] = None
    shard: Annotated[
        Text, _output("I/N", "Only every N-th trial, starting with the I-th: for array jobs (SLURM).")
    ] = None
    dry_run: Annotated[bool, _flag("Output", "--dry-run", "List the trials and stop.")] = False
    force: Annotated[bool, _flag("Output", "--force", "Run finished trials again.")] = False
