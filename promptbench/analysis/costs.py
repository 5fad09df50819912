"""What a method costs, as far as records say or settings determine: for the trade-off figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from promptbench.trials.record import Record, read_record

if TYPE_CHECKING:
    from promptbench.analysis.comparison import Material


def _short(n: float) -> str:
    """11556 -> "11.6K"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


def _machines(records: Sequence[Record]) -> list[str]:
    """Why seconds or bytes of these records are not comparable, if they are not."""
    keys = ("device", "device_name", "threads", "platform")
    found = {tuple(r.environment.get(key) for key in keys) for r in records}
    if len(found) < 2:
        return []
    return [f"The records were made on {len(found)} kinds of machine: seconds and memory are not comparable."]


def _seconds(records: Sequence[Record]) -> list[str]:
    return [
        "Seconds are of the training steps as run. Frozen features come from a cache and are not counted, so "
        "methods that leave the image tower alone look cheaper than they are without one.",
        *_machines(records),
    ]


@dataclass(frozen=True)
class Cost:
    """A column of costs: how it is called, how a value is written, and what to warn of."""

    short: str
    label: str
    text: Callable[[float], str] = _short
    warnings: Callable[[Sequence[Record]], list[str]] = lambda records: []


#: by the column of a summary
COSTS = {
    "parameters": Cost("trainable parameters", "Trainable parameters"),
    "seconds": Cost(
        "training seconds",
        "Training time (s), without frozen features",
        lambda x: f"{x:.3g} s",
        _seconds,
    ),
    "memory": Cost("peak memory", "Peak memory (bytes)", lambda x: f"{x / 2**20:,.0f} MiB", _machines),
    "gflop": Cost("arithmetic of a step", "Arithmetic of a training step (GFLOP)", lambda x: f"{x:.3g}"),
}


def step_gflop(material: "Material", method: str, shots: int) -> float:
    """GFLOP of one training step of a method at its own batch size and settings, by `Material.count_gflop`,
    mean over datasets."""
    if material.count_gflop is None:
        raise ValueError("count_gflop is not given")
    table = material.table
    mine = table[(table["method"] == method) & (table["shots"] == shots)]["hash"]
    records = [record for record in material.records if record.hash[:8] in set(mine)]
    trained = {record.trial.dataset: record for record in records}  # seeds do not matter
    # tables are made of records without class names
    whole = [read_record(one.trial.folder(material.out)) or one for one in trained.values()]
    found = [material.count_gflop(record) for record in whole]
    return sum(found) / len(found)
