"""The file that `promptbench regress` holds a fresh run against."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from promptbench.data.cards import Half
from promptbench.errors import UserError, invalid
from promptbench.execution.setup import Setup
from promptbench.storage import write_atomic


class Limits(BaseModel):
    """How much worse is a regression: points of accuracy (average, one dataset), share of a step's time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    average: float = 0.5
    dataset: float = 2.0
    slower: float = 0.25


class Result(BaseModel):
    """One evaluation of one run: correctly classified images and all images, by class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    method: str
    dataset: str
    classes: Half
    shots: int
    seed: int
    parameters: int
    per_class: dict[str, tuple[int, int]]

    @property
    def key(self) -> tuple[str, str, str, str, int, int]:
        """What makes two results a pair."""
        return self.benchmark, self.method, self.dataset, self.classes, self.shots, self.seed

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        right, total = map(sum, zip(*self.per_class.values(), strict=True))
        return 100 * right / total


class Baseline(BaseModel):
    """A recipe (a sweep) and what it gave. ``weights`` and ``data`` (by dataset) are fingerprints; ``steps``:
    by method, seconds of a training step over those of the reference workload timed in turn with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    recipe: dict[str, Any]
    limits: Limits = Limits()
    weights: str
    data: dict[str, str]
    steps: dict[str, float]
    environment: dict[str, Any]
    results: list[Result]

    def write(self, path: Path) -> None:
        """As JSON, a line per result."""
        head = json.dumps(self.model_dump(mode="json", exclude={"results"}), indent=1)
        lines = ",\n".join(f"  {json.dumps(one.model_dump(mode='json'))}" for one in self.results)
        write_atomic(path, f'{head.removesuffix("}").rstrip()},\n "results": [\n{lines}\n ]\n}}\n')


def read_baseline(path: Path) -> Baseline:
    """Raises UserError if the file is missing or no baseline."""
    again = "make it with `promptbench regress --update-baseline`"
    try:
        return Baseline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read the baseline {path}: {error.strerror}; {again}.") from None
    except ValidationError as error:
        first = str(invalid(error, f"The baseline {path}")).partition(";")[0].removesuffix(".")
        raise UserError(f"{first}; {again}.") from None


def require_same(baseline: Baseline, setup: Setup) -> None:
    """Raise UserError if the recipe would run with other weights or data than the baseline's."""
    for trial in setup.trials():
        what = "weights" if trial.weights != baseline.weights else ""
        if trial.data != baseline.data.get(trial.dataset, trial.data):
            what = f"data of {trial.dataset}"
        if what:
            raise UserError(
                f"The baseline was made with different {what} and cannot be compared; make a new one with "
                "--update-baseline."
            )
