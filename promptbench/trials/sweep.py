"""What to run, as one value: `promptbench run`, `sweep`, `ablate` and `regress` all go through it.

A sweep file is its YAML form. Every combination of the values in ``grid`` becomes trials through
`trials.plan`, as if each had been given to `promptbench run` with ``--set``. How trials are run (hardware,
data root) is not part of a sweep: see `promptbench.execution.options`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from promptbench.errors import UserError, brief, invalid, shown, unknown
from promptbench.methods._registry import get_method, get_recipe, recipes
from promptbench.storage import parse_yaml, read_yaml
from promptbench.trials.benchmarks import BENCHMARKS
from promptbench.trials.trial import PRESETS

MOST = 100_000  # trials per command; planning so many takes about ten seconds

T = TypeVar("T")
# One value or a list of them.
Several = Annotated[
    tuple[T, ...],
    BeforeValidator(lambda v: v if isinstance(v, list | tuple) else (v,)),
    Field(min_length=1),
]
#: setting -> its values; empty for a method with default settings
Values = Annotated[dict[str, Several[Any]], BeforeValidator(lambda v: {} if v is None else v)]


class Sweep(BaseModel):
    """Methods with values of their settings, and what they are run on. None: the preset decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: Annotated[dict[str, Values], Field(min_length=1)]
    benchmark: Several[str] = ("base2novel",)
    preset: str = "pocket"
    suite: str | None = None
    datasets: Several[str] | None = None
    source: str | None = None
    seeds: Several[Annotated[int, Field(ge=0, lt=2**31)]] | None = None
    shots: Several[Annotated[int, Field(ge=1, lt=2**31)]] | None = None
    epochs: Annotated[int, Field(ge=0)] | None = None
    backbone: str | None = None
    pretrained: str | None = None
    out: Path | None = None


def sweep_of(methods: Iterable[str], **fields: Any) -> Sweep:
    """A sweep of methods or variants as they are, with other ``fields`` of `Sweep`.

    Raises UserError for a name that does not exist.
    """
    return Sweep(grid={get_recipe(name).name: {} for name in methods}, **fields)


def read_sweep(path: Path) -> Sweep:
    """A sweep from YAML. Raises UserError naming the place in the file, such as ``grid.mmlop.rank``."""
    return parse_sweep(read_yaml(path, "sweep"), f"The sweep {path}")


def parse_sweep(values: Any, where: str) -> Sweep:
    """A sweep from plain values. Raises UserError that begins with ``where`` and names the place in it."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must map keys to values, as in `grid: {{mmlop: {{rank: [1, 2]}}}}`.")
    _refuse_unknown(where, "", "key", values, Sweep.model_fields)
    try:
        found = Sweep.model_validate(values)
    except ValidationError as error:
        raise invalid(error, where) from None
    _refuse_unknown(where, "preset.", "preset", [found.preset], PRESETS)
    _refuse_unknown(where, "benchmark.", "benchmark", found.benchmark, BENCHMARKS)
    _refuse_unknown(where, "grid.", "method", found.grid, recipes())
    for name, settings in found.grid.items():
        kind = get_recipe(name).method
        known = kind.Settings.model_fields
        _refuse_unknown(where, f"grid.{name}.", f"setting of {kind.name}", settings, known)
        for key, several in settings.items():
            field: Any = Annotated[known[key].annotation, known[key]]
            try:
                TypeAdapter(tuple[field, ...]).validate_python(several)
            except ValidationError as error:
                raise invalid(error, f"{where}: grid.{name}.{key}") from None
    return found


def _refuse_unknown(where: str, path: str, kind: str, names: Any, known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{where}: {path}{brief(str(name))}: {unknown(kind, str(name), known)}")


def combinations(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value per setting, the last setting varying fastest; one empty choice for none."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def parse_shard(text: str) -> tuple[int, int]:
    """ "3/16" -> (3, 16). Raises UserError unless it is I/N with I from 1 to N."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and len(text) < 20 and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard takes I/N with I from 1 to N, such as 3/16, not {shown(text)}.")
    return int(number), int(count)


def numbers(option: str, text: str, least: int = 0, most: int = 2**31 - 1) -> tuple[int, ...]:
    """ "1,2,3" -> (1, 2, 3), without duplicates. Raises UserError naming ``option``."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes numbers such as 1,2,3, not {text!r}.") from None
    if not least <= min(values) <= max(values) <= most:
        wrong = min(values) if min(values) < least else max(values)
        raise UserError(f"{option} takes numbers from {least} to {most}, not {wrong}.")
    return tuple(dict.fromkeys(values))


def parse_settings(pairs: Iterable[str]) -> list[tuple[str, Any]]:
    """``["rank=2", "coop.lr=0.1"]`` -> keys and their values, typed as in YAML. Raises UserError."""
    found = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes KEY=VALUE, not {pair!r}.")
        try:
            value = parse_yaml(text) if text.strip() else ""
        except ValueError:
            value = text
        found.append((key, value))
    return found


def assign(settings: Iterable[tuple[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by method: ``METHOD.KEY`` is for one method, ``KEY`` for every method that has it.

    Of two values for the same setting the later counts. Raises UserError for a name that does not exist.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for key, value in settings:
        target, dot, name = key.partition(".")
        if dot and target not in found:
            raise unknown("method in --set", target, found)
        if dot:
            found[target][name] = value
            continue
        known = {method: get_method(method).Settings.model_fields for method in methods}
        if not any(key in fields for fields in known.values()):
            raise unknown(
                f"setting of {', '.join(methods)}", key, {f for fields in known.values() for f in fields}
            )
        for method in methods:
            if key in known[method]:
                found[method][key] = value
    return found


def override(sweep: Sweep, settings: Iterable[tuple[str, Any]] = (), **given: Any) -> Sweep:
    """``sweep`` with other values: fields of `Sweep` (None: as it is) and ``settings`` as for `assign`.

    ``epochs`` also replaces epochs in the grid, ``suite`` the datasets, and ``backbone`` the weights, which
    belong to the sweep's own backbone. Raises UserError for a value that a field does not take.
    """
    grid = {name: dict(values) for name, values in sweep.grid.items()}
    if given.get("epochs") is not None:
        for values in grid.values():
            values.pop("epochs", None)
    for name, own in assign(settings, list(grid)).items():
        grid[name] |= {key: (value,) for key, value in own.items()}
    update = {key: value for key, value in given.items() if value is not None}
    if "suite" in update:
        update.setdefault("datasets", None)
    if "backbone" in update:
        update.setdefault("pretrained", None)
    try:
        return Sweep.model_validate({**sweep.model_dump(), **update, "grid": grid})
    except ValidationError as error:
        raise invalid(error, "What to run") from None
