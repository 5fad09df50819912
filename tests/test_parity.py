"""Methods equal the official implementations: the shipped goldens, and cases of every other shape."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptbench import parity
from tests.plain import write_goldens

GOLDENS = Path(__file__).parent / "goldens"


def test_official_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(GOLDENS)]) == 0
    out = capsys.readouterr().out
    for case in ("coop_init4_end", "ivlp_depth3_ctx4", "maple_ctx2_depth3", "zeroshot_A", "lr_schedule_a"):
        assert case in out
    assert "skipped" not in out
    assert "0 over their tolerance" in out


THREE = ["golden retriever", "St.", "black_and_white photograph of an ox"]
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
    "maple_random": MAPLE | {"n_ctx": 7, "depth": 2, "ctx_init": ""},
}


def test_cases_of_any_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the plain reading of the cards in `tests.plain`, which shares no code with the engine."""
    write_goldens(tmp_path, dict(CASES))
    assert parity.main([str(tmp_path)]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert all(name in out for name in CASES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped folder cut down to one case."""
    shutil.copytree(GOLDENS, tmp_path / "goldens")
    cases = json.loads((GOLDENS / "cases.json").read_text())
    one = {"cases": {"coop_init4_end": cases["cases"]["coop_init4_end"]}}
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


def test_unknown_methods_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = json.loads((folder / "cases.json").read_text())
    cases["cases"]["future"] = {"method": "NotYet", "classnames": [], "inputs": "", "file": ""}
    (folder / "cases.json").write_text(json.dumps(cases))
    assert parity.main([str(folder)]) == 0
    assert "future: skipped, NotYet is not implemented" in capsys.readouterr().out


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
