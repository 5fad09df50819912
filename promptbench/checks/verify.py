"""Records compared with published numbers: `promptbench verify`, which runs zero-shot CLIP first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pandas as pd

from promptbench.analysis.published import BACKBONES, WEIGHTS, datasets
from promptbench.data import dataset as data
from promptbench.errors import UserError
from promptbench.execution.options import RunOptions
from promptbench.execution.setup import prepare, require_success
from promptbench.reporting.tables import markdown
from promptbench.trials.sweep import Sweep
from promptbench.trials.trial import PRESETS


def published_backbone(name: str | None) -> str:
    """A backbone with published numbers, by default that of the papers. Raises UserError for another one."""
    name = name or str(PRESETS["paper"]["backbone"])
    if name not in BACKBONES:
        raise UserError(
            f"Nothing was published for the backbone {name!r}; verify is for {', '.join(BACKBONES)} on "
            "the standard datasets."
        )
    return name


def render(found: pd.DataFrame, style: Literal["md", "csv", "json"]) -> str:
    """The table as Markdown, CSV or JSON."""
    if style == "json":
        return str(found.to_json(orient="records", indent=1))
    if style == "csv":
        return str(found.to_csv(index=False))
    return str(
        found.map(lambda value: markdown(value) if isinstance(value, str) else value).to_markdown(index=False)
    )


def run_zeroshot(
    benchmark: str, backbone: str, pretrained: str | None, root: Path | None, out: Path
) -> Iterator[str]:
    """Run zero-shot CLIP on the published datasets that are available; yields what was left out and why.

    ``pretrained``: its weights, by default those of the papers. A transfer benchmark is one trial over all of
    its datasets and is left out if one is missing.
    """
    source, targets = datasets(benchmark)
    present, lines = [], []
    for name in (*([source] if source else []), *targets):
        try:
            nonstandard = data.load(name, root, False, None).nonstandard
        except UserError as error:
            lines.append(str(error))
        else:
            lines += [f"{name}: {nonstandard}"] if nonstandard else []
            present += [] if nonstandard else [name]
    for line in dict.fromkeys(lines):
        yield f"zero-shot left out: {line}"
    chosen = tuple(name for name in present if name != source)
    if not chosen or (source and lines):
        return
    sweep = Sweep(
        grid={"zeroshot": {}},
        benchmark=(benchmark,),
        preset="paper",
        datasets=chosen,
        source=source,
        backbone=backbone,
        pretrained=pretrained or WEIGHTS,
        out=out,
    )
    try:
        setup = prepare(sweep, RunOptions(data_root=root))
        require_success(setup.run(setup.trials()))
    except UserError as error:
        yield f"zero-shot left out: {error}"
