"""Compare methods with outputs of their official implementations: ``python -m promptbench.parity DIR``.

DIR holds ``cases.json``, ``frozen_clip.safetensors``, ``inputs_*.safetensors`` and one safetensors file per
case: the same frozen weights, learnable parameters and inputs must give the same features, logits, loss
and its terms, gradients, parameters after three SGD steps and aggregated parameters. Methods that are not
implemented are listed as skipped.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench import weights
from promptbench.clip import FrozenCLIP
from promptbench.errors import UserError
from promptbench.method import Batch, Method, Settings, methods
from promptbench.names import Classes
from promptbench.templates import GENERIC_60
from promptbench.tokens import Row, prompt_rows, template_rows
from promptbench.train import aggregation_weights, learning_rate, make_optimizer

# Accepted largest absolute differences (gradients: relative to the largest entry), fp32 on a CPU.
TOLERANCE = {
    "tokens": 0,
    "features_raw": 2e-5,
    "features": 1e-5,
    "logits": 1e-4,
    "loss": 2e-5,
    "grad": 1e-4,
    "steps": 5e-6,
    "loss_per_step": 3e-4,
    "loss_terms": 3e-4,
    "epochs": 2e-5,
    "logits_after": 1e-3,
    "schedule": 1e-12,
    "gpa_weights": 1e-12,
}
# PromptSRC's four terms by the beginning of their arrays' names
TERMS = {"loss_ce_": "ce", "loss_text_": "text", "loss_image_": "image", "loss_kl_": "logits"}
RATE = re.compile(r"lr([\d.e-]+)_epochs(\d+)")
GPA = re.compile(r"gpa_weights\.epochs(\d+)_mean(-?[\d.]+)_std([\d.]+)")
STEP = {"optimizer": "sgd", "lr": 0.0025, "momentum": 0.9, "weight_decay": 5e-4}
Differences = dict[str, float]


def load_folder(folder: Path) -> tuple[dict[str, Any], FrozenCLIP]:
    """``cases.json`` and the frozen CLIP of a folder, its sizes read from its arrays. Raises UserError."""
    try:
        cases = json.loads((folder / "cases.json").read_text())
        if not all(isinstance(case, dict) for case in cases["cases"].values()):
            raise ValueError("cases must map names to settings")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"Cannot read {folder / 'cases.json'} ({error}); give a folder of goldens.") from None
    state = weights.read_weights(folder / "frozen_clip.safetensors")
    width, patches = state["visual.conv1.weight"].shape[0], len(state["visual.positional_embedding"]) - 1
    patch, text_width = state["visual.conv1.weight"].shape[-1], state["ln_final.weight"].shape[0]

    def layers(prefix: str) -> int:
        return len({key.split(".resblocks.")[1].split(".")[0] for key in state if key.startswith(prefix)})

    config = {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "width": width,
            "layers": layers("visual.transformer.resblocks."),
            "patch_size": patch,
            "image_size": round(patches**0.5) * patch,
            "head_width": 64,
        },
        "text_cfg": {
            "width": text_width,
            "layers": layers("transformer.resblocks."),
            "heads": text_width // 64,
            "context_length": len(state["positional_embedding"]),
        },
    }
    model = weights.build_model(config, state, "frozen_clip.safetensors")
    return cases, FrozenCLIP(model, weights.shape_of(config))


class Case:
    """One training case: builds our method with the official parameters and measures the differences."""

    def __init__(self, folder: Path, name: str, cases: Mapping[str, Any], clip: FrozenCLIP) -> None:
        self.case, self.clip = cases["cases"][name], clip
        self.arrays = weights.read_weights(folder / self.case.get("file", f"{name}.safetensors"))
        inputs = weights.read_weights(folder / self.case["inputs"])
        self.classes = Classes(tuple(self.case["classnames"]))
        self.images, self.labels = inputs["images"], inputs["labels"]
        self.templates = tuple(cases.get("templates_promptsrc_teacher", GENERIC_60))

    def method(self, kind: type[Method]) -> Method:
        """Our method at the official initial parameters. Raises UserError if the two sets differ."""
        settings = kind.Settings(**kind.official_settings(self.case))
        method = kind(self.clip, settings, self.classes)
        official = {
            key.removeprefix("param."): value
            for key, value in self.arrays.items()
            if key.startswith("param.") and value.numel()  # a tower with 0 prompts may hold an empty one
        }
        names = {method.official_parameter(name): name for name, _ in method.named_parameters()}
        if names.keys() != official.keys():
            differing = sorted(names.keys() ^ official.keys())
            raise UserError(f"{kind.name}: parameters differ from the official ones: {', '.join(differing)}.")
        method.load_state_dict({names[key]: value for key, value in official.items()})
        return method

    def batch(self, method: Method) -> Batch:
        """The case's six pictures, with the frozen features of a method that wants them."""
        frozen = None
        if method.needs_frozen:
            with torch.no_grad():
                frozen = self.clip.image_features(self.images)
        return Batch(self.labels, self.images, frozen)

    def differences(self, kind: type[Method]) -> Differences:
        """Largest difference by kind of array."""
        method = self.method(kind)
        batch = self.batch(method)
        found: Differences = {"tokens": self._token_difference(method)}
        aggregates = "gpa_mean" in self.case and "epochs" in self.case
        if not aggregates or "loss" in self.arrays:  # an aggregation run may hold nothing else
            found |= self._start(method, batch) | self._steps(kind)
            if any(key.startswith("wd05_step") for key in self.arrays):
                heavy = self._steps(kind, "wd05_", weight_decay=0.5)
                found["steps"] = max(found["steps"], heavy["steps"])
        found = _worst(found, self._teacher(method))
        if aggregates:
            found = _worst(found, self._aggregation(kind))
        return _worst(found, gpa_differences(self.arrays))

    def _token_difference(self, method: Method) -> float:
        s = method.settings
        rows = method.layout(self.classes).rows
        if getattr(s, "n_ctx", 0):  # official tokens stand in the order of "end" wherever the name goes
            rows = prompt_rows(self.classes.names, s.ctx_init, s.n_ctx)
        return _token_difference(rows, self.arrays["tokens"]) if "tokens" in self.arrays else 0.0

    def _start(self, method: Method, batch: Batch) -> Differences:
        """Features, logits, loss and gradients at the official initial parameters."""
        found: Differences = {}
        with torch.no_grad():
            image = method.image_features(batch)
            raw = method.text_for(image, self.classes)
            logits = method.logits(batch, method.classifier(self.classes))
            ours = {
                "text_features_raw": raw,
                "text_features": F.normalize(raw, dim=-1),
                "image_features_raw": self.clip.image_features(self.images, method.prompts()),
                "image_features": image,
            }
        for kind_of in ("features_raw", "features"):
            towers = (f"text_{kind_of}", f"image_{kind_of}")
            found[kind_of] = max(_difference(ours[key], self.arrays[key]) for key in towers)
        found["logits"] = _difference(logits, self.arrays["logits"])
        if "logits_train" in self.arrays:
            inside = method.train().logits(batch, method.classifier(self.classes))
            found["logits"] = max(found["logits"], _difference(inside, self.arrays["logits_train"]))
        loss = method.loss(batch, self.classes)
        found["loss"] = _difference(loss, self.arrays["loss"])
        parameters = dict(method.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        found["grad"] = max(
            _difference(gradient, target) / max(target.abs().max().item(), 1e-12)
            for name, gradient in zip(parameters, gradients, strict=True)
            for target in [self.arrays[f"grad.{method.official_parameter(name)}"]]
        )
        return found

    def _steps(self, kind: type[Method], prefix: str = "", **changes: Any) -> Differences:
        """Three SGD steps on the same pictures, from the official start."""
        method, terms = self.method(kind), _Terms(self.arrays)
        batch, losses, worst = self.batch(method), [], 0.0
        step = _stepper(method, batch, self.classes, **changes)
        for number in (1, 2, 3):
            terms.add(method, batch, self.classes)
            losses.append(step())
            worst = max(worst, self._parameter_difference(method, f"{prefix}step{number}"))
        found = {"steps": worst}
        if not prefix:
            found["loss_per_step"] = _difference(torch.stack(losses), self.arrays["loss_per_step"])
            with torch.no_grad():
                after = method.logits(batch, method.classifier(self.classes))
            found["logits_after"] = _difference(after, self.arrays["logits_after"])
            found |= terms.differences()
        return found

    def _parameter_difference(self, method: Method, stem: str) -> float:
        """Of all parameters to the arrays ``<stem>.<official name>``."""
        return max(
            _difference(parameter, self.arrays[f"{stem}.{method.official_parameter(name)}"])
            for name, parameter in method.named_parameters()
        )

    def _teacher(self, method: Method) -> Differences:
        """The frozen model's features and logits, where the case holds them."""
        if not any(key.startswith("teacher_") for key in self.arrays):
            return {}
        args = (self.classes, self.templates)
        with torch.no_grad():
            image_raw = self.clip.image_features(self.images)
        text, image = self.clip.frozen_text(*args, normalise_each=False), F.normalize(image_raw, dim=-1)
        ours = {
            "text_features_raw": self.clip.frozen_text(*args, normalise_each=False, normalise_mean=False),
            "text_features": text,
            "image_features_raw": image_raw,
            "image_features": image,
            "logits": self.clip.logits(image, text),
        }
        # Our method has its anchors' templates from the paper: the case must mean the same.
        found: Differences = {"tokens": float(len(set(self.templates) ^ set(GENERIC_60)))}
        for key, value in ours.items():
            if f"teacher_{key}" in self.arrays:
                difference = {key.split("_", 1)[-1]: _difference(value, self.arrays[f"teacher_{key}"])}
                found = _worst(found, difference)
        return found

    def _aggregation(self, kind: type[Method]) -> Differences:
        """A run of several epochs and the Gaussian-weighted sum of the parameters after each."""
        case, method = self.case, self.method(kind)
        batch = self.batch(method)
        step = _stepper(method, batch, self.classes)
        settings = Settings(epochs=case["epochs"], gpa_mean=case["gpa_mean"], gpa_std=case["gpa_std"])
        shares, worst = aggregation_weights(settings), 0.0
        sums = {name: torch.zeros_like(p) for name, p in method.named_parameters()}
        for epoch, share in enumerate(shares, 1):
            for _ in range(case["batches_per_epoch"]):
                step()
            if any(key.startswith(f"epoch{epoch}.") for key in self.arrays):
                worst = max(worst, self._parameter_difference(method, f"epoch{epoch}"))
            for name, parameter in method.named_parameters():
                sums[name] += share * parameter.detach()
        method.load_state_dict(sums)
        found = {"epochs": max(worst, self._parameter_difference(method, "gpa"))}
        if "gpa_weights" in self.arrays:
            ours = torch.tensor(shares, dtype=torch.float64)
            found["gpa_weights"] = _difference(ours, self.arrays["gpa_weights"])
        if "logits_gpa" in self.arrays:
            with torch.no_grad():
                logits = method.eval().logits(batch, method.classifier(self.classes))
            found["logits_after"] = _difference(logits, self.arrays["logits_gpa"])
        return found


class _Terms:
    """The terms of a loss before each step, for the arrays ``loss_<term>..._per_step`` of a case."""

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        found = {key: term for key in arrays for stem, term in TERMS.items() if key.startswith(stem)}
        self.targets = {term: arrays[key] for key, term in found.items()}
        self.ours: dict[str, list[Tensor]] = {term: [] for term in self.targets}

    def add(self, method: Method, batch: Batch, classes: Classes) -> None:
        if self.targets:
            terms = method.loss_terms(batch, classes)
            for term, values in self.ours.items():
                values.append(terms[term].detach())

    def differences(self) -> Differences:
        worst = [_difference(torch.stack(self.ours[term]), self.targets[term]) for term in self.targets]
        return {"loss_terms": max(worst)} if worst else {}


def _stepper(method: Method, batch: Batch, classes: Classes, **changes: Any) -> Callable[[], Tensor]:
    """A function that makes one SGD step of the format and returns the loss before it."""
    settings = type(method).Settings().model_copy(update={**STEP, **changes})
    optimizer = make_optimizer(settings, list(method.parameters()))

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = method.loss(batch, classes)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def gpa_differences(arrays: Mapping[str, Tensor]) -> Differences:
    """Arrays ``gpa_weights.epochs<E>_mean<m>_std<s>``: aggregation weights for settings in their name."""
    worst = []
    for key, target in arrays.items():
        if found := GPA.fullmatch(key):
            epochs, mean, std = int(found[1]), float(found[2]), float(found[3])
            ours = aggregation_weights(Settings(epochs=epochs, gpa_mean=mean, gpa_std=std))
            worst.append(_difference(torch.tensor(ours, dtype=torch.float64), target))
    return {"gpa_weights": max(worst)} if worst else {}


def _worst(one: Differences, other: Differences) -> Differences:
    return {key: max(one.get(key, 0.0), other.get(key, 0.0)) for key in {**one, **other}}


def zeroshot_differences(folder: Path, cases: Mapping[str, Any], stem: str, clip: FrozenCLIP) -> Differences:
    """A ``zeroshot_*`` file: plain frozen features with one template, or an ensemble of templates."""
    arrays = weights.read_weights(folder / f"{stem}.safetensors")
    classes = Classes(tuple(cases["zeroshot_classnames"][stem]))
    ensemble = "ensemble" in stem
    templates = cases["templates_zeroshot_ensemble"] if ensemble else ["a photo of a {}."]
    text, found = clip.frozen_text(classes, templates), {}
    images = _images_of(folder, cases, stem, arrays)
    with torch.no_grad():
        raw = clip.image_features(images)
        rows = template_rows(classes.names, templates[0])
        if not ensemble:
            if "tokens" in arrays:
                found["tokens"] = _token_difference(rows, arrays["tokens"])
            found["features_raw"] = _difference(
                clip.text_features(clip.layout(rows)), arrays["text_features_raw"]
            )
        if "image_features_raw" in arrays:
            raw_difference = _difference(raw, arrays["image_features_raw"])
            found["features_raw"] = max(found.get("features_raw", 0.0), raw_difference)
    image = F.normalize(raw, dim=-1)
    found["features"] = _difference(text, arrays["text_features"])
    if "image_features" in arrays:
        found["features"] = max(found["features"], _difference(image, arrays["image_features"]))
    if "logits" in arrays:
        found["logits"] = _difference(clip.logits(image, text), arrays["logits"])
    return found


def _images_of(folder: Path, cases: Mapping[str, Any], stem: str, arrays: Mapping[str, Tensor]) -> Tensor:
    """The pictures behind a zero-shot file: ``zeroshot_..._<X>`` goes with ``inputs_<X>`` if there is one."""
    named = folder / f"inputs_{stem.rsplit('_', 1)[-1]}.safetensors"
    path = named if named.exists() else sorted(folder.glob("inputs_*.safetensors"))[0]
    return weights.read_weights(path)["images"]


def schedule_differences(path: Path) -> Differences:
    """A ``lr_schedule_*`` file: the learning rate of every epoch, for each base rate and length in it."""
    arrays, worst = weights.read_weights(path), []
    for name, rates in arrays.items():
        if found := RATE.fullmatch(name):
            settings = Settings(lr=float(found[1]), epochs=int(found[2]))
            ours = torch.tensor([learning_rate(settings, e) for e in range(len(rates))], dtype=torch.float64)
            worst.append(_difference(ours, rates))
    return ({"schedule": max(worst)} if worst else {}) | gpa_differences(arrays)


def run(folder: Path) -> Iterator[tuple[str, str, Differences | None]]:
    """Every case of a folder as (name, method, differences, or None if the method is not implemented)."""
    cases, clip = load_folder(folder)
    known = {kind.official_name: kind for kind in methods().values() if kind.official_name}
    for path in sorted(folder.glob("zeroshot_*.safetensors")):
        if path.stem not in cases.get("zeroshot_classnames", {}):
            yield path.stem, "zero-shot without class names in cases.json", None
            continue
        yield path.stem, "zero-shot", zeroshot_differences(folder, cases, path.stem, clip)
    for path in sorted(folder.glob("lr_schedule*.safetensors")):
        yield path.stem, "schedule", schedule_differences(path)
    known_files = {case.get("file", f"{name}.safetensors") for name, case in cases["cases"].items()}
    for path in sorted(folder.glob("*gpa*.safetensors")):
        if path.name not in known_files:
            yield path.stem, "aggregation weights", gpa_differences(weights.read_weights(path))
    for name, case in cases["cases"].items():
        kind = known.get(case.get("method"))
        if kind is None:
            yield name, str(case.get("method")), None
            continue
        try:
            differences = Case(folder, name, cases, clip).differences(kind)
        except KeyError as error:
            raise UserError(f"Case {name} lacks {error}; complete the folder.") from None
        except (ValueError, RuntimeError) as error:  # shapes or settings that do not belong together
            reason = " ".join(str(error).split())
            raise UserError(f"Case {name} does not hold together ({reason}); correct the folder.") from None
        yield name, case["method"], differences


def _difference(ours: Tensor, target: Tensor) -> float:
    if ours.shape != target.shape:
        return float("inf")
    difference = (ours.detach().double() - target.double()).abs().max().item() if ours.numel() else 0.0
    return difference if difference == difference else float("inf")  # NaN is never within a tolerance


def _token_difference(rows: tuple[Row, ...], tokens: Tensor) -> float:
    """Number of prompts whose frozen tokens differ; learnable places and padding are not compared."""
    wrong = 0
    for row, target in zip(rows, tokens.tolist(), strict=True):
        kept = [(i, token) for i, token in enumerate(row) if token >= 0]
        same = all(target[i] == token for i, token in kept) and not any(target[len(row) :])
        wrong += not same
    return float(wrong)


def main(arguments: list[str] | None = None) -> int:
    """Print a line per case and difference; 1 if any is over its tolerance."""
    parser = argparse.ArgumentParser(prog="python -m promptbench.parity", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    failed = compared = skipped = 0
    try:
        for name, method, differences in run(folder):
            if differences is None:
                print(f"{name}: skipped, {method} is not implemented")
                skipped += 1
                continue
            print(f"{name} ({method})")
            for key, value in differences.items():
                ok = value <= TOLERANCE[key]
                compared += 1
                failed += not ok
                print(f"  {key:<14} {value:9.2e}  accept {TOLERANCE[key]:.0e}  {'ok' if ok else 'FAILED'}")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"{compared} comparisons, {failed} over their tolerance")
    if not compared + skipped:
        print("Error: nothing was compared; give a folder with cases of known methods.", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
