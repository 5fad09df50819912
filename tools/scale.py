"""What many records cost: `python -m tools.scale` times planning, `compare` and `report` on synthetic ones.

The records are those of results/reference with other seeds, shots and data and with other counts of correct
pictures. Every command runs in a process of its own; seconds are wall-clock, from its start to its end, and
memory is the most it had resident. Writes docs/scale.csv and docs/scale.png.
"""

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path

from promptbench.training.counts import Counts
from promptbench.training.files import RECORD
from promptbench.trials.record import SCHEMA, Record, each_record

ROOT = Path(__file__).parent.parent
DATASETS, SHOTS = 11, (1, 2, 4, 8, 16)


def synthetic() -> Iterator[Record]:
    """Ever more records of 20 methods, 11 datasets and 5 numbers of shots: seed after seed."""
    real: dict[str, list[Record]] = {}
    for _, record in each_record(ROOT / "results" / "reference"):
        if isinstance(record, Record) and record.trial.benchmark == "base2novel":
            real.setdefault(record.trial.method, []).append(record)
    draw = random.Random(0)
    for seed in count(1):
        for method, number, shots in product(sorted(real), range(DATASETS), SHOTS):
            like = real[method][number % len(real[method])]
            if not like.trial.shots and (seed, shots) != (1, SHOTS[0]):
                continue  # zero-shot has neither shots nor seeds
            name = f"dataset{number}"
            where = {"dataset": name, "data": name, "evaluations": ()}
            drawn = {"shots": shots, "seed": seed} if like.trial.shots else {}
            trial = like.trial.model_copy(update=where | drawn)
            trial.__dict__.pop("hash", None)
            counts = [_worse(one, name, draw) for one in like.evaluations]
            changed = {"trial": trial, "hash": trial.hash, "evaluations": counts, "schema_version": SCHEMA}
            yield like.model_copy(update=changed)


def _worse(like: Counts, name: str, draw: random.Random) -> Counts:
    """Counts of a dataset called ``name`` with up to a fifth of each class's correct answers lost."""
    classes = {key: (right - draw.randrange(right // 5 + 1), n) for key, (right, n) in like.per_class.items()}
    correct = sum(right for right, _ in classes.values())
    return like.model_copy(update={"dataset": name, "correct": correct, "per_class": classes})


def run(*arguments: str) -> tuple[float, float]:
    """Seconds and the most resident MB of a command. Raises CalledProcessError if it fails."""
    line = [sys.executable, "-m", "promptbench", *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise subprocess.CalledProcessError(status, line)
    return seconds, used.ru_maxrss / 1000


def measure(counts: list[int]) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        out, written, records = Path(folder), 0, synthetic()
        for wanted in counts:
            while written < wanted:
                record = next(records)
                place = record.trial.folder(out)  # a plain write: nothing is lost if this program dies
                place.mkdir(parents=True)
                (place / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
                written += 1
            row: dict[str, float] = {"records": wanted}
            for command, more in (("compare", ()), ("report", ("--file", str(out / "report.html")))):
                seconds, memory = run(command, "--out", folder, *more)
                row |= {f"{command} seconds": round(seconds, 2), f"{command} MB": round(memory)}
            rows.append(row)
            print(row, flush=True)
    return rows


def draw(rows: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    counts = [row["records"] for row in rows]
    for axes, unit in ((left, "seconds"), (right, "MB")):
        for command, marker in (("compare", "o"), ("report", "s")):
            values = [row[f"{command} {unit}"] for row in rows]
            axes.plot(counts, values, marker=marker, label=f"promptbench {command}")
        axes.set(xlabel="records", ylabel=f"{unit}, resident" if unit == "MB" else unit)
        axes.set_xlim(0)
        axes.set_ylim(0)
    right.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="1000,5000,10000,25000,50000")
    asked = parser.parse_args()
    seeds = ",".join(map(str, range(1, 101)))
    plan = ("run", "coop", "ivlp", "maple", "mmlop", "--benchmark", "fewshot", "--seeds", seeds, "--dry-run")
    seconds, memory = run(*plan)
    print(f"planning 10,000 trials: {seconds:.2f} s, {memory:.0f} MB", flush=True)
    rows = measure([int(one) for one in asked.counts.split(",")])
    with (ROOT / "docs" / "scale.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, ROOT / "docs" / "scale.png")


if __name__ == "__main__":
    main()
