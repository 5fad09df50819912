"""Cached features: shared by processes, bounded, listed and cleared; damage is in tests/test_train.py."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from promptbench import storage
from promptbench.cli.app import app
from promptbench.clip import cache as cache_module
from promptbench.clip.cache import FeatureCache
from promptbench.errors import UserError


def test_who_comes_second_waits_for_the_first(tmp_path: Path) -> None:
    """Threads with locks of their own exclude each other just as processes do."""
    barrier, computed = threading.Barrier(3), []

    def worker(_: int) -> None:
        barrier.wait()
        for i in range(20):
            found = FeatureCache(tmp_path).get({"i": i}, lambda: computed.append(1) or torch.arange(1e3))  # type: ignore[func-returns-value]
            assert torch.equal(found, torch.arange(1e3))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(worker, range(3)))
    assert len(computed) == 20
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    tensor = torch.zeros(1000)
    cache = FeatureCache(tmp_path, bound=3 * 4500)
    for i in range(3):
        cache.get({"i": i}, lambda: tensor)
    for age, path in enumerate(sorted(tmp_path.iterdir())):
        os.utime(path, (time.time() - 1000 + age,) * 2)
    oldest, *others = sorted(tmp_path.iterdir())
    cache.get({"i": 3}, lambda: tensor)
    left = set(tmp_path.iterdir())
    assert oldest not in left
    assert set(others) <= left
    assert len(left) == 3


def test_reading_counts_as_use(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.get({"i": 0}, lambda: torch.zeros(3))
    (path,) = tmp_path.iterdir()
    os.utime(path, (1000, 1000))
    cache.get({"i": 0}, lambda: torch.ones(3))
    assert path.stat().st_mtime > 1000


def test_one_file_above_the_bound_is_kept_until_the_next(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, bound=10)
    assert torch.equal(cache.get({"i": 0}, lambda: torch.ones(3)), torch.ones(3))
    cache.get({"i": 1}, lambda: torch.ones(3))
    assert len(list(tmp_path.iterdir())) == 1


def test_ls_and_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path))
    runner = CliRunner()
    assert "0.0 MB of at most 20,000 MB" in runner.invoke(app, ["cache", "ls"]).stdout
    key = {"what": "image", "weights": "0123456789", "dataset": ["icons", "f"], "draw": [1, 0]}
    FeatureCache(tmp_path).get(key, lambda: torch.zeros(500_000))
    FeatureCache(tmp_path).get({**key, "draw": [1, 1]}, lambda: torch.zeros(500_000))
    (tmp_path / "listings").mkdir()  # what else lies there stays
    row = next(line for line in runner.invoke(app, ["cache", "ls"]).stdout.splitlines() if "icons" in line)
    assert row.split()[:6] == ["01234567", "training", "views", "icons", "2", "4.0"]
    assert "deleted 2 files, 4.0 MB" in runner.invoke(app, ["cache", "clear"]).stdout
    assert [path.name for path in tmp_path.iterdir()] == ["listings"]


def test_what_killed_commands_left_is_counted_and_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else in the folder is touched, whatever it is called."""
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path))
    FeatureCache(tmp_path).get({"i": 0}, lambda: torch.zeros(3))
    (features,) = tmp_path.iterdir()
    left = [f".{features.name}.abcd_123", features.with_suffix(".lock").name, "ray/code/runs/checkpoint.pt"]
    left += ["fewshot/.colours-shots1-seed1.json.abcdefgh"]
    others = ["model.safetensors", "uv.lock", ".config.abcdefgh", "fewshot/colours.json", "work/.x.abcdefgh"]
    for name in left + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1_000_000))
    runner = CliRunner()
    assert "left by killed commands: 4 files, 4.0 MB" in runner.invoke(app, ["cache", "ls"]).stdout
    assert "deleted 5 files, 4.0 MB" in runner.invoke(app, ["cache", "clear"]).stdout
    assert "left by" not in runner.invoke(app, ["cache", "ls"]).stdout
    assert sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    ) == sorted(others)


def test_unfinished_files_count_for_the_bound(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, bound=10_000)
    cache.get({"i": 0}, lambda: torch.zeros(3))
    (features,) = tmp_path.iterdir()
    unfinished = tmp_path / f".{features.name}.abcdefgh"
    unfinished.write_bytes(bytes(20_000))
    os.utime(unfinished, (1000, 1000))
    cache.get({"i": 1}, lambda: torch.zeros(3))
    assert not unfinished.exists()
    assert features.exists()


@pytest.mark.parametrize("what", ["features", "folder"])
@pytest.mark.parametrize("when", ["computing", "written", "read"])
def test_a_cache_that_is_deleted_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, when: str
) -> None:
    """At worst the features are computed again."""
    folder = tmp_path / "features"
    cache, real = FeatureCache(folder, bound=0), storage.write_atomic

    def delete() -> None:
        if what == "folder":
            shutil.rmtree(folder, ignore_errors=True)
        else:
            FeatureCache(folder).clear()

    def compute() -> torch.Tensor:
        if when == "computing":
            delete()
        return torch.ones(3)

    def write(*given: Any) -> None:
        real(*given)
        if when == "written":
            delete()

    monkeypatch.setattr(cache_module, "write_atomic", write)
    for _ in range(2):
        assert torch.equal(cache.get({"i": 0}, compute), torch.ones(3))
        if when == "read":
            delete()


def test_a_bound_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTBENCH_CACHE_GB", "much")
    with pytest.raises(UserError, match="PROMPTBENCH_CACHE_GB=much is no number of gigabytes"):
        FeatureCache(tmp_path)
