"""Every figure from hand-made records: what it shows, what it refuses, that no label lies on another."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.text import Text

from promptbench.analysis import published
from promptbench.analysis.comparison import Material
from promptbench.analysis.costs import step_gflop
from promptbench.analysis.vocabulary import AVERAGE
from promptbench.checks.training_step import record_gflop
from promptbench.errors import UserError
from promptbench.reporting.plots import draw, get_figure, names
from promptbench.reporting.plots._base import Drawing
from promptbench.reporting.plots.tradeoff import pareto, with_front
from promptbench.reporting.tables import clear_best, render
from promptbench.trials.record import Record
from tests.test_compare import RECORDS, make, published_record

VIT = "ViT-B-16-quickgelu"


def material(records: list[Record], out: Path = Path("nowhere"), **given: Any) -> Material:
    return Material(records, out, records[0].trial.benchmark, records[0].trial.backbone, **given)


def labels(drawing: Drawing) -> list[str]:
    return [text.get_text() for text in drawing.figure.axes[0].texts if text.get_text()]


def test_figures_are_named_by_their_files_and_declare_the_rest() -> None:
    declared = [get_figure(name) for name in names()]
    assert [one.name for one in declared] == names()
    assert {"tradeoff", "base-novel", "critical-difference"} <= set(names())
    assert all(one.caption.endswith(".") and one.needs for one in declared)
    assert len({one.place for one in declared}) == len(declared)
    with pytest.raises(UserError, match="Did you mean 'heatmap'"):
        get_figure("heatmaps")


def test_pareto() -> None:
    assert pareto([10, 100, 1000, 50], [60.0, 70.0, 65.0, 70.0]) == [0, 3]
    assert pareto([10, 10], [60.0, 61.0]) == [1]


def test_who_dominates_whom() -> None:
    rows = pd.DataFrame(
        {"method": list("abcd"), "parameters": [0, 10, 20, 30], "hm": [50.0, 60.0, 40.0, 55.0]}
    )
    found = with_front(rows, "parameters", "hm").set_index("method")
    assert found["pareto"].tolist() == [True, True, False, False]
    assert found["dominated_by"].tolist() == ["", "", "b", "b"]


def test_tradeoff_files(tmp_path: Path) -> None:
    given = material([r for r in RECORDS if r.trial.method != "small"])
    drawing = draw("tradeoff", given)
    paths = drawing.save(tmp_path)
    assert [path.name for path in paths] == ["tradeoff-hm.png", "tradeoff-hm.pdf", "tradeoff-hm.csv"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert b"/Type3" not in paths[1].read_bytes()  # embedded as TrueType
    table = pd.read_csv(paths[2])
    assert list(table["method"]) == ["zeroshot", "deep"]
    assert table["hm"].iloc[1] == pytest.approx(
        given.headline(given.summary).set_index("method")["hm"]["deep"]
    )
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in draw("tradeoff", given).save(tmp_path)] == first  # no dates in them
    with pytest.raises(UserError, match="at least one trained method"):
        draw("tradeoff", material(RECORDS[:2]))


def test_what_zero_shot_beats_is_dominated() -> None:
    rows = [("zeroshot", 0, 140, 0), ("coop", 1, 130, 512), ("mmlop", 1, 150, 2916), ("ivlp", 1, 149, 11520)]
    drawing = draw(
        "tradeoff", material([make(name, "a", seed, base, 140, size) for name, seed, base, size in rows])
    )
    assert drawing.data.set_index("method")["pareto"].to_dict() == {
        "zeroshot": True,
        "coop": False,
        "mmlop": True,
        "ivlp": False,
    }
    assert drawing.said == [
        "Pareto front of HM over trainable parameters: zeroshot, mmlop. "
        "zeroshot dominates coop; mmlop dominates ivlp."
    ]


def test_other_costs() -> None:
    slow = make("deep", "a", 1, 150, 120, 5000)
    slow = slow.model_copy(update={"environment": {"device": "cuda"}})
    drawing = draw("tradeoff", material([make("small", "a", 1, 150, 150, 40), slow], cost="seconds"))
    assert drawing.name == "tradeoff-hm-seconds"
    assert "2 kinds of machine" in drawing.said[2]
    memory = draw("tradeoff", material([slow], cost="memory"))
    assert memory.data["memory"].tolist() == [1 << 20]


def test_arithmetic_of_a_step_is_that_of_its_configuration() -> None:
    from promptbench.methods._registry import get_method

    def gflop(classes: int, **settings: Any) -> float:
        values = get_method("coop").Settings(**settings).model_dump(mode="json")
        record = make("coop", "a", 1, 1, 1, settings=values)
        names = {f"dog {i}": (1, 2) for i in range(classes)}
        counts = [record.evaluations[0].model_copy(update={"per_class": names})]
        given = material(
            [record.model_copy(update={"evaluations": counts})],
            cost="gflop",
            metric="base",
            count_gflop=record_gflop,
        )
        found = step_gflop(given, "coop", 16)
        if found:
            assert draw("tradeoff", given).data["gflop"].tolist() == [found]
        return found

    few = gflop(3, epochs=1, batch_size=2)
    assert few > 0
    assert gflop(6, epochs=1, batch_size=2) > 1.5 * few
    assert gflop(3, epochs=0) == 0  # no steps are taken


def crowd() -> list[Record]:
    """Twenty methods close to each other, as a full comparison has."""
    sizes = [2**k * 100 for k in range(10)]
    points = [(f"method_{i}", sizes[i // 2], 150 + i % 5, 140 + i % 3) for i in range(20)]
    rows = [make("zeroshot", name, 0, 140, 139, 0) for name in "ab"]
    rows += [
        make(m, d, s, base + s, novel, size) for m, size, base, novel in points for d in "ab" for s in (1, 2)
    ]
    return rows


@pytest.mark.parametrize("name", ["tradeoff", "base-novel"])
def test_labels_of_twenty_methods_do_not_overlap(name: str) -> None:
    drawing = draw(name, material(crowd()))
    drawing.figure.canvas.draw()
    texts = [t for t in drawing.figure.axes[0].texts if t.get_text().startswith("method")]
    assert len(texts) == 20
    boxes = [Text.get_window_extent(text) for text in texts]  # of the words, without the line to the point
    for i, box in enumerate(boxes):
        hit = [texts[j].get_text() for j, other in enumerate(boxes[:i]) if box.overlaps(other)]
        assert not hit, (texts[i].get_text(), hit)


def test_heatmap() -> None:
    data = draw("heatmap", material(RECORDS)).data.set_index("method")
    assert data.loc["small"].isna().to_dict() == {"a": False, "b": True, AVERAGE: True}  # missing, not 0
    assert data.loc["small", "a"] == pytest.approx(75 - 64.615, abs=0.001)
    with pytest.raises(UserError, match="records of zeroshot"):
        draw("heatmap", material(RECORDS[2:]))


def test_base_novel_is_for_base_and_novel() -> None:
    assert set(draw("base-novel", material(RECORDS)).data["method"]) == {"zeroshot", "deep"}
    only = RECORDS[2].model_copy(
        update={"evaluations": [RECORDS[2].evaluations[0].model_copy(update={"classes": "all"})]}
    )
    with pytest.raises(UserError, match="choose --benchmark base2novel"):
        draw("base-novel", material([only]))


def test_fewshot() -> None:
    records = [make("m", d, s, 100 + 10 * k, 100, shots=k) for d in "ab" for s in (1, 2) for k in (1, 4)]
    drawing = draw("fewshot", material(records, metric="base"))
    assert [axes.get_title("left") for axes in drawing.figure.axes] == ["a", "b", AVERAGE]
    assert set(drawing.data["shots"]) == {1, 4}
    with pytest.raises(UserError, match="two numbers of shots"):
        draw("fewshot", material(RECORDS))


def test_curves(tmp_path: Path) -> None:
    for seed, record in enumerate([RECORDS[2], RECORDS[3]]):
        folder = record.trial.folder(tmp_path)
        folder.mkdir(parents=True)
        lines = [{"epoch": n, "loss": 4.0 - n + seed, "lr": 0.1, "val_accuracy": 50.0 + n} for n in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = draw("curves", material(RECORDS, tmp_path)).data
    assert data["loss"].tolist() == [3.5, 2.5]  # mean over seeds
    assert data["val_accuracy"].tolist() == [51, 52]
    with pytest.raises(UserError, match=r"figure curves needs metrics\.jsonl of more than one epoch"):
        draw("curves", material(RECORDS, tmp_path / "other"))


def test_prompts() -> None:
    with pytest.raises(UserError, match="needs records that hold the influence of prompts"):
        draw("prompts", material(RECORDS))
    changes = [{"text": [0.1, 0.3]}, {"text": [0.3, 0.5]}]
    records = [r.model_copy(update={"influence": c}) for r, c in zip(RECORDS[2:4], changes, strict=True)]
    assert draw("prompts", material(records)).data["change"].tolist() == pytest.approx([0.2, 0.4])


def test_ablation_stands_beside_the_papers() -> None:
    with pytest.raises(UserError, match="run `promptbench ablate mmlop`"):
        draw("ablation", material(RECORDS))
    records = [
        make("mmlop", "a", 1, 150, 140),
        make("mmlop", "a", 1, 120, 140, variant="lowrank", settings={"x": 1}),
    ]
    records += [make("mmlop", "a", 1, 150, 150, variant="rank=2", settings={"x": 2})]
    data = draw("ablation", material(records)).data
    assert data[data["kind"] == "published"]["value"].tolist() == [
        77.51,
        77.06,
        78.78,
        79.2,
        79.7,
        75.85,
        75.01,
        75.2,
    ]
    ours = data[data["kind"] == "measured"].set_index(["part", "step"])["value"]
    assert ours["chain", "low rank"] == pytest.approx(2 * 60 * 70 / 130)
    assert ours["rank", "2"] == 75
    assert ours.isna().sum() == 4  # what was not run is missing


def test_critical_difference() -> None:
    few = "needs at least 5 methods on 6 datasets (else `promptbench compare --pairs`); there are 2 on 2."
    with pytest.raises(UserError, match=re.escape(few)):
        draw("critical-difference", material(RECORDS))
    records = [make(f"m{i}", f"d{j}", 1, 100 + 5 * i + (i * j) % 3, 100) for i in range(6) for j in range(7)]
    drawing = draw("critical-difference", material(records, metric="base"))
    assert drawing.data["method"].tolist() == [f"m{i}" for i in (5, 4, 3, 2, 1, 0)]
    assert drawing.data["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert drawing.data["critical_difference"].iloc[0] == pytest.approx(
        2.850 * (6 * 7 / 42) ** 0.5, abs=0.001
    )


def test_published_numbers_alone(tmp_path: Path) -> None:
    """The papers' figure of efficiency needs no record."""
    given = Material([], tmp_path, source="published")
    drawing = draw("tradeoff", given)
    points = drawing.data.set_index("method")
    assert [points["parameters"]["mmlop"], points["hm"]["mmlop"]] == [11556, 79.70]  # the formula's count
    assert str(points.loc["maple", "source"]).startswith("arXiv 2210.03117")
    assert "DiscoVL" in points.index  # not a method here, but with a published count
    text = render(given.shown, "md", datasets=[AVERAGE])
    assert "| maple (published) " in text
    assert "published numbers only" in text
    with pytest.raises(UserError, match="leave out --x"):
        draw("tradeoff", Material([], tmp_path, source="published", cost="seconds"))
    with pytest.raises(UserError, match="Nothing was published for the backbone 'pocket'"):
        _ = Material([], tmp_path, backbone="pocket", source="published").shown


def test_published_numbers_beside_measured_ones() -> None:
    """They are marked, are no part of averages, tests or bold, and stand beside their own datasets only."""
    records = [published_record("maple", "dtd", 80 + s, 60, seed=s) for s in (1, 2, 3)]
    records += [published_record("coop", "dtd", 70 + s, 50, seed=s) for s in (1, 2, 3)]
    given = material(records, source="both")
    rows = given.shown[given.shown["source"].notna()]
    assert set(rows["dataset"]) == {"dtd"}
    known = published.lookup("maple", "base2novel", "dtd", "base", 16, VIT)
    assert known is not None
    assert rows.set_index("method").loc["maple", "base"] == known["value"]
    assert not clear_best(given.shown, "base")[given.shown["source"].notna()].any()
    pd.testing.assert_frame_equal(given.summary, material(records).summary)
    text = render(given.shown, "table")
    assert "maple (published)" in text
    assert "Published, not measured here, no part of any statistic" in text
    drawing = draw("base-novel", given)
    assert len(drawing.data) > 2
