"""Trials on a Ray cluster of several nodes: the same records as one after another, whoever dies."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from promptbench import cli
from promptbench.data import dataset as data
from promptbench.errors import UserError
from promptbench.execution.claims import claim
from promptbench.execution.execute import Outcome, execute
from promptbench.execution.job import Job
from promptbench.execution.progress import PlainReporter
from promptbench.methods._registry import get_method
from promptbench.training.checkpoint import Progress
from promptbench.trials.benchmarks import BENCHMARKS
from promptbench.trials.plan import plan
from promptbench.trials.record import read_records
from promptbench.trials.trial import Trial
from tests.test_local import Waiting, same

MEMORY = 4 << 30  # of each node
pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all of them


def test_without_ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "promptbench.execution.ray.cluster", raising=False)
    monkeypatch.setattr(sys, "argv", ["promptbench", "run", "coop", "--executor", "ray"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert (
        "run `pip install '.[ray]'` on every node, in a checkout of the same version."
        in capsys.readouterr().err
    )


def test_no_cluster_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = ["promptbench", "run", "coop", "--executor", "ray", "--address", address]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 2
    assert f"No Ray cluster at {address} " in capsys.readouterr().err


def test_a_cluster_of_ones_own_is_for_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It listens on loopback only and knows a token; one that somebody names is left as it is."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray._private import ray_constants, services

    from promptbench.execution.ray import connection as ray_cluster

    asked: list[Any] = []

    def init(address: str | None, **_: Any) -> None:
        asked.append((address, services.get_node_ip_address(), os.environ.get("RAY_AUTH_MODE")))

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray._raylet.Config", Mock())
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda _: "192.0.2.7")
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    ray_cluster.connect("ray.example:somewhere")
    ray_cluster.connect()
    assert asked == [("ray.example:somewhere", "192.0.2.7", None), ("local", "127.0.0.1", "token")]
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert ray_constants.ENABLE_RAY_CLUSTER


@pytest.mark.soak
def test_who_hears_a_cluster_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    made = """if True:
    import os, ray
    from pathlib import Path
    from promptbench.execution.ray.connection import connect
    connect()
    ray.get(ray.remote(lambda: None).remote())
    own = {os.readlink(one) for one in Path("/proc").glob("[0-9]*/fd/*")
           if one.is_symlink() and b"ray" in (one.parent.parent / "cmdline").read_bytes()}
    for kind in ("tcp", "tcp6"):
        for line in Path("/proc/net", kind).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                print("listens", fields[1])
    """
    environment = {**os.environ, "HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, env=environment)
    heard = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("listens")]
    assert len(heard) >= 4, ran.stderr
    assert {address.partition(":")[0][-8:] for address in heard} == {"0100007F"}  # 127.0.0.1


class Machines:
    """Ray's own test cluster: nodes are processes here, each with a cache folder of its own."""

    def __init__(self, base: Path) -> None:
        from ray.cluster_utils import Cluster

        self.base, self.made = base, 0
        self.scratch = Path(os.environ["RAY_TMPDIR"])
        self.cluster = Cluster()
        self.add(cpus=0, include_dashboard=False)
        self.workers = [self.add(), self.add()]

    def add(self, cpus: int = 1, **more: Any) -> Any:
        self.made += 1
        return self.cluster.add_node(
            num_cpus=cpus,
            memory=MEMORY,
            object_store_memory=100_000_000,
            env_vars={"PROMPTBENCH_CACHE": str(self.base / f"node{self.made}")},
            **more,
        )

    def replace_worker(self) -> None:
        """One node dies, without a word, and another joins."""
        self.cluster.remove_node(self.workers.pop(0), allow_graceful=False)
        self.workers.append(self.add())

    def execute(
        self,
        trials: list[Trial],
        known: dict[str, data.Dataset],
        out: Path,
        reporter: PlainReporter,
        force: bool = False,
    ) -> Outcome:
        from promptbench.execution.ray.cluster import RayCluster

        there = RayCluster(self.cluster.address)
        return execute(trials, known, out, reporter, force, executor=there)

    def processes(self) -> list[str]:
        """Command lines of what Ray has running for these machines."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            found += [line] if str(self.scratch) in line else []
        return found

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    pytest.importorskip("ray", reason="Ray is not installed")
    # Ray puts sockets there, whose paths must be short
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="pb") as scratch:
        patch.setenv("RAY_TMPDIR", scratch)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Machines(tmp_path_factory.mktemp("nodes"))
        yield made
        made.close()
        assert not made.processes()


def make_trials(colours: data.Dataset, seeds: int) -> list[Trial]:
    """Zero-shot and CoOp with 2 and 4 shots."""
    kinds = [get_method("zeroshot"), get_method("coop")]
    return plan(BENCHMARKS["base2novel"], kinds, [colours], range(1, seeds + 1), [2, 4], epochs=1)


class Killer(PlainReporter):
    """Lets a node die after each of the given numbers of epochs, while its trial is running."""

    def __init__(self, machines: Machines, after: set[int]) -> None:
        super().__init__()
        self.machines, self.after, self.epochs = machines, after, 0

    def epoch(self, trial: Trial, progress: Progress, epochs: int) -> None:
        super().epoch(trial, progress, epochs)
        self.epochs += 1
        if self.epochs in self.after:
            self.after.remove(self.epochs)
            self.machines.replace_worker()


def check_survives(
    machines: Machines, colours: data.Dataset, trials: list[Trial], out: Path, kills: set[int]
) -> None:
    known = {colours.name: colours}
    expected = execute(trials, known, out / "here", PlainReporter()).records
    reporter = Killer(machines, kills)
    found = machines.execute(trials, known, out / "ray", reporter).records
    assert not reporter.after  # as many nodes died as were to
    assert [same(record) for record in found] == [same(record) for record in expected]
    written, broken = read_records(out / "ray")
    assert sorted(record.hash for record in written) == sorted(trial.hash for trial in trials)
    assert not broken
    for trial in trials:
        names = [{path.name for path in trial.folder(out / kind).iterdir()} for kind in ("here", "ray")]
        assert names[0] == names[1]
        if trial.shots:
            here, there = (trial.folder(out / kind) / "prompts.safetensors" for kind in ("here", "ray"))
            assert here.read_bytes() == there.read_bytes()


def test_records_survive_a_node(
    machines: Machines, colours: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = make_trials(colours, 6)[:12]
    check_survives(machines, colours, trials, tmp_path, {4})
    told = capsys.readouterr().err
    assert "epoch 1/1  loss" in told
    assert "[12/12] coop" in told


@pytest.mark.soak
def test_forty_records_survive_two_nodes(machines: Machines, colours: data.Dataset, tmp_path: Path) -> None:
    trials = make_trials(colours, 20)[:40]
    check_survives(machines, colours, trials, tmp_path, {8, 24})


def test_force_a_failing_trial_and_one_claimed_by_another_command(
    machines: Machines, colours: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {colours.name: colours}
    zeroshot, done, other = make_trials(colours, 2)[:3]
    (bad,) = plan(
        BENCHMARKS["base2novel"],
        [get_method("coop")],
        [colours],
        shots=[2],
        epochs=3,
        overrides={"coop": {"lr": 1e30, "warmup_epochs": 0}},
    )
    outcome = machines.execute([zeroshot, bad, done], known, tmp_path, PlainReporter())
    assert [record.hash for record in outcome.records] == [zeroshot.hash, done.hash]
    ((trial, error),) = outcome.failures
    assert trial == bad
    assert "use a smaller one" in str(error)

    before = done.folder(tmp_path).joinpath("record.json").stat().st_ino
    machines.execute([done], known, tmp_path, PlainReporter(), force=True)
    assert done.folder(tmp_path).joinpath("record.json").stat().st_ino != before

    capsys.readouterr()
    with claim(tmp_path, other) as granted:
        assert granted
        reporter = Waiting()
        waiting = threading.Thread(target=machines.execute, args=([other, done], known, tmp_path, reporter))
        waiting.start()
        assert reporter.told.wait(timeout=60)
        execute([other], known, tmp_path / "elsewhere", PlainReporter())
        theirs = other.folder(tmp_path / "elsewhere")
        shutil.copytree(theirs, other.folder(tmp_path))
    waiting.join()
    told = capsys.readouterr().err
    assert "another command runs " in told
    assert "already done: coop" in told
    record = other.folder(tmp_path) / "record.json"
    assert record.read_bytes() == (theirs / "record.json").read_bytes()  # it was not trained on a node


def test_nodes_that_are_not_fit(
    machines: Machines, colours: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other code, missing data: the command stops and names the node, and nothing is recorded."""
    trials = make_trials(colours, 1)
    lost = replace(colours, images=partial(data.read_file, tmp_path / "lost"))
    with pytest.raises(UserError, match=r"Node .*: it has no .*lost"):
        machines.execute(trials, {colours.name: lost}, tmp_path / "out", PlainReporter())
    monkeypatch.setattr("promptbench.execution.ray.driver.code_hash", lambda: "other")
    with pytest.raises(UserError, match=r"Node .*: it has another version of promptbench"):
        machines.execute(trials, {colours.name: colours}, tmp_path / "out", PlainReporter())
    assert not list((tmp_path / "out").rglob("record.json"))


