"""MMLoP's ablations: the chain from IVLP to MMLoP and the rank, beside what the paper published."""

from typing import Any

import pandas as pd

from promptbench.analysis import published
from promptbench.analysis.comparison import Material
from promptbench.analysis.vocabulary import METRICS
from promptbench.reporting.plots._base import COLOURS, HALO, Drawing, declare, error_bars, new_figure

PAPER = "2602.21397"
#: step, its names in our tables (the recipe's, and that of --set), and in the paper's tables 4 and 5
CHAIN = (
    ("IVLP", ("ivlp",), "IVLP"),
    ("low rank", ("mmlop (lowrank)",), "IVLP+low-rank"),
    ("+ consistency", ("mmlop (consistency)",), "IVLP+low-rank+SCL"),
    ("+ drift", ("mmlop (drift)",), "IVLP+low-rank+SCL+UDC"),
    ("+ shared U\n(MMLoP)", ("mmlop",), "IVLP+low-rank+SCL+UDC+shared-U (MMLoP)"),
)
RANKS = (
    ("1", ("mmlop",), "rank=1"),
    ("2", ("mmlop (rank2)", "mmlop (rank=2)"), "rank=2"),
    ("4", ("mmlop (rank4)", "mmlop (rank=4)"), "rank=4"),
)
#: part, its steps, and the metric that was published of all of them
PARTS = (("chain", CHAIN, "hm"), ("rank", RANKS, "novel"))


@declare(
    "MMLoP's steps and ranks, beside those of its paper.",
    needs="variants of MMLoP on base2novel; run `promptbench ablate mmlop`",
    place=6,
)
def ablation(material: Material) -> Drawing:
    """Left the chain, right the rank; above measured (95 % intervals), below published.

    Raises UserError unless a variant of MMLoP was measured on base and novel classes.
    """
    variants = {name for _, steps, _ in PARTS for _, names, _ in steps for name in names} - {"ivlp", "mmlop"}
    ablation.require(variants & set(material.summary["method"]) and "hm" in material.summary)
    data = pd.DataFrame([*_measured(material), *_published(material.benchmark)])
    figure = new_figure(height=3.9)
    axes = figure.subplots(2, 2, gridspec_kw={"width_ratios": [5, 3]})
    titles = {"measured": f"measured, {material.caption}", "published": f"published, ViT-B/16, arXiv {PAPER}"}
    for i, kind in enumerate(titles):
        for j, (part, steps, metric) in enumerate(PARTS):
            rows = data[(data["kind"] == kind) & (data["part"] == part)]
            _panel(axes[i][j], rows, [step for step, *_ in steps], COLOURS[i])
            axes[i][j].set_ylabel("HM (%)" if metric == "hm" else METRICS[metric].axis)
        axes[i][0].set_title(titles[kind])
    axes[1][1].set_xlabel("Rank")
    return Drawing("ablation", figure, data)


def _panel(axes: Any, rows: pd.DataFrame, steps: list[str], colour: str) -> None:
    x = [steps.index(step) for step in rows["step"]]
    axes.plot(x, rows["value"], color=colour, linewidth=0.8, alpha=0.5)
    for at, row in zip(x, rows.to_dict("records"), strict=True):
        hollow: dict[str, Any] = {"mfc": "white"} if row["kind"] == "published" else {}
        axes.errorbar(at, row["value"], error_bars(row, "value"), fmt="o", color=colour, capsize=3, **hollow)
        if not pd.isna(row["value"]):
            place: Any = {
                "xytext": (5, 3),
                "textcoords": "offset points",
                "fontsize": 7,
                "path_effects": HALO,
            }
            axes.annotate(f"{row['value']:.2f}", (at, row["value"]), **place)
    axes.set_xticks(range(len(steps)), steps, fontsize=7)
    axes.set_xlim(-0.4, len(steps) - 0.4)
    axes.margins(y=0.25)


def _measured(material: Material) -> list[dict[str, Any]]:
    rows = material.headline(material.summary)
    found = []
    for part, steps, metric in PARTS:
        for step, names, _ in steps:
            mine = rows[rows["method"].isin(names)]
            value = {f"value{end}": float("nan") for end in ("", "_low", "_high")}
            if len(mine):
                value = {key: mine.iloc[0][key.replace("value", metric)] for key in value}
            found.append({"kind": "measured", "part": part, "step": step, "metric": metric, **value})
    return found


def _published(benchmark: str) -> list[dict[str, Any]]:
    table = published.ablations(benchmark)
    table = table[table["source"].str.contains(PAPER)]
    found = []
    for part, steps, metric in PARTS:
        for step, _, name in steps:
            key = "method" if part == "chain" else "setting"
            row = table[table[key].str.endswith(name) & (table["metric"] == metric)].iloc[0]
            value = {"value": float(row["value"]), "source": row["source"]}
            found.append({"kind": "published", "part": part, "step": step, "metric": metric, **value})
    return found
