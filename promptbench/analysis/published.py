"""Published numbers: ``results/published.csv``, where every row names its source."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from promptbench.analysis.vocabulary import AVERAGE
from promptbench.errors import UserError
from promptbench.trials.benchmarks import get_benchmark

if TYPE_CHECKING:  # methods need torch, tables of measured numbers do not
    from promptbench.methods._base import Method

BACKBONES = {
    "ViT-B-16-quickgelu": "ViT-B/16",
    "ViT-B-32-quickgelu": "ViT-B/32",
    "ViT-L-14-quickgelu": "ViT-L/14",
}
WEIGHTS = "openai"
_SUITE = "standard"
_NOT_THE_PAPERS = "re-run|unlabeled|CoOp paper|ensemble|supplement"


@cache
def table() -> pd.DataFrame:
    """All published rows: method, benchmark, dataset, setting, metric, value, unit, ..., source."""
    return pd.read_csv(Path(str(resources.files("promptbench.results"))) / "published.csv")


def ablations(benchmark: str) -> pd.DataFrame:
    """The published rows of ablations on a benchmark, none if it has none."""
    entry = get_benchmark(benchmark).published
    return table()[table()["benchmark"] == (entry.ablations if entry else "")]


@cache
def _comparable(benchmark: str, backbone: str) -> pd.DataFrame:
    """The rows of a benchmark and backbone that are the papers' own setting, with their number of shots;
    the average has the name it has here."""
    entry, rows = get_benchmark(benchmark).published, table()
    if entry is None:
        return rows.iloc[:0].assign(shots=None)
    rows = rows[
        (rows["benchmark"] == benchmark)
        & (rows["backbone"] == BACKBONES.get(backbone))
        & ~rows["setting"].str.contains(_NOT_THE_PAPERS)
    ]
    shots = rows["setting"].str.extract(entry.setting)[0]
    zero = rows["setting"].str.startswith("zero-shot")
    names = rows["dataset"].mask(rows["dataset"] == entry.average, AVERAGE)
    return rows.assign(dataset=names, shots=shots.mask(zero, "0").astype(float)).dropna(subset=["shots"])


def lookup(
    method: str, benchmark: str, dataset: str, metric: str, shots: int, backbone: str
) -> dict[str, Any] | None:
    """The row to compare with; None if nothing was published. ``metric``: base, novel, hm or all."""
    from promptbench.methods._registry import get_method

    kind = get_method(method)
    rows = _comparable(benchmark, backbone)
    rows = rows[
        (rows["method"] == kind.published_name)
        & (rows["dataset"] == dataset)
        & (rows["metric"] == ("accuracy" if metric == "all" else metric))
        & (rows["shots"] == (shots if kind.uses_shots else 0))
    ]
    return {str(key): value for key, value in rows.iloc[0].items()} if len(rows) else None


def rows(benchmark: str, backbone: str) -> pd.DataFrame:
    """Published numbers in the columns of `summary.summarise`, and where they stand (source).

    Of the methods here, under their names here, with the parameters of their formula (NaN where these grow
    with the classes); and of others whose number of parameters was published. Seeds are 0, nothing was
    measured. Raises UserError if nothing was published for the backbone or the benchmark.
    """
    if backbone not in BACKBONES:
        raise UserError(
            f"Nothing was published for the backbone {backbone!r}; published numbers are of "
            f"{', '.join(BACKBONES)}: choose one with --backbone."
        )
    if get_benchmark(benchmark).published is None:
        raise UserError(f"Nothing was published for {benchmark}; choose another --benchmark.")
    from promptbench.methods._registry import methods

    known = _comparable(benchmark, backbone)
    ours = {kind.published_name: kind for kind in methods().values() if kind.published_name}
    seedless = {name for name, kind in ours.items() if not kind.uses_shots}
    known = known[(known["shots"] == 0) == known["method"].isin(seedless)]
    sizes = table().dropna(subset=["trainable_params"]).groupby("method")["trainable_params"].first()
    known = known[known["method"].isin([*ours, *sizes.index])]
    found: list[dict[str, Any]] = []
    key: Any
    for key, group in known.groupby(["method", "shots", "dataset"], sort=False):
        name, shots, dataset = key
        first = group.drop_duplicates("metric").set_index("metric")
        row = {
            "dataset": dataset,
            "method": ours[name].name if name in ours else name,
            "shots": int(shots),
            "parameters": _parameters(ours[name], benchmark, int(shots), backbone)
            if name in ours
            else sizes[name],
            "seeds": 0,
            "source": first["source"].iloc[0],
        }
        for metric, value in first["value"].items():
            key = "all" if metric == "accuracy" else str(metric)
            row |= {key: float(value)} | {f"{key}_{end}": float("nan") for end in ("std", "low", "high")}
        found.append(row)
    return pd.DataFrame(found)


def beside(rows: pd.DataFrame, summary: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """Of published ``rows`` those that stand beside measured ones: of the same datasets and shots, and the
    average only if the measured one is over the very datasets of the published."""
    datasets_here = set(summary["dataset"])
    if (
        not set(datasets(benchmark)[1]) <= datasets_here
        or len(datasets_here) > len(datasets(benchmark)[1]) + 2
    ):
        datasets_here -= {AVERAGE}
    return rows[rows["dataset"].isin(datasets_here) & rows["shots"].isin({0, *summary["shots"]})]


def _parameters(kind: "type[Method]", benchmark: str, shots: int, backbone: str) -> float:
    """By the method's formula, in the paper's setting; NaN where it depends on the number of classes."""
    from promptbench.clip.backbones import backbone_shape
    from promptbench.methods._registry import resolve_settings

    settings = resolve_settings(kind, benchmark, shots, "")
    one, two = (kind.parameter_count(settings, backbone_shape(backbone), n) for n in (1, 2))
    return one if one == two else float("nan")


def datasets(benchmark: str) -> tuple[str | None, tuple[str, ...]]:
    """What the published numbers of a benchmark are of: the dataset trained on, in transfer benchmarks, and
    the datasets that are averaged over."""
    return get_benchmark(benchmark).datasets(_SUITE)