def test_interrupted(machines: Machines, colours: data.Dataset, tmp_path: Path) -> None:
    """What was sent out is taken back, and its claims are given back."""

    class Interrupter(PlainReporter):
        def epoch(self, trial: Trial, progress: Progress, epochs: int) -> None:
            raise KeyboardInterrupt

    trials = make_trials(colours, 1)[1:]
    with pytest.raises(KeyboardInterrupt):
        machines.execute(trials, {colours.name: colours}, tmp_path, Interrupter())
    for trial in trials:
        with claim(tmp_path, trial) as granted:
            assert granted
    assert not list(tmp_path.rglob("record.json"))


def test_what_a_trial_requests(colours: data.Dataset, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from promptbench.execution.ray.placement import has_room, request

    def job(device: str, workers: int = 0) -> Job:
        return Job({colours.name: colours}, tmp_path, torch.device(device), workers)

    (small,) = make_trials(colours, 1)[:1]
    large = small.model_copy(update={"backbone": "ViT-B-16-quickgelu"})
    giga = 1 << 30
    nodes = [
        {"CPU": 0.0},
        {"CPU": 8.0, "memory": 64.0 * giga},
        {"CPU": 4.0, "memory": 32.0 * giga, "GPU": 2.0},
    ]
    one = request(small, job("cpu"), nodes, 1)
    assert one["CPU"] == 1
    assert giga / 4 < one["memory"] < 2 * giga
    assert request(large, job("cpu"), nodes, 1)["CPU"] == 4
    assert request(large, job("cpu"), nodes, 1)["memory"] > one["memory"]
    half = request(large, job("cuda", workers=1), nodes, per_gpu=2)
    assert (half["GPU"], half["CPU"]) == (0.5, 2)
    with pytest.raises(UserError, match="No node of the Ray cluster has a GPU"):
        request(large, job("cuda"), nodes[:2], 1)
    with pytest.raises(UserError, match="No node of the Ray cluster has a CPU"):
        request(small, job("cpu"), nodes[:1], 1)

    third = {"GPU": 1 / 3, "CPU": 1.0}
    have = {"GPU": 1.0, "CPU": 8.0}
    assert has_room(have, [third] * 3, third)  # one waits for the next slot
    assert not has_room(have, [third] * 4, third)
    assert not has_room({"CPU": 8.0}, [], third)


def test_shipped_datasets_stay_where_they_are(colours: data.Dataset) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from promptbench.execution.ray.task import Shipped, portable

    for name in ("icons", "icons:outline"):
        icons = data.load(name, template="a drawing of a {}.")
        sent = portable(icons)
        assert isinstance(sent, Shipped)
        assert sent.load() == icons
        with pytest.raises(UserError, match="or its draws differ; install the same on every node"):
            replace(sent, fingerprint="other").load()
    assert portable(colours) is colours
    renamed = replace(colours, card=colours.card.model_copy(update={"name": "icons"}))
    assert portable(renamed) is renamed
