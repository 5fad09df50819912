"""Runs one trial straight, and again with SIGKILL in the middle of chosen file writes; prints what is left.

A process of its own, so that it can fork before torch has started any thread.
Usage: kill_driver.py METHOD CARD FOLDER
"""

import hashlib
import json
import os
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip  # noqa: F401  # imported before the forks, which would each import it again

from promptbench.clip.tokenizer import encode
from promptbench.data import dataset as data
from promptbench.execution.execute import execute
from promptbench.execution.progress import PlainReporter
from promptbench.methods._registry import get_method
from promptbench.trials.benchmarks import BENCHMARKS
from promptbench.trials.plan import plan
from promptbench.trials.trial import Trial

EPOCHS = 2


def make_trial(method: str, card: str) -> tuple[Trial, data.Dataset]:
    dataset = data.load(card)
    overrides = {"mmlop": {"mmlop": {"depth": 3, "anchor": "words"}}}.get(method)
    (trial,) = plan(
        BENCHMARKS["base2novel"],
        [get_method(method)],
        [dataset],
        shots=[4],
        epochs=EPOCHS,
        overrides=overrides,
    )
    return trial, dataset


def run(trial: Trial, dataset: data.Dataset, out: Path, die_at: int | None) -> int:
    """Run the trial in a forked process that kills itself while writing its ``die_at``-th file."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            original, seen = os.fsync, [0]

            def fsync(handle: Any) -> None:
                if not stat.S_ISREG(os.fstat(handle).st_mode):  # a folder's names
                    return original(handle)
                seen[0] += 1
                if seen[0] == die_at:
                    os.ftruncate(handle, os.fstat(handle).st_size // 2)  # a half-written file
                    os.kill(os.getpid(), signal.SIGKILL)
                original(handle)

            os.fsync = fsync  # type: ignore[assignment]  # only inside this process
            outcome = execute([trial], {dataset.name: dataset}, out, PlainReporter())
            status = len(outcome.failures)
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def content(folder: Path) -> dict[str, Any]:
    """Hashes of what must be equal, and the record without what may differ."""
    record = json.loads((folder / "record.json").read_text())
    for volatile in ("seconds", "peak_memory_bytes", "digest"):
        del record[volatile]
    names = ("config.yaml", "metrics.jsonl", "prompts.safetensors", "predictions.safetensors")
    return {"record": record} | {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in names
        if (folder / name).exists()  # zero-shot has no metrics and no prompts
    }


def main(method: str, card: str, base: str) -> None:
    trial, dataset = make_trial(method, card)
    encode("the tokenizer's tables are read once, too")
    # Writes: 1 is the probe of the output folder, 2 config, 3 and 4 metrics and checkpoint of epoch 1,
    # 5 and 6 those of epoch 2, 7 the prompts, 8 the predictions, 9 the record.
    scenarios: dict[str, Sequence[int | None]] = {
        "straight": [None],
        "config": [2, None],
        "metrics": [3, None],
        "first checkpoint": [4, None],
        "last checkpoint": [6, None],
        "twice": [5, 3, None],
        "prompts": [7, None],
        "predictions": [8, None],
        "record": [9, None],
    }
    report = {}
    for i, (name, deaths) in enumerate(scenarios.items()):
        out = Path(base) / f"run{i}"
        folder = trial.folder(out)
        statuses, before = [], []
        for die_at in deaths:
            statuses.append(run(trial, dataset, out, die_at))
            if die_at is not None:
                before.append((folder / "record.json").exists())
        # A write cut off leaves its temporary file, whose name starts with a dot.
        left = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        report[name] = {
            "statuses": statuses,
            "before": before,
            "files": left,
            "content": content(folder),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
