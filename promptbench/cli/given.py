"""What the command line says, as a sweep and its run options."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Any, get_type_hints

from promptbench.cli.options import Options
from promptbench.console import say
from promptbench.execution.options import RunOptions

if TYPE_CHECKING:
    from promptbench.trials.sweep import Sweep


def sweep_from(options: Options, usual: "Sweep") -> "Sweep":
    """``usual`` with what the command line says in its place."""
    from promptbench.trials.sweep import numbers, override, parse_settings

    return override(
        usual,
        parse_settings(options.set_ or ()),
        benchmark=options.benchmark,
        preset=options.preset,
        suite=options.suite,
        datasets=options.dataset or None,
        source=options.source,
        seeds=None if options.seeds is None else numbers("--seeds", options.seeds),
        shots=None if options.shots is None else numbers("--shots", options.shots, least=1),
        epochs=options.epochs,
        backbone=options.backbone,
        pretrained=options.pretrained,
        out=options.out,
    )


def how(options: Options) -> RunOptions:
    """What is not part of a sweep."""
    return RunOptions(**{field.name: getattr(options, field.name) for field in fields(RunOptions)})


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes `Options` beside its own parameters, as one ``options``, and ends with a sentence
    when it is interrupted."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
    kind, hints = inspect.Parameter.POSITIONAL_OR_KEYWORD, get_type_hints(Options, include_extras=True)
    shared = [
        inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name]) for f in fields(Options)
    ]
    optional = [p for p in own if p.default is not p.empty]  # they come last, so that groups keep their order
    all_ = [*(p for p in own if p not in optional), *shared, *optional]
    signature = inspect.Signature(all_)

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
    wrapper.__annotations__ = {p.name: p.annotation for p in all_}
    return wrapper
