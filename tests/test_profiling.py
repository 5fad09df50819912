"""The fast step and the step done the official way are the same step; `profile` reports both."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from promptbench.checks.profile import gemm_rate
from promptbench.checks.training_step import TrainingStep, natural_names
from promptbench.cli.app import app
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.errors import UserError
from promptbench.methods._registry import get_recipe, methods
from tests.conftest import close

TRAINED = [name for name, kind in methods().items() if kind.trains and kind.Settings().epochs]


@pytest.fixture(scope="module")
def pocket() -> FrozenCLIP:
    return FrozenCLIP.load()


@pytest.mark.parametrize("name", TRAINED)
def test_three_steps_equal_the_official_way(pocket: FrozenCLIP, name: str) -> None:
    """The whole context, nothing shared and features in the step change nothing: same losses, and same way
    of the parameters. By SGD: Adam makes a full step of a gradient that is zero but for rounding."""
    results = []
    for reference in (False, True):
        torch.manual_seed(3)  # random pictures and shots
        step = TrainingStep(get_recipe(name), pocket, natural_names(5), 2, "fp32")
        step.images = torch.linspace(-1, 1, step.images.numel()).sin().view_as(step.images)
        step.method.eval()  # dropout draws for the tokens there are: more of them where sentences are padded
        step.optimizer = torch.optim.SGD(step.parameters, lr=0.02)
        start = [p.detach().clone() for p in step.parameters]
        kept, losses = step.frozen(), []
        for _ in range(3):
            losses.append(step.run_reference() if reference else step.run(kept))
        ways = [p.detach() - before for p, before in zip(step.parameters, start, strict=True)]
        results.append((torch.stack(losses), ways))
    (fast, ours), (official, theirs) = results
    assert step.clip is step.method.clip is pocket
    assert close(fast, official)
    assert max(way.abs().max() for way in theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-8


def test_the_command_reports_parts_and_ratio() -> None:
    line = ["profile", "coop", "ivlp", "--classes", "3", "--batch", "1", "--repeats", "1", "--reference"]
    result = CliRunner().invoke(app, [*line, "--format", "json"])
    assert result.exit_code == 0, result.output
    coop, ivlp = json.loads(result.stdout)
    assert (coop["method"], coop["classes"], coop["batch"], coop["parameters"]) == ("coop", 3, 1, 384)
    assert coop["ratio"] == pytest.approx(coop["reference_seconds"] / coop["fast_seconds"])
    assert coop["image"] == 0 < coop["text"]
    assert coop["reference_peak_bytes"] > coop["fast_peak_bytes"] > 0
    assert ivlp["image"] > 0 == ivlp["frozen"]
    assert ivlp["gflop"] > coop["gflop"] > 0
    assert 0 < ivlp["gemm_fraction"] < 1


def test_a_large_product_is_no_slower_than_it_is() -> None:
    assert gemm_rate(torch.device("cpu"), size=256) > 1e8


def test_what_trains_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="zeroshot takes no training steps"):
        CliRunner().invoke(app, ["profile", "zeroshot", "--classes", "2"], catch_exceptions=False)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")
def test_a_compiled_step_is_the_same_step(clip: FrozenCLIP) -> None:
    """What torch.compile makes of the text tower trains CoOp the same way."""
    torch.compiler.reset()
    results = []
    for one in (clip, FrozenCLIP(clip.model, clip.shape).compile()):
        torch.manual_seed(3)
        step = TrainingStep(get_recipe("coop"), one, natural_names(5), 2, "fp32")
        kept = torch.linspace(-1, 1, 2 * clip.shape.embed_dim).view(2, -1)
        losses = [step.run(kept) for _ in range(3)]
        results.append((torch.stack(losses), step.parameters[0].detach()))
    for eager, compiled in zip(*results, strict=True):
        assert close(compiled, eager)
