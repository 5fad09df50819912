"""Disks that are full or read-only, clocks that go back: one sentence, and the same command goes on."""

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from promptbench import storage as files
from promptbench.clip.cache import FeatureCache
from promptbench.data import dataset as data
from promptbench.errors import UserError
from promptbench.execution.execute import execute
from promptbench.execution.progress import PlainReporter
from promptbench.methods._registry import get_method
from promptbench.training.checkpoint import Progress
from promptbench.trials.benchmarks import BENCHMARKS
from promptbench.trials.plan import plan
from promptbench.trials.trial import Trial
from tests.kill_driver import content
from tests.test_cli import call

DAY = 24 * 3600


@pytest.fixture
def trial(colours: data.Dataset) -> Trial:
    return plan(BENCHMARKS["base2novel"], [get_method("coop")], [colours], shots=[4], epochs=2)[0]


def test_a_disk_that_fills_up(
    trial: Trial, colours: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every single file that a trial writes, features of the cache among them: what was written before
    stays whole, no record is left behind, and the next attempt gives the same."""
    known, sync = {colours.name: colours}, os.fsync
    seen = 0

    def attempt(out: Path, full_at: int | None) -> UserError | None:
        """The error of a run that finds the disk full at its so-manieth file."""
        nonlocal seen
        seen = 0

        def fsync(handle: int) -> None:
            nonlocal seen
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                seen += 1
                if seen == full_at:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        try:
            outcome = execute([trial], known, out, PlainReporter(), cache=FeatureCache(out / "cache"))
        except UserError as error:  # before any work was done
            return error
        return outcome.failures[0][1] if outcome.failures else None

    assert attempt(tmp_path / "straight", None) is None
    written, failed = seen, 0
    assert written > 8  # the probe, config, features, metrics and checkpoint of two epochs, prompts, record
    expected = content(trial.folder(tmp_path / "straight"))
    for number in range(1, written + 1):
        out = tmp_path / str(number)
        folder = trial.folder(out)
        if (error := attempt(out, number)) is not None:
            assert "No space left on device; choose another folder or free it" in str(error)
            assert not (folder / "record.json").exists()
            failed += 1
        assert not [path for path in out.rglob(".*") if path.is_file() and path.suffix != ".lock"]
        assert attempt(out, None) is None
        assert content(folder) == expected
    assert 8 <= failed < written  # features that cannot be kept cost time, never a trial


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a disk needs rights")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_real_disk_full_and_read_only(
    small_disk: Path, make_dataset: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["run", "coop", "--dataset", str(make_dataset()), "--shots", "2", "--epochs", "1"]
    line += ["--seeds", "1", "--out", str(small_disk)]
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1 << 20))
    for room in (0, 4096):  # nothing can be written; only the probe can
        os.truncate(filler, filler.stat().st_size - room)
        assert call(*line) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("Error: ")
        assert "No space left" in said
        assert not list(small_disk.rglob("record.json"))
    filler.unlink()
    remount = ["mount", "-o", "remount,{}", str(small_disk)]
    subprocess.run([part.format("ro") for part in remount], check=True)
    assert call(*line) == 2
    assert "Read-only file system; choose another folder" in capsys.readouterr().err
    subprocess.run([part.format("rw") for part in remount], check=True)
    assert call(*line) == 0
    assert len(list(small_disk.rglob("record.json"))) == 1


def test_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's bytes are on the disk before its name is, and its name before the next file: whoever finds a
    record finds the prompts that were written before it."""
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "bytes")
        sync(handle)

    def replace(self: Path, target: Path) -> Path:
        done.append(target.name)
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    for name in ("prompts", "record"):
        files.write_atomic(tmp_path / name, b"x")
    assert done == ["bytes", "prompts", "folder", "bytes", "record", "folder"]

    def unable(handle: int) -> None:  # so on some file systems
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", unable)
    files.write_atomic(tmp_path / "again", b"x")
    assert (tmp_path / "again").read_bytes() == b"x"


def test_what_killed_writers_left_in_a_trials_folder(
    trial: Trial, colours: data.Dataset, tmp_path: Path
) -> None:
    """Is swept by the next attempt if nobody can be writing it any more."""
    folder = trial.folder(tmp_path)
    folder.mkdir(parents=True)
    old, new, own = (
        folder / name for name in (".record.json.abcd_12x", ".record.json.abcd_34y", ".notes.txt")
    )
    for path in (old, new, own):
        path.write_bytes(b"x")
        os.utime(path, (1000, 1000))
    os.utime(new)
    execute([trial], {colours.name: colours}, tmp_path, PlainReporter())
    assert [path.exists() for path in (old, new, own)] == [False, True, True]


def test_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROMPTBENCH_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError))  # nor does the system know the user
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no home folder for the cache; name a folder in PROMPTBENCH_CACHE"):
        files.default_folder()


def test_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "cwd", Mock(side_effect=FileNotFoundError))
    assert call("ls", "benchmarks") == 2
    assert "The folder this command was started in is gone" in capsys.readouterr().err


def test_a_clock_that_was_set_back(trial: Trial, colours: data.Dataset, tmp_path: Path) -> None:
    """What is there was written a day from now; it is used as if it were old."""

    class Stopped(PlainReporter):
        def epoch(self, trial: Trial, progress: Progress, epochs: int) -> None:
            raise KeyboardInterrupt

    known, cache = {colours.name: colours}, FeatureCache(tmp_path / "features")
    execute([trial], known, tmp_path / "straight", PlainReporter(), cache=cache)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        execute([trial], known, out, Stopped(), cache=cache)
    present = [path for folder in (out, cache.folder) for path in folder.rglob("*")]  # type: ignore[union-attr]
    assert any("checkpoint" in path.name for path in present)
    for path in present:
        later = path.stat().st_mtime + DAY
        os.utime(path, (later, later))
    (record,) = execute([trial], known, out, PlainReporter(), cache=cache).records
    assert content(trial.folder(out)) == content(trial.folder(tmp_path / "straight"))
    assert record.seconds.frozen >= 0
    assert record.seconds.train > 0
    # --force finds that a record which was dated tomorrow has been replaced
    dated = trial.folder(out) / "record.json"
    os.utime(dated, (dated.stat().st_mtime + DAY,) * 2)
    before = dated.stat()
    execute([trial], known, out, PlainReporter(), force=True, cache=cache)
    assert dated.stat().st_mtime < before.st_mtime
