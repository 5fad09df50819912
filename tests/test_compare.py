"""Tables and figures from hand-made records, against values worked out by hand."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from promptbench.analysis import published
from promptbench.analysis.comparison import load_frame
from promptbench.analysis.statistics import all_pairs, harmonic_mean
from promptbench.analysis.summary import frame, measured, summarise
from promptbench.analysis.vocabulary import AVERAGE
from promptbench.errors import UserError
from promptbench.reporting import pairs as pair_tables
from promptbench.reporting.tables import Format, escape, render
from promptbench.training.counts import Counts, Evaluation
from promptbench.trials.benchmarks import BENCHMARKS, Benchmark, Transfer, get_benchmark
from promptbench.trials.record import Record, Seconds, read_record, read_records
from promptbench.trials.trial import Trial


def make(
    method: str, dataset: str, seed: int, base: int, novel: int, parameters: int = 100, **trial: Any
) -> Record:
    """A record with ``base`` and ``novel`` correct out of 200 each."""
    full: dict[str, Any] = {
        "benchmark": "base2novel",
        "method": method,
        "settings": {"lr": 0.1},
        "dataset": dataset,
        "data": "d",
        "train_classes": "base",
        "shots": 16 if seed else 0,
        "seed": seed,
        "evaluations": (),
    } | trial
    value = Trial(**full)
    counts = [
        Counts(
            dataset=dataset,
            classes=half,
            split="test",
            correct=n,
            total=200,
            per_class={"x": (n, 200)},
        )
        for half, n in (("base", base), ("novel", novel))
    ]
    return Record(
        hash=value.hash,
        trial=value,
        evaluations=counts,
        trainable_parameters=parameters,
        steps=10,
        final_loss=1.0,
        hashes={"weights": "w" * 64},
        seconds=Seconds(train=2.0),
        peak_memory_bytes=1 << 20,
        environment={"device": "cpu", "packages": {"torch": "2"}},
    )


RECORDS = [
    make("zeroshot", "a", 0, 120, 140, 0),
    make("zeroshot", "b", 0, 100, 160, 0),
    make("deep", "a", 1, 160, 100, 5000),
    make("deep", "a", 2, 170, 110, 5000),
    make("deep", "b", 1, 150, 120, 5000),
    make("deep", "b", 2, 150, 140, 5000),
    make("small", "a", 1, 150, 150, 40),
]


def cell(summary: pd.DataFrame, method: str, dataset: str) -> Any:
    return summary[(summary["method"] == method) & (summary["dataset"] == dataset)].iloc[0]


def test_means_and_deviations() -> None:
    row = cell(summarise(frame(RECORDS)), "deep", "a")
    assert (row["base"], row["novel"], row["seeds"], row["parameters"]) == (82.5, 52.5, 2, 5000)
    assert row["base_std"] == pytest.approx(math.sqrt(2 * 2.5**2 / 1))  # ddof 1
    assert row["hm"] == pytest.approx(2 * 82.5 * 52.5 / 135)
    each = [2 * 80 * 50 / 130, 2 * 85 * 55 / 140]
    assert row["hm_std"] == pytest.approx(abs(each[0] - each[1]) / math.sqrt(2))


def test_average_is_the_harmonic_mean_of_averages() -> None:
    row = cell(summarise(frame(RECORDS)), "deep", AVERAGE)
    base, novel = (82.5 + 75) / 2, (52.5 + 65) / 2
    assert (row["base"], row["novel"]) == (base, novel)
    assert row["hm"] == pytest.approx(2 * base * novel / (base + novel))
    parts = [2 * 82.5 * 52.5 / 135, 2 * 75 * 65 / 140]
    assert row["mean_hm"] == pytest.approx(sum(parts) / 2)
    assert row["hm"] != pytest.approx(row["mean_hm"], abs=1e-3)
    seeds = [(80 + 75) / 2, (85 + 75) / 2]
    assert row["base_std"] == pytest.approx(abs(seeds[0] - seeds[1]) / math.sqrt(2))


def test_published_averages_follow_the_rule() -> None:
    """CLIP 69.34 / 74.22 -> 71.70, MaPLe 82.28 / 75.14 -> 78.55 (protocol, section 10)."""
    assert round(harmonic_mean(69.34, 74.22), 2) == 71.70
    assert round(harmonic_mean(82.28, 75.14), 2) == 78.55
    assert harmonic_mean(0, 0) == 0


def test_a_missing_dataset_is_never_averaged_over() -> None:
    summary = summarise(frame(RECORDS))
    assert math.isnan(cell(summary, "small", AVERAGE)["hm"])
    text = render(summary, "table")
    assert "No average for small: a dataset, or a seed common to all, is missing." in text
    assert math.isnan(cell(summary, "zeroshot", "a")["base_std"])  # one run has no spread


def test_averages_use_the_seeds_all_datasets_have() -> None:
    records = [make("m", "a", 1, 100, 100), make("m", "a", 2, 120, 120), make("m", "b", 2, 140, 140)]
    summary = summarise(frame(records))
    row = cell(summary, "m", AVERAGE)
    assert (row["base"], row["seeds"]) == (65.0, 1)  # seed 2 only
    assert "Average of m: only over the seeds that all its datasets have." in render(summary, "md")
    apart = summarise(frame([records[0], records[2]]))
    assert math.isnan(cell(apart, "m", AVERAGE)["base"])
    assert "a seed common to all, is missing" in render(apart, "md")


def test_one_seed_keeps_its_decimals() -> None:
    text = render(summarise(frame([make("m", "a", 1, 120, 141)])), "md")
    assert "|  60.00 |   70.50 |" in text or "| 60.00 |   70.50 |" in text


@pytest.mark.parametrize("what", ["weights", "data"])
def test_different_weights_or_data_are_never_mixed(what: str) -> None:
    changed: dict[str, Any] = {what: "changed"}
    other = make("other", "a", 1, 1, 1, **changed)
    with pytest.raises(UserError, match=f"made with different {what}") as error:
        frame([*RECORDS, other])
    assert f" against {other.hash[:8]}" in str(error.value) or f"({other.hash[:8]} against" in str(
        error.value
    )
    assert any(record.hash[:8] in str(error.value) for record in RECORDS)
    assert " more" in str(error.value)  # of the many others, a few


def test_precisions_are_told_apart() -> None:
    names = set(summarise(frame([*RECORDS, make("deep", "a", 1, 10, 10, precision="bf16")]))["method"])
    assert {"deep (bf16)", "deep (fp32)"} <= names


def test_latex_is_escaped() -> None:
    text = render(
        summarise(frame([make("m", "oxford_pets", 1, 9, 9, variant="ctx_init=50% & more")])), "latex"
    )
    assert r"oxford\_pets" in text
    assert r"50\% \& more" in text


def test_zero_seeds_and_order() -> None:
    summary = summarise(frame(RECORDS))
    assert list(summary["dataset"]) == ["a"] * 3 + ["b"] * 2 + [AVERAGE] * 3
    assert list(summary[summary["dataset"] == "a"]["method"]) == ["zeroshot", "small", "deep"]


#: `render` of RECORDS in every format, and of their pairs
TABLES = Path(__file__).parent / "tables"
ENDINGS: dict[Format, str] = {"table": "txt", "md": "md", "csv": "csv", "json": "json", "latex": "tex"}


@pytest.mark.parametrize("style", ENDINGS)
def test_golden_tables(style: Format) -> None:
    table = frame(RECORDS)
    name = f"base2novel.{ENDINGS[style]}"
    assert render(summarise(table), style, "base2novel") == (TABLES / name).read_text()
    pairs = pair_tables.render(all_pairs(measured(table)), style, "base2novel")
    assert pairs == (TABLES / f"pairs.{ENDINGS[style]}").read_text()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("name", ["base2novel.tex", "pairs.tex"])
def test_latex_compiles(name: str, tmp_path: Path) -> None:
    table = (TABLES / name).read_text().replace("small", escape("a_b & 50% {#1} ~^\\ <x>"))
    text = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{table}\end{{document}}"
    (tmp_path / "t.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-2000:]


def test_notes_below_the_table() -> None:
    text = render(summarise(frame(RECORDS)), "md")
    assert "Benchmark base2novel, backbone pocket, 16 shots, 1 to 2 seeds, n = 800 test images." in text
    assert "HM: harmonic mean of the mean base and the mean novel accuracy." in text
    assert "Mean of the datasets' HMs, for comparison: zeroshot 63.08, deep 66.90." in text


def test_only_a_clear_best_is_bold() -> None:
    """On a, deep's base interval is wide; on b its novel is below zero-shot's but not clearly."""
    summary = summarise(frame(RECORDS))
    assert cell(summary, "deep", "a")["base_low"] < 75 < cell(summary, "deep", "a")["base"]
    alone = render(summarise(frame([make("m", "a", seed, 150 + seed, 150) for seed in (1, 2, 3)])), "md")
    assert "**" not in alone  # nothing to be better than
    one_seed = [make("small", "a", 1, 100, 100), *(make("deep", "a", s, 190, 190) for s in (1, 2, 3))]
    assert "**" not in render(summarise(frame(one_seed)), "md")  # one seed says nothing about its spread
    other = [make("small", "a", s, 100, 100) for s in (1, 2)]
    text = render(summarise(frame([*one_seed[1:], *other])), "latex")
    assert r"\textbf{95.00 $\pm$ 0.00}" in text
    assert "Bold: best, with an interval above every other's." in text


def test_intervals_are_those_of_the_t_distribution() -> None:
    records = [make("m", "a", seed, base, 100) for seed, base in ((1, 120), (2, 130), (3, 134))]
    summary = summarise(frame(records))
    row = cell(summary, "m", "a")
    half = 4.302653 * pd.Series([60.0, 65.0, 67.0]).std() / math.sqrt(3)
    assert (row["base_low"], row["base_high"]) == pytest.approx((64 - half, 64 + half))
    assert f"64.00 [{64 - half:.1f}, {64 + half:.1f}]" in render(summary, "md", intervals=True)
    zeroshot = cell(summarise(frame(RECORDS)), "zeroshot", "a")
    assert zeroshot["base_low"] == zeroshot["base_high"] == 60  # no seed, no spread
    single = cell(summarise(frame(records[:1])), "m", "a")
    assert math.isnan(single["base_low"])


def test_rows_of_some_datasets() -> None:
    text = render(summarise(frame(RECORDS)), "md", datasets=[AVERAGE])
    assert text.count("| average ") == 3
    assert "| a " not in text
    assert "standard deviation" not in text  # shown nowhere


def test_other_formats() -> None:
    summary = summarise(frame(RECORDS))
    rows = json.loads(render(summary, "json"))
    assert rows[0]["base"] == 60.0
    assert rows[-1]["base_low"] < rows[-1]["base"] < rows[-1]["base_high"]
    header = render(summary, "csv").splitlines()[0]
    assert header.startswith("dataset,method,shots,parameters")
    assert ",hm,hm_std,hm_low,hm_high," in header
    latex = render(summary, "latex", "Base to novel")
    assert r"\toprule" in latex
    assert r"82.50 $\pm$ 3.54" in latex
    assert latex.count("{") == latex.count("}")


def test_shots_become_a_column() -> None:
    records = [make("m", "a", 1, 100, 100, shots=k) for k in (1, 4)]
    assert "shots" in render(summarise(frame(records)), "md").splitlines()[0]


def test_settings_are_never_mixed() -> None:
    """Other settings get a name of their own; without one they are an error, not an average."""
    changed = make("deep", "a", 1, 10, 10, settings={"lr": 0.2}, variant="lr=0.2")
    names = set(summarise(frame([*RECORDS, changed]))["method"])
    assert "deep (lr=0.2)" in names
    nameless = make("deep", "a", 1, 10, 10, settings={"lr": 0.2})
    with pytest.raises(UserError, match=r"answer the same question \(deep on a\)"):
        frame([*RECORDS, nameless])


def write(records: list[Record], out: Path) -> None:
    for record in records:
        record.write(record.trial.folder(out))


def test_records_survive_the_disk(tmp_path: Path) -> None:
    write(RECORDS, tmp_path)
    found, broken = read_records(tmp_path)
    assert not broken
    assert {r.hash for r in found} == {r.hash for r in RECORDS}
    assert all(r in RECORDS for r in found)


def test_smoke_runs_and_other_splits_are_left_out(tmp_path: Path) -> None:
    extra = [make("small", "b", 1, 1, 1, limit=2), make("small", "b", 1, 2, 2, split="val")]
    write([*RECORDS, *extra], tmp_path)
    assert len(load_frame(tmp_path)) == 2 * len(RECORDS)
    write(extra, tmp_path / "only")
    said = r"No records of base2novel .*: 2 records are smoke runs \(--limit\) or of another split; make some"
    with pytest.raises(UserError, match=said):
        load_frame(tmp_path / "only")


def test_records_that_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No records of base2novel under .*`promptbench run"):
        load_frame(tmp_path)
    write(RECORDS, tmp_path)
    with pytest.raises(UserError, match=r"\(there are records of base2novel\)"):
        load_frame(tmp_path, "fewshot")
    write([make("deep", "a", 1, 1, 1, backbone="ViT-B-16-quickgelu")], tmp_path)
    with pytest.raises(UserError, match="mixes backbones"):
        load_frame(tmp_path)
    assert len(load_frame(tmp_path, backbone="pocket")) == 2 * len(RECORDS)
    with pytest.raises(UserError, match="Did you mean 'pocket'"):
        load_frame(tmp_path, backbone="poket")


@pytest.mark.parametrize("damage", ["truncated", "other trial"])
def test_a_damaged_record_is_reported(tmp_path: Path, damage: str) -> None:
    write(RECORDS, tmp_path)
    path = RECORDS[0].trial.folder(tmp_path) / "record.json"
    text = path.read_text()
    path.write_text(text[:-40] if damage == "truncated" else text.replace('"seed": 0', '"seed": 7'))
    assert damage != "truncated" or read_record(path.parent) is None
    with pytest.raises(UserError, match=r"1 record\(s\) cannot be read, the first is .*record\.json"):
        load_frame(tmp_path)


def test_hash_names_everything_but_the_labels() -> None:
    trial = RECORDS[2].trial
    assert trial.hash == trial.model_copy(update={"variant": "x", "pretrained": "/elsewhere"}).hash
    settings = {"lr": 0.1, "drop_last": True}
    assert trial.hash == Trial(**{**trial.model_dump(), "settings": settings}).hash  # as it always was
    assert trial.hash != Trial(**{**trial.model_dump(), "settings": {**settings, "drop_last": False}}).hash
    for change in (
        {"seed": 9},
        {"settings": {"lr": 0.3}},
        {"data": "e"},
        {"weights": "v"},
        {"limit": 1},
        {"shots": 8},
        {"split": "val"},
        {"precision": "bf16"},
        {"backbone": "ViT-B-32"},
        {"evaluations": (Evaluation(dataset="a", classes="all"),)},
    ):
        other = Trial(**{**trial.model_dump(), **change})
        assert other.hash != trial.hash


def test_tuned_settings_belong_to_the_embedded_backbone() -> None:
    import yaml

    from promptbench.clip.backbones import pocket_folder
    from promptbench.methods._registry import get_recipe
    from promptbench.trials.plan import tuned_settings

    chosen = yaml.safe_load((pocket_folder() / "settings.yaml").read_text())
    for name, settings in chosen["settings"].items():
        recipe = get_recipe(name)
        assert tuned_settings("pocket", recipe) == {**chosen["common"], **settings}
        best = max(chosen["tried"][name], key=lambda row: row["base_val"])
        assert best.items() >= settings.items()
        assert tuned_settings("ViT-B-16-quickgelu", recipe) == {}
    assert tuned_settings("pocket", get_recipe("zeroshot")) == chosen["common"]
    # a variant nobody tuned has its method's
    variant = get_recipe("ivlp-2-12")
    assert tuned_settings("pocket", variant) == tuned_settings("pocket", get_recipe("ivlp"))


def transfer(method: str, seed: int, **correct: int) -> Record:
    """A transfer record: trained on "src", tested on it and on the datasets named."""
    record = make(method, "src", seed, 0, 0, benchmark="crossdataset", train_classes="all")
    counts = [
        Counts(dataset=name, classes="all", split="test", correct=n, total=200, per_class={"x": (n, 200)})
        for name, n in correct.items()
    ]
    return record.model_copy(update={"evaluations": counts, "labels": ["a: non-standard split"]})


def test_the_source_of_a_transfer_is_shown_but_not_averaged() -> None:
    summary = summarise(
        frame([transfer("deep", 1, src=190, a=100, b=120), transfer("deep", 2, src=180, a=110, b=120)])
    )
    assert list(summary["dataset"]) == ["src", "a", "b", "average"]
    average = cell(summary, "deep", "average")
    assert average["all"] == pytest.approx((50 + 60 + 55 + 60) / 4)
    assert average["all_std"] == pytest.approx(pd.Series([55.0, 57.5]).std())
    text = render(summary, "md")
    assert "Trained on src, which is no part of the average." in text
    assert "Non-standard splits, not comparable with published numbers: a." in text


def published_record(method: str, dataset: str, base: float, novel: float, **trial: Any) -> Record:
    """A record on the published test images of a standard dataset, accuracies in percent."""
    from promptbench.data.cards import cards

    halves = cards()[dataset][0].halves or {}
    given: dict[str, Any] = {"backbone": "ViT-B-16-quickgelu", "weights": "openai", "pretrained": "openai"}
    seed = trial.pop("seed", 0 if method == "zeroshot" else 1)
    record = make(method, dataset, seed, 0, 0, **given | trial)
    counts = [
        old.model_copy(update={"correct": right, "total": total, "per_class": {"x": (right, total)}})
        for old, share in zip(record.evaluations, (base, novel), strict=True)
        for total in (halves[old.classes],)
        for right in (round(share / 100 * total),)
    ]
    return record.model_copy(update={"evaluations": counts})


def check(records: list[Record], benchmark: str = "base2novel") -> tuple[dict[Any, str], list[str]]:
    """Verdicts by method, dataset and metric, and what is said about the rest."""
    from promptbench.analysis.verification import verify

    found = verify(records, benchmark, "ViT-B-16-quickgelu")
    verdicts = {(r["method"], r["dataset"], r["metric"]): r["verdict"] for r in found.to_dict("records")}
    return verdicts, found.attrs["notes"]


def test_verify_against_published_numbers() -> None:
    from promptbench.data.cards import suite

    # published: DTD 53.24 / 59.90; averages 69.34 / 74.22 / 71.70 and 83.79 / 75.85 / 79.70
    records = [published_record("zeroshot", name, 69.34, 74.22) for name in suite("standard")]
    records[suite("standard").index("dtd")] = published_record("zeroshot", "dtd", 53.3, 60.3)
    records += [published_record("mmlop", name, 83.5, 75.0) for name in suite("standard")]
    records += [published_record("mmlop", "dtd", 1, 1, settings={"rank": 2}, variant="rank=2")]
    verdicts, notes = check(records)
    assert verdicts["zeroshot", "dtd", "base"] == "pass"
    assert verdicts["zeroshot", "dtd", "novel"].startswith("off by 0.3")
    assert verdicts["zeroshot", "average", "base"].startswith("off by 1.4")
    assert verdicts["mmlop", "average", "base"] == "pass"
    assert verdicts["mmlop", "average", "novel"] == "off by 0.85"
    assert not [key for key in verdicts if "rank" in str(key[0])]
    assert not [note for note in notes if "zeroshot" in note or "mmlop (16 shots)" in note]


def test_verify_compares_no_average_that_lacks_a_dataset() -> None:
    from promptbench.data.cards import suite

    ten = [name for name in suite("standard") if name != "imagenet"]
    for names in (ten, ["dtd"]):
        verdicts, notes = check([published_record("maple", name, 80, 70) for name in names])
        assert ("maple", "dtd", "base") in verdicts
        assert not [key for key in verdicts if key[1] == AVERAGE]
        (note,) = notes
        assert note.startswith("average left out for maple (16 shots): it needs all of ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": ["dtd: non-standard split"]}, "non-standard split"),
        ({"weights": "laion400m_e31"}, "weights 'laion400m_e31' instead of 'openai'"),
        ({"weights": "laion400m_e31=" + "0" * 64}, "weights 'laion400m_e31' instead of 'openai'"),
        ({"total": 200}, "200 test images instead of 864"),
    ],
)
def test_verify_leaves_out_what_was_not_published(change: dict[str, Any], reason: str) -> None:
    off = published_record("maple", "dtd", 1, 1, **{k: v for k, v in change.items() if k == "weights"})
    if "labels" in change:
        off = off.model_copy(update=change)
    if "total" in change:
        counts = [c.model_copy(update=change) for c in off.evaluations]
        off = off.model_copy(update={"evaluations": counts})
    verdicts, notes = check([off, published_record("maple", "eurosat", 90, 70)])
    assert {key[1] for key in verdicts} == {"eurosat"}
    assert any(note.startswith(f"dtd: not comparable: {reason}") for note in notes)


def test_verify_of_other_datasets_and_of_files() -> None:
    own = make("maple", "a", 1, 1, 1, weights="openai")
    file = published_record("maple", "dtd", 80, 60, weights="0" * 64)
    verdicts, notes = check([own, file])
    assert {key[1] for key in verdicts} == {"dtd"}
    assert "a: not comparable: not what was published for base2novel (2 results)" in notes
    assert "weights from a file: assumed OpenAI's" in notes


def test_verify_of_transfers() -> None:
    """Records of other targets are no obstacle; the average needs the four variants."""
    from promptbench.data.cards import cards

    source, targets = get_benchmark("domain").datasets("standard")
    assert source is not None
    records = []
    for seed, names in ((1, targets), (2, targets[:3])):
        one = make("maple", source, seed, 0, 0, benchmark="domain", data=str(len(names)), weights="openai")
        counts = []
        for name in (source, *names):
            total = (cards()[name][0].sizes or {})["test"]
            counts.append(one.evaluations[0].model_copy(update={"dataset": name, "classes": "all"}))
            counts[-1] = counts[-1].model_copy(update={"correct": total // 2, "total": total})
        records.append(one.model_copy(update={"evaluations": counts}))
    verdicts, notes = check(records, "domain")
    assert ("maple", AVERAGE, "all") in verdicts
    assert ("maple", "imagenet_a", "all") in verdicts
    assert not [note for note in notes if "not comparable" in note]
    verdicts, notes = check(records[1:], "domain")
    assert ("maple", AVERAGE, "all") not in verdicts
    assert any(note.startswith("average left out") for note in notes)


def test_a_benchmark_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns and what is averaged follow from it; nothing else lists benchmarks."""
    kinds = Benchmark("kinds", "", (4,), "all", ("all", "novel"), {"pocket": Transfer("icons", ("kinds",))})
    monkeypatch.setitem(BENCHMARKS, "kinds", kinds)
    assert kinds.metrics == ("all", "novel")
    assert get_benchmark("base2novel").metrics == ("base", "novel", "hm")
    one = make("deep", "icons", 1, 8, 9, benchmark="kinds")
    one.evaluations[1].dataset = "kinds"
    assert frame([one]).groupby("dataset")["source"].first().to_dict() == {"icons": True, "kinds": False}
    assert published.lookup("coop", "kinds", "kinds", "all", 4, "ViT-B-16-quickgelu") is None
    with pytest.raises(UserError, match="Nothing was published for kinds"):
        published.rows("kinds", "ViT-B-16-quickgelu")
    with pytest.raises(UserError, match="names no source and targets for kinds"):
        kinds.datasets("standard")
