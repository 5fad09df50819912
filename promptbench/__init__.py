"""promptbench: prompt learning on CLIP, one engine, one evaluation harness, tables from records.

    import promptbench as pb

    record = pb.run("mmlop", dataset="icons", seed=1)
    pb.compare("results")

Names are imported when they are first used, so that ``import promptbench`` loads no torch. A mistake raises
`UserError` with one sentence that says the cause and the fix.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptbench.api import (
        compare,
        list_benchmarks,
        list_datasets,
        list_methods,
        load,
        load_clip,
        load_dataset,
        records,
        run,
    )
    from promptbench.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "UserError",
    "__version__",
    "compare",
    "list_benchmarks",
    "list_datasets",
    "list_methods",
    "load",
    "load_clip",
    "load_dataset",
    "records",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'promptbench' has no attribute {name!r}")
    from promptbench import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
