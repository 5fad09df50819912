"""Methods equal the official implementations: the shipped goldens, and cases of every other shape."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptbench.checks import parity
from promptbench.checks.parity.compare import Comparison
from promptbench.checks.parity.heads import mask
from promptbench.checks.parity.start import distance, summary
from tests.plain import Arrays, gaussian_weights, schedule, write_goldens

GOLDENS = Path(__file__).parent / "goldens"


def test_official_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(GOLDENS)]) == 0
    out = capsys.readouterr().out
    cases = json.loads((GOLDENS / "cases.json").read_text())["cases"]
    assert all(f"\n{name} ({case['method']}): " in out for name, case in cases.items())
    assert {case["method"] for case in cases.values()} >= {"KgCoOp", "MMRL++", "CLIP-LoRA", "Tip-Adapter-F"}
    assert "0 kinds over their tolerance" in out


WORDS = "a photo of a"
THREE = ["golden retriever", "St.", "black_and_white photograph of an ox"]
FIVE = ["golden retriever", "grand piano", "Boeing 737-800", "hot_dog", "ox"]
ON_U: dict[str, Any] = {"classnames": FIVE, "inputs": "inputs_U.safetensors"}
COOP: dict[str, Any] = {"method": "CoOp", "classnames": THREE}
IVLP: dict[str, Any] = {"method": "IVLP", "classnames": THREE, "ctx_init": "a photo of a"}
MAPLE: dict[str, Any] = {"method": "MaPLe", "classnames": THREE, "ctx_init": "a photo of a"}


def coop(n: int, words: str, position: str, specific: bool) -> dict[str, Any]:
    return COOP | {
        "n_ctx": n,
        "ctx_init": words,
        "class_token_position": position,
        "class_specific_context": specific,
    }


def ivlp(n_text: int, n_vision: int, depth_text: int, depth_vision: int, **more: Any) -> dict[str, Any]:
    counts = {"n_ctx_text": n_text, "n_ctx_vision": n_vision}
    return IVLP | counts | {"depth_text": depth_text, "depth_vision": depth_vision} | more


def cocoop(n: int, words: str, **more: Any) -> dict[str, Any]:
    return {"method": "CoCoOp", "classnames": THREE, "n_ctx": n, "ctx_init": words} | more


def vpt(n: int, depth: int, **more: Any) -> dict[str, Any]:
    return {"method": "VPT", "classnames": THREE, "n_ctx_vision": n, "depth_vision": depth} | more


def promptsrc(counts: tuple[int, int], depths: tuple[int, int], **more: Any) -> dict[str, Any]:
    """Text before vision; the published weights unless others are given."""
    prompts = {"n_ctx_text": counts[0], "n_ctx_vision": counts[1]}
    layers = {"depth_text": depths[0], "depth_vision": depths[1]}
    weights = {"text_loss_weight": 25.0, "image_loss_weight": 10.0}
    return {"method": "PromptSRC", "classnames": THREE, "ctx_init": WORDS} | prompts | layers | weights | more


def aggregation(epochs: int, batches: int, mean: float, std: float) -> dict[str, Any]:
    return {"epochs": epochs, "batches_per_epoch": batches, "gpa_mean": mean, "gpa_std": std}


CASES = {
    "coop_middle": coop(4, "a photo of a", "middle", False),
    "coop_front_random16": coop(16, "", "front", False),
    "coop_middle_odd": coop(5, "", "middle", False),
    "coop_end_specific": coop(4, "a photo of a", "end", True),
    "coop_front_specific": coop(3, "", "front", True),
    "coop_one": coop(1, "", "end", False),
    "ivlp_asymmetric": ivlp(4, 2, 4, 2),
    "ivlp_shallow_text": ivlp(2, 6, 1, 4),
    "ivlp_no_text": ivlp(0, 4, 1, 3),
    "ivlp_no_vision": ivlp(4, 0, 3, 0),
    "ivlp_random": ivlp(8, 8, 2, 2, ctx_init=""),
    "ivlp_more_than_words": ivlp(6, 1, 2, 2),
    "maple_shallow": MAPLE | {"n_ctx": 2, "depth": 1},
    "maple_deep": MAPLE | {"n_ctx": 3, "depth": 4},
    "maple_random": MAPLE | {"n_ctx": 5, "depth": 2, "ctx_init": ""},
    "cocoop_ctx4": cocoop(4, WORDS),
    "cocoop_ctx3_random": cocoop(3, "", **ON_U),
    "vpt_shallow": vpt(2, 1),
    "vpt_deep": vpt(3, 4, **ON_U),
    "promptsrc_depth3_ctx4": promptsrc((4, 4), (3, 3)),
    "promptsrc_asymmetric": promptsrc((2, 6), (4, 2), text_loss_weight=7.0, image_loss_weight=3.0, **ON_U),
    "promptsrc_random": promptsrc((5, 1), (1, 4), ctx_init="", text_loss_weight=0.5),
    "promptsrc_no_text": promptsrc((0, 4), (1, 2)),
    "promptsrc_no_vision": promptsrc((4, 0), (2, 0)),
    "promptsrc_gpa": promptsrc((4, 4), (3, 3), **aggregation(4, 2, 3, 1)),
    "promptsrc_gpa_alone": promptsrc((2, 3), (2, 3), **aggregation(3, 1, 1.5, 2.5), **ON_U),
}


ZEROSHOT = {
    "zeroshot_T": THREE,
    "zeroshot_U": FIVE,
    "zeroshot_ensemble_T": THREE,
    "zeroshot_ensemble_U": FIVE,
}


def gpa_tables(*settings: tuple[int, float, float]) -> Arrays:
    return {f"gpa_weights.epochs{e}_mean{m}_std{s}": gaussian_weights(e, m, s) for e, m, s in settings}


def schedules(*settings: tuple[float, int]) -> Arrays:
    return {f"lr{base}_epochs{epochs}": schedule(base, epochs) for base, epochs in settings}


TABLES = {
    "gpa_weights_a": gpa_tables((20, 15, 1), (20, 6, 10)),
    "promptsrc_depth3_ctx4": gpa_tables((50, 30, 30), (50, 45.0, 5.0)),  # in the file of a case
    "promptsrc_gpa": gpa_tables((7, 2.5, 0.5)),  # beside `gpa_weights` of the run itself
    "lr_schedule_b": schedules((0.0025, 20), (0.0026, 2), (0.002, 1)),
    "lr_schedule_c": schedules((5e-05, 7), (0.0035, 200)) | gpa_tables((1, 1, 1)),  # two sorts in one file
}


def rewrite(path: Path, keep: tuple[str, ...], drop: str = "nothing") -> None:
    """Leave only the arrays whose names start with one of ``keep`` and are not ``drop``."""
    arrays = load_file(path)
    save_file({name: v for name, v in arrays.items() if name.startswith(keep) and name != drop}, path)


def test_cases_of_any_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the plain reading of the cards in `tests.plain`, which shares no code with the engine."""
    write_goldens(tmp_path, CASES, ZEROSHOT, TABLES)
    # a run without the arrays of a training case; an ensemble without tokens and raw text features
    rewrite(tmp_path / "promptsrc_gpa_alone.safetensors", ("tokens", "param.", "epoch", "gpa", "logits_gpa"))
    features = ("image_features", "text_features", "logits")
    rewrite(tmp_path / "zeroshot_ensemble_T.safetensors", features, drop="text_features_raw")
    assert parity.main([str(tmp_path)]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert all(name in out for name in (*CASES, *ZEROSHOT, *TABLES))
    for kind in ("loss_terms", "gpa_weights", "epochs", "schedule"):
        assert f"  {kind} " in out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped folder cut down to one case."""
    shutil.copytree(GOLDENS, tmp_path / "goldens")
    cases = json.loads((GOLDENS / "cases.json").read_text())
    one = {**cases, "cases": {"coop_init4_end": cases["cases"]["coop_init4_end"]}}
    (tmp_path / "goldens/cases.json").write_text(json.dumps(one))
    return tmp_path / "goldens"


@pytest.mark.parametrize(
    ("array", "amount", "line"),
    [
        ("logits", 2e-4, "logits "),
        ("text_features_raw", 5e-5, "features_raw "),
        ("grad.prompt_learner.ctx", 1e-2, "grad "),
        ("step3.prompt_learner.ctx", 1e-5, "steps "),
        ("wd05_step2.prompt_learner.ctx", 1e-5, "steps "),
        ("loss", float("nan"), "loss "),
    ],
)
def test_a_difference_is_found(
    folder: Path, array: str, amount: float, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "coop_init4_end.safetensors"
    arrays = load_file(path)
    arrays[array].view(-1)[0] += amount
    save_file(arrays, path)
    assert parity.main([str(folder)]) == 1
    failed = [row.strip() for row in capsys.readouterr().out.splitlines() if row.endswith("FAILED")]
    assert len(failed) == 1
    assert failed[0].startswith(line)
    assert array in failed[0]


def test_a_wrong_token_is_found(folder: Path) -> None:
    path = folder / "coop_init4_end.safetensors"
    arrays = load_file(path)
    arrays["tokens"][1, 5] += 1  # the first token of a class name
    save_file(arrays, path)
    assert parity.main([str(folder)]) == 1


def test_wrong_schedule_is_found(folder: Path) -> None:
    path = folder / "lr_schedule_a.safetensors"
    arrays = load_file(path)
    name = next(iter(arrays))
    arrays[name] = arrays[name].roll(1)
    save_file(arrays, path)
    assert parity.main([str(folder)]) == 1


def test_nothing_is_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A method or an array that is not known is an error that names it."""
    path = folder / "coop_init4_end.safetensors"
    arrays = load_file(path)
    save_file({**arrays, "features_of_tomorrow": torch.zeros(1)}, path)
    assert parity.main([str(folder)]) == 2
    assert "Case coop_init4_end: unknown arrays: features_of_tomorrow" in capsys.readouterr().err
    save_file(arrays, path)
    cases = json.loads((folder / "cases.json").read_text())
    cases["cases"]["future"] = {"method": "NotYet", "classnames": [], "inputs": "", "file": ""}
    (folder / "cases.json").write_text(json.dumps(cases))
    assert parity.main([str(folder)]) == 2
    assert "Case future: there is no method called 'NotYet'" in capsys.readouterr().err


@pytest.mark.parametrize("n", [8, 64, 2000])
def test_starts_are_told_apart(n: int) -> None:
    """One draw of n values or 24 of them: ours passes; another width, shape or centre does not, if there are
    enough values to see it."""
    g = torch.Generator().manual_seed(n)

    def uniform(seeds: int, bound: float = 0.5) -> torch.Tensor:
        return (torch.rand(seeds, n, generator=g) * 2 - 1) * bound

    def normal(seeds: int, std: float = 0.5) -> torch.Tensor:
        return torch.randn(seeds, n, generator=g) * std

    for draw in (uniform, normal):
        for seeds in (1, 24):
            for _ in range(20):
                assert distance(draw(24), summary(draw(seeds)), seeds * n) < 1
    pool = 24 * n
    assert distance(uniform(24), summary(uniform(24, 0.25)), pool) > 1
    assert distance(uniform(24), summary(uniform(24) + 0.6), pool) > 1
    assert distance(uniform(24), summary(torch.zeros(24, n)), pool) > 1
    assert distance(torch.zeros(24, n), summary(uniform(24, 1e-3)), pool) > 1
    if n > 8:  # equal deviations
        assert distance(uniform(24), summary(normal(24, 0.5 / 3**0.5)), pool) > 1
        assert distance(normal(24, 0.5 / 3**0.5), summary(uniform(24)), pool) > 1


def test_dropout_masks_lie_as_the_official_code_has_them() -> None:
    """[length, batch, d] in front of queries, keys and values, [length * batch, d] in front of the output."""
    length, rows, width = 5, 3, 2
    kept = torch.ones(length, rows, width, dtype=torch.uint8)
    kept[4, 1] = 0
    arrays = {f"mask2.transformer.resblocks.0.attn.{part}": kept for part in ("q_proj", "k_proj", "v_proj")}
    arrays["mask2.transformer.resblocks.0.attn.proj"] = kept.view(-1, width)
    method: Any = SimpleNamespace(training=True, settings=SimpleNamespace(dropout=0.5))
    mask(method, 2, Comparison(arrays, {}))
    expected = torch.full((rows, length, width), 2.0)
    expected[1, 4] = 0
    for key in "qkvo":
        assert torch.equal(method.drop("text", 0, key, torch.ones(rows, length, width)), expected)


def test_bad_folders(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(tmp_path / "nowhere")]) == 2
    path = folder / "coop_init4_end.safetensors"
    arrays = load_file(path)
    save_file({k: v for k, v in arrays.items() if k != "loss"}, path)
    assert parity.main([str(folder)]) == 2
    save_file({**arrays, "param.prompt_learner.extra": torch.zeros(1)}, path)
    assert parity.main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert "lacks 'loss'" in error
    assert "parameters differ from the official ones: prompt_learner.extra" in error
    assert "Traceback" not in error
