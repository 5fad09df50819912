"""Cached features: shared by processes, bounded, listed and cleared; damage is in tests/test_train.py."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from promptbench.cache import FeatureCache
from promptbench.cli import app
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


def test_a_bound_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTBENCH_CACHE_GB", "much")
    with pytest.raises(UserError, match="PROMPTBENCH_CACHE_GB=much is no number of gigabytes"):
        FeatureCache(tmp_path)
