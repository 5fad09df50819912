"""Several trials at once: the same records as one after another, each made once, whoever dies."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from promptbench.clip.backbones import backbone_shape
from promptbench.data import dataset as data
from promptbench.errors import UserError
from promptbench.execution import worker as worker_module
from promptbench.execution.claims import claim
from promptbench.execution.execute import execute
from promptbench.execution.local import Local, default_jobs
from promptbench.execution.progress import PlainReporter, RichReporter
from promptbench.execution.run import run_trial
from promptbench.methods._registry import get_method
from promptbench.trials.benchmarks import BENCHMARKS
from promptbench.trials.plan import plan
from promptbench.trials.record import Record, read_records
from promptbench.trials.trial import Trial


@pytest.fixture
def trials(colours: data.Dataset) -> list[Trial]:
    kinds = [get_method("zeroshot"), get_method("coop")]
    return plan(BENCHMARKS["base2novel"], kinds, [colours], seeds=(1, 2, 3), shots=[4], epochs=1)


def same(record: Record) -> dict[str, Any]:
    """A record without what may differ between equal runs."""
    return record.model_dump(exclude={"seconds", "peak_memory_bytes", "environment"})


class Killer(PlainReporter):
    """Kills every worker as soon as one has started a trial, ``times`` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def start(self, trial: Trial, number: int, total: int) -> None:
        super().start(trial, number, total)
        if self.times:
            self.times -= 1
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGKILL)


class Waiting(PlainReporter):
    """``told`` is set when a trial is left to another command."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def wait(self, trial: Trial) -> None:
        super().wait(trial)
        self.told.set()


def test_two_workers_make_the_same_records(
    trials: list[Trial], colours: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where they are killed in between, and told on bars as well as in lines."""
    known = {colours.name: colours}
    expected = execute(trials, known, tmp_path / "one", PlainReporter()).records
    with RichReporter(trials) as reporter:
        together = execute(trials, known, tmp_path / "two", reporter, executor=Local(jobs=2)).records
    killed = execute(trials, known, tmp_path / "killed", Killer(1), executor=Local(jobs=2)).records
    assert [same(r) for r in together] == [same(r) for r in expected]
    assert [same(r) for r in killed] == [same(r) for r in expected]
    records, broken = read_records(tmp_path / "killed")
    assert len(records) == len(trials)
    assert not broken
    capsys.readouterr()
    again = execute(trials, known, tmp_path / "two", PlainReporter(), executor=Local(jobs=2)).records
    assert again == together
    assert capsys.readouterr().err.count("already done") == len(trials)


