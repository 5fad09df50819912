"""Nothing is lost whatever dies: the long tests of `make soak`. docs/scale.md tells what they found."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from promptbench.trials.record import read_records
from tests import kill_driver
from tests.test_cli import call

pytestmark = pytest.mark.soak
KILLS, COMMAND_KILLS, ROUNDS = 160, 40, 30
METHODS = ("zeroshot", "coop", "mmlop")
TRIALS = 1 + 2 * 3  # zero-shot has no seeds
Contents = dict[str, dict[str, Any]]


def start(*arguments: str, cache: Path) -> "subprocess.Popen[str]":
    """A command in a session of its own: what it starts can be found, and killed together with it."""
    return subprocess.Popen(
        [sys.executable, "-m", "promptbench", *arguments],
        env={**os.environ, "PROMPTBENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def arguments(card: Path, out: Path, jobs: int) -> list[str]:
    where = ["--dataset", str(card), "--out", str(out), "--shots", "4", "--seeds", "1,2,3", "--epochs", "3"]
    return ["run", *METHODS, *where, "--jobs", str(jobs)]


def run(card: Path, out: Path) -> "subprocess.Popen[str]":
    return start(*arguments(card, out, jobs=2), cache=out / "cache")


def fork(card: Path, out: Path) -> int:
    """The same in this process's image, where all is loaded and every moment is one of work; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.environ["PROMPTBENCH_CACHE"] = str(out / "cache")
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            code = call(*arguments(card, out, jobs=1))
        finally:
            os._exit(code)
    return pid


def ended(process: "subprocess.Popen[str]") -> str:
    """What it said; it must have ended well."""
    _, said = process.communicate()
    assert process.returncode == 0, said
    return said


def contents(out: Path) -> Contents:
    """What must be equal of every trial, by its folder."""
    return {
        str(path.parent.relative_to(out)): kill_driver.content(path.parent)
        for path in (out / "runs").rglob("record.json")
    }


def session(leader: int) -> list[int]:
    """The processes of a session that are left."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        state, sid = after_name[0], int(after_name[3])
        if sid == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def undisturbed(make_dataset: Any, tmp_path: Path) -> tuple[Path, Contents, float]:
    """A card, what a run on it leaves behind, and how many seconds it takes."""
    card, out = make_dataset(), tmp_path / "undisturbed"
    started = time.perf_counter()
    ended(run(card, out))
    expected = contents(out)
    assert len(expected) == TRIALS
    return card, expected, time.perf_counter() - started


def test_work_killed_at_random_moments(undisturbed: tuple[Path, Contents, float], tmp_path: Path) -> None:
    """SIGKILL at any moment of the work; then the same command again, until all is done; then all over again
    in an empty folder."""
    card, expected, _ = undisturbed
    started = time.perf_counter()
    os.waitpid(fork(card, tmp_path / "whole"), 0)
    assert contents(tmp_path / "whole") == expected
    seconds = time.perf_counter() - started
    draw, kills, rounds = random.Random(1), 0, 0
    while kills < KILLS:
        rounds += 1
        out, status = tmp_path / f"round{rounds}", signal.SIGKILL.value
        while os.WIFSIGNALED(status):
            pid = fork(card, out)
            time.sleep(draw.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)  # of no effect where it has ended
            _, status = os.waitpid(pid, 0)
            kills += os.WIFSIGNALED(status)
            assert not read_records(out)[1]  # whole, or not there
        assert os.WEXITSTATUS(status) == 0
        assert contents(out) == expected
    print(f"\n{kills} kills in {rounds} rounds of {TRIALS} trials: no record lost, doubled or changed")


def test_commands_killed_at_random_moments(undisturbed: tuple[Path, Contents, float], tmp_path: Path) -> None:
    """The same with commands of two workers, from their start to their end: SIGKILL to the command alone, or
    to it and its workers."""
    card, expected, seconds = undisturbed
    draw, kills, alone, rounds = random.Random(2), 0, 0, 0
    while kills < COMMAND_KILLS:
        rounds += 1
        out = tmp_path / f"round{rounds}"
        while True:
            command = run(card, out)
            try:
                command.wait(draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                kills, seconds = kills + 1, 1.05 * seconds
                if draw.random() < 0.5:
                    alone += 1
                    os.kill(command.pid, signal.SIGKILL)
                else:
                    os.killpg(command.pid, signal.SIGKILL)
                command.communicate()
                assert not read_records(out)[1]  # whole, or not there
            else:
                ended(command)
                seconds *= 0.9  # so that about two are killed for one that ends, however busy the machine is
                break
        assert contents(out) == expected
        deadline = time.monotonic() + 30
        while session(command.pid):  # no worker outlives its command for long
            assert time.monotonic() < deadline
            time.sleep(0.05)
    print(f"\n{kills} kills ({alone} of the command alone) in {rounds} rounds: none lost, doubled or changed")


def test_two_commands_and_a_reader(undisturbed: tuple[Path, Contents, float], tmp_path: Path) -> None:
    """Two commands on the same trials and the same cache, while a third reads what there is."""
    card, expected, _ = undisturbed
    tables = 0
    for number in range(ROUNDS):
        out = tmp_path / f"round{number}"
        drivers = [run(card, out) for _ in range(2)]
        while any(driver.poll() is None for driver in drivers):
            reader = start("compare", "--out", str(out), cache=out / "cache")
            _, said = reader.communicate()
            assert reader.returncode == 0 or (reader.returncode == 2 and "No records of" in said), said
            tables += reader.returncode == 0
        done = "".join(map(ended, drivers)).count("\n  done: ")
        assert done == TRIALS, "a trial was done twice, or by nobody"
        assert contents(out) == expected
        assert not read_records(out)[1]
    print(f"\n{ROUNDS} rounds of two commands, {tables} tables read meanwhile: every record there once")
