"""How methods and their published variants are found by name, and the settings of a trial.

Every file in ``methods/`` whose name has no leading underscore is scanned; nothing is registered by hand.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from pydantic import ValidationError

from promptbench.errors import invalid, unknown
from promptbench.methods._base import Method
from promptbench.storage import parse_yaml


@cache
def methods() -> dict[str, type[Method]]:
    """Every method by name: each file in ``methods/`` that defines a `Method` subclass is one."""
    import promptbench.methods as package

    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__:
                if value.name in found:
                    raise RuntimeError(f"two methods are called {value.name!r}: rename one of them")
                found[value.name] = value
    return dict(sorted(found.items()))


def get_method(name: str) -> type[Method]:
    """The method called ``name``. Raises UserError with the nearest name."""
    return get_recipe(name).method


@dataclass(frozen=True)
class AblationStep:
    """A recipe's place in a table of ablations: the method it is an ablation ``of``, the ``group``, what it
    is called there, and ``method`` and ``setting`` of its rows in results/published.csv, if there are any."""

    of: str
    group: str
    step: str
    published: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A method, or a published variant of it under its own name. ``settings`` override the paper's and are
    overridden by those tuned for a backbone. ``about`` says in a few words what is different."""

    name: str
    method: type[Method]
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    ablation: tuple[AblationStep, ...] = ()

    @property
    def label(self) -> str:
        """The variant's part of the name: empty for the method itself."""
        return self.name.removeprefix(f"{self.method.name}-") if self.settings else ""


@cache
def recipes() -> dict[str, Recipe]:
    """Everything that can be run by name: the methods, then the variants of ``methods/recipes.yaml``."""
    text = resources.files("promptbench.methods").joinpath("recipes.yaml").read_text("utf-8")
    found = {name: Recipe(name, kind) for name, kind in methods().items()}
    for name, one in parse_yaml(text).items():
        about, usual = one.get("about", ""), {"of": one["method"], "step": one.get("about", "")}
        steps = tuple(AblationStep(**{**usual, **step}) for step in one.get("ablation", ()))
        found.pop(name, None)  # rows of an ablation have the order of the file
        found[name] = Recipe(name, methods()[one["method"]], one.get("settings", {}), about, steps)
    return found


def get_recipe(name: str) -> Recipe:
    """The method or variant called ``name``. Raises UserError with the nearest name."""
    if name not in recipes():
        raise unknown("method", name, recipes(), "See `promptbench ls methods`.")
    return recipes()[name]


def resolve_settings(
    method: type[Method] | Recipe,
    benchmark: str,
    shots: int,
    dataset: str,
    tuned: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Settings for one trial: the paper's, a recipe's, those ``tuned`` for the backbone, the user's.

    Raises UserError for a key that does not exist or a value that does not fit.
    """
    recipe = method if isinstance(method, Recipe) else Recipe(method.name, method)
    method = recipe.method
    for key in overrides or {}:
        if key not in method.Settings.model_fields:
            raise unknown(f"setting of {method.name}", key, method.Settings.model_fields)
    chosen = {**recipe.settings, **(tuned or {}), **(overrides or {})}
    if "epochs" in chosen:  # given epochs replace the paper's steps
        chosen.setdefault("steps", 0)
    values = {**method.paper_settings(benchmark, shots, dataset), **chosen}
    try:
        return method.Settings(**values)
    except ValidationError as error:
        raise invalid(error, f"A setting of {method.name}") from None