def test_a_trial_that_kills_its_workers_fails(
    trials: list[Trial], colours: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptbench.execution.local.ATTEMPTS", 2)
    outcome = execute(trials[1:3], {colours.name: colours}, tmp_path, Killer(99), executor=Local(jobs=2))
    assert not outcome.records
    assert all("died 2 times" in str(error) for _, error in outcome.failures)
    assert len(outcome.failures) == 2


def _die(*_: Any) -> None:
    os._exit(137)


def test_workers_that_never_begin(
    trials: list[Trial], colours: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptbench.execution.local.ATTEMPTS", 2)
    monkeypatch.setattr("promptbench.execution.local._start", _die)
    with pytest.raises(UserError, match=r"died 2 times before one could begin a trial.*--jobs 1"):
        execute(trials[1:3], {colours.name: colours}, tmp_path, PlainReporter(), executor=Local(jobs=2))


def test_workers_that_cannot_be_started(
    trials: list[Trial], colours: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("promptbench.execution.local.ProcessPoolExecutor.submit", refuse)
    with pytest.raises(UserError, match=r"cannot be started \(Resource temporarily unavailable\)"):
        execute(trials[1:3], {colours.name: colours}, tmp_path, PlainReporter(), executor=Local(jobs=2))


def test_a_trial_is_claimed_by_a_lock_that_dies_with_its_owner(
    trials: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no such locks it is granted to all, and nothing stays behind."""

    def unknown(handle: int, operation: int) -> None:
        if not operation & fcntl.LOCK_UN:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with claim(tmp_path, trials[0], block=True) as mine, claim(tmp_path, trials[0]) as too:
        assert mine
        assert too
    assert not any(path.read_bytes() for path in tmp_path.rglob("*.lock"))
    monkeypatch.undo()
    with claim(tmp_path, trials[0]) as mine:
        assert mine
        shutil.rmtree(tmp_path / ".claims")  # by somebody who tidies up


def test_a_failing_trial_leaves_the_others(
    trials: list[Trial], colours: data.Dataset, tmp_path: Path
) -> None:
    bad = trials[1].model_copy(update={"pretrained": str(tmp_path / "nothing.safetensors")})
    outcome = execute(
        [trials[0], bad], {colours.name: colours}, tmp_path, PlainReporter(), executor=Local(jobs=2)
    )
    assert [r.hash for r in outcome.records] == [trials[0].hash]
    ((trial, error),) = outcome.failures
    assert trial == bad
    assert isinstance(error, UserError)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            "the GPU's memory; run fewer",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "the machine's"),
        (MemoryError(), "the machine's memory; run fewer at once (--jobs 1)"),
    ],
)
def test_a_trial_too_large_for_memory_leaves_the_others(
    trials: list[Trial],
    colours: data.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    said: str,
) -> None:
    def short(trial: Trial, *rest: Any) -> Record:
        if trial == trials[0]:
            raise failure
        return run_trial(trial, *rest)

    monkeypatch.setattr(worker_module, "run_trial", short)
    outcome = execute(trials[:2], {colours.name: colours}, tmp_path, PlainReporter())
    assert [r.hash for r in outcome.records] == [trials[1].hash]
    ((trial, error),) = outcome.failures
    assert trial == trials[0]
    assert f"ran out of {said}" in str(error)


def test_a_claimed_trial_is_left_to_its_owner(
    trials: list[Trial], colours: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other command comes to the claimed trial last and finds it done."""
    known, (mine, other) = {colours.name: colours}, trials[1:3]
    with claim(tmp_path, mine) as granted, claim(tmp_path, mine) as twice:
        assert granted
        assert not twice
        reporter = Waiting()
        waiting = threading.Thread(target=execute, args=([mine, other], known, tmp_path, reporter))
        waiting.start()
        assert reporter.told.wait(timeout=60)
        assert other.folder(tmp_path).joinpath("record.json").exists()
        execute([mine], known, tmp_path / "elsewhere", PlainReporter())
        theirs = mine.folder(tmp_path / "elsewhere")
        shutil.copytree(theirs, mine.folder(tmp_path))
    waiting.join()
    told = capsys.readouterr().err
    assert "another command runs " in told
    assert "already done: coop" in told
    record = mine.folder(tmp_path) / "record.json"
    assert record.read_bytes() == (theirs / "record.json").read_bytes()  # it was not trained here


def test_force_makes_every_record_anew_once(
    trials: list[Trial], colours: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {colours.name: colours}
    execute(trials[:2], known, tmp_path, PlainReporter())
    before = [trial.folder(tmp_path).joinpath("record.json").stat().st_ino for trial in trials[:2]]
    capsys.readouterr()
    execute(trials[:2], known, tmp_path, PlainReporter(), force=True)
    assert "already" not in capsys.readouterr().err
    after = [trial.folder(tmp_path).joinpath("record.json").stat().st_ino for trial in trials[:2]]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_default_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert default_jobs(cpu, backbone_shape("pocket")) == 1  # PROMPTBENCH_JOBS, see conftest.py
    monkeypatch.setenv("PROMPTBENCH_JOBS", "many")
    with pytest.raises(UserError, match="PROMPTBENCH_JOBS=many is no number of trials"):
        default_jobs(cpu, backbone_shape("pocket"))
    monkeypatch.delenv("PROMPTBENCH_JOBS")
    pocket, large = backbone_shape("pocket"), backbone_shape("ViT-B-16-quickgelu")
    monkeypatch.setattr("promptbench.execution.local.cpu_count", lambda: 8)
    monkeypatch.setattr("promptbench.execution.local.free_memory", lambda device: 7 << 30)
    assert default_jobs(cpu, pocket) == 3
    assert default_jobs(cpu, large) == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert default_jobs(cuda, large) == 4
    assert default_jobs(cuda, large, per_gpu=2) == 8
    monkeypatch.setenv("PROMPTBENCH_DEVICE", "cuda:1")
    assert default_jobs(cuda, large) == 1
