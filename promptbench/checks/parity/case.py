"""One case: our method at the official parameters, its outputs, and the steps of our own training."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.checks.parity.compare import Comparison, tolerances
from promptbench.checks.parity.folder import Folder
from promptbench.checks.parity.start import distance, summary
from promptbench.checks.parity.tables import check_tables
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.tokenizer import Row
from promptbench.clip.tokens import template_rows
from promptbench.data.classnames import Classes
from promptbench.errors import UserError
from promptbench.methods._base import Batch, Method
from promptbench.methods._registry import get_method
from promptbench.training.loop import create
from promptbench.training.steps import Steps

SEEDS = 24  # our own draws of initial values, for the comparison with official ones
CONSTANT = {"warmup_epochs": 0, "schedule": "epoch", "epochs": 1, "steps": 0}  # one rate for all steps


class Case:
    """A case of one method; subclasses say what the official names mean.

    ``kind`` names our method, ``required`` the arrays without which nothing would be compared,
    ``exempt`` the share of a step's entries that may be off by two learning rates a step.
    """

    kind: ClassVar[str]
    accepted: ClassVar[Mapping[str, float]] = tolerances()
    required: tuple[str, ...] = ("text_features", "logits", "loss")
    exempt: ClassVar[float] = 0.0

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.case = folder, folder.cases[name]
        self.arrays = folder.read(self.case.get("file", f"{name}.safetensors"))
        self.compare = Comparison(self.arrays, self.accepted)
        self.clip: FrozenCLIP = folder.clip(tuple(self.case.get("frozen", ())))
        self.classes = self.label_space(self.case["classnames"])
        self.novel = self.label_space(self.case.get("classnames_novel", ()))
        self.inputs()

    # -- what a subclass says

    def settings(self) -> dict[str, Any]:
        """Our settings for the case, without those of the optimiser."""
        raise NotImplementedError

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our parameters' names under the official ones, as views of the same memory."""
        raise NotImplementedError

    def rest(self, method: Method) -> None:
        """Compare what only this method has; ``method`` is at the official start."""

    # -- what the case says

    def label_space(self, names: Any) -> Classes:
        return Classes(tuple(names), self.case.get("template", "a photo of a {}."))

    def inputs(self) -> None:
        """Images and labels, and the frozen features of the images."""
        arrays = self.folder.read(self.case["inputs"])
        self.images, self.labels = arrays["images"], arrays["labels"]
        with torch.no_grad():
            self.batch = Batch(self.labels, self.images, self.clip.image_features(self.images))

    def optimiser(self) -> dict[str, Any]:
        """Settings of the optimiser: under ``optimiser`` or in the case itself, at a constant rate."""
        given = self.case.get("optimiser", self.case)
        found = {
            key: given[key] for key in ("lr", "momentum", "weight_decay", "betas", "eps") if key in given
        }
        if "optimiser" in self.case:
            found["optimizer"] = given["name"].lower()
        return CONSTANT | found

    def create(self, state: str = "param", **changes: Any) -> Method:
        """Our method with the official values of ``state``. Raises UserError if the parameters differ."""
        method = self.draw(0, **changes)
        ours = self.official({name: p.detach() for name, p in method.named_parameters()})
        stem = f"{state}."
        theirs = {name for name in self.arrays if name.startswith(stem) and self.arrays[name].numel()}
        self.compare.seen |= {name for name in self.arrays if name.startswith(stem)}
        if differing := sorted(theirs ^ {stem + name for name in ours}):
            names = ", ".join(name.removeprefix(stem) for name in differing)
            raise UserError(f"{self.kind}: parameters differ from the official ones: {names}.")
        for name, tensor in ours.items():
            if tensor.shape != self.arrays[stem + name].shape:
                raise UserError(f"{self.kind}: {name} is {list(tensor.shape)} in our method")
            tensor.copy_(self.arrays[stem + name])
        return method.eval()

    def draw(self, seed: int, **changes: Any) -> Method:
        """Our method with its own initial values."""
        kind = get_method(self.kind)
        settings = kind.Settings(**(self.settings() | self.optimiser() | changes))
        return create(kind, self.clip, settings, self.classes, seed)

    # -- what is compared

    def run(self) -> Comparison:
        """Compare everything. Raises UserError for a missing or unknown array."""
        for name in self.required:
            if name not in self.arrays:
                raise UserError(f"the file lacks {name!r}")
        method = self.create()
        self.check_tokens(method)
        self.state(method, "")
        if self.compare.starting(r"param_b\."):
            self.state(self.create("param_b"), "_b")
        for prefix in self.prefixes():
            self.train(prefix)
        self.check_start()
        self.rest(method)
        check_tables(self.compare)
        if unknown := self.compare.unknown():
            raise UserError(f"unknown arrays: {', '.join(unknown)}")
        return self.compare

    def check_tokens(self, method: Method) -> None:
        """Texts of the classes, of the novel ones and of the anchors."""
        self.rows("tokens", method.layout(self.classes).rows)
        if len(self.novel):
            self.rows("tokens_novel", method.layout(self.novel).rows)
        if "anchor_template" in self.case:
            self.rows("teacher_tokens", template_rows(self.classes.names, self.case["anchor_template"]))

    def rows(self, name: str, rows: tuple[Row, ...]) -> None:
        """Compare tokens: how many prompts differ; learnable places are not compared."""
        if name in self.compare:
            self.compare.measured(name, wrong_rows(rows, self.compare.take(name)))

    def outputs(self, method: Method) -> dict[str, Tensor]:
        """Features and logits by the names of their arrays."""
        image = method.image_features(self.batch)
        text = method.text_for(image, self.classes)
        return {
            "text_features_raw": text,
            "text_features": F.normalize(text, dim=-1),
            "image_features_raw": self.clip.image_features(self.images, method.prompts()),
            "image_features": image,
            "logits": method.logits(self.batch, method.classifier(self.classes)),
        }

    def evaluations(self, method: Method) -> dict[str, Tensor]:
        """What is used in testing, on the classes of training and on novel ones."""
        found = {"logits_base_inference": method.logits(self.batch, method.classifier(self.classes))}
        if len(self.novel):
            found["logits_novel"] = method.logits(self.batch, method.classifier(self.novel))
        return found

    @torch.no_grad()
    def check_outputs(self, method: Method, suffix: str) -> None:
        """`outputs` and `evaluations` at the parameters that the suffix stands for."""
        method.eval()
        for name, tensor in (self.outputs(method) | self.evaluations(method)).items():
            self.compare.check(name + suffix, tensor)

    def state(self, method: Method, suffix: str) -> None:
        """Outputs, loss, its terms and gradients at some parameters."""
        self.check_outputs(method, suffix)
        with torch.no_grad():
            for name, term in self.terms(method).items():
                self.compare.check(f"{name}{suffix}", term)
        loss = method.loss(self.batch, self.classes)
        self.compare.check(f"loss{suffix}", loss)
        if loss.requires_grad:
            self.compare.check_all(f"grad{suffix}", self.gradients(method, loss))

    def gradients(self, method: Method, loss: Tensor) -> dict[str, Tensor]:
        """Gradients of a loss by official names, 0 where a parameter has no part in it."""
        parameters = dict(method.named_parameters())
        found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        return self.official(dict(zip(parameters, found, strict=True)))

    def terms(self, method: Method) -> dict[str, Tensor]:
        """The terms of the loss by the beginnings of their arrays' names; here unweighted."""
        return {f"loss_{name}": term for name, term in method.terms(self.batch, self.classes).items()}

    def prefixes(self) -> list[str]:
        """What the names of steps begin with: nothing, or ``wd<decay>_`` for another weight decay."""
        found = (re.match(r"((?:wd\d+_)?)step\d+\.", name) for name in self.arrays)
        return sorted({match[1] for match in found if match})

    def train(self, prefix: str) -> None:
        """The steps whose names begin with ``prefix``, each on the same batch from the official start."""
        decay = re.fullmatch(r"wd(0?)(\d+)_", prefix)
        changes: dict[str, Any] = {}
        if decay:
            changes["weight_decay"] = float(f"0.{decay[2]}" if decay[1] else decay[2])
        method = self.create(**changes).train()
        numbers = [int(name.removeprefix(f"{prefix}step").split(".")[0]) for name in self.steps_of(prefix)]
        steps, count = Steps(method, max(numbers)), max(numbers)
        before: dict[str, list[Tensor]] = {}
        for number in range(1, count + 1):
            loss = self.step(method, steps, number, {} if prefix else before)
            before.setdefault("loss", []).append(loss)
            ours = self.official(dict(method.named_parameters()))
            cap = 2 * method.settings.lr * number
            self.compare.check_all(f"{prefix}step{number}", ours, self.exempt, cap)
            if not prefix:
                gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
                if self.compare.starting(rf"grad{number}\."):
                    self.compare.check_all(f"grad{number}", self.official(gradients))
        if prefix:
            return
        for name, values in before.items():
            self.compare.check_steps(f"{name}_per_step", torch.stack(values))
        self.check_outputs(method, "_after")
        self.after_steps(method)

    def steps_of(self, prefix: str) -> list[str]:
        return self.compare.starting(rf"{prefix}step\d+\.")

    def step(self, method: Method, steps: Steps, number: int, before: dict[str, list[Tensor]]) -> Tensor:
        """One step of the training, and the loss and its terms before it."""
        with torch.no_grad():
            for name, term in self.terms(method).items():
                if f"{name}_per_step" in self.compare:
                    before.setdefault(name, []).append(term)
        return steps.take(self.batch, self.classes, 0, number - 1)[0]

    def after_steps(self, method: Method) -> None:
        """What a subclass compares at the parameters of the last step."""

    # -- initial values

    def check_start(self) -> None:
        """Whether our own initial values come from the official distribution."""
        names = {name.split(".", 1)[1] for name in self.compare.starting(r"init_(stats|pool)\.")}
        if not names and "init_zero" not in self.case:
            return
        draws = [self.official(dict(self.draw(seed).named_parameters())) for seed in range(1, SEEDS + 1)]
        for name in sorted(names):
            ours = torch.stack([draw[name].detach() for draw in draws])
            n = ours[0].numel()
            if (stats := f"init_stats.{name}") in self.compare:
                target = self.compare.take(stats)
                self.compare.measured(stats, distance(ours, target, n))
                drawn = (summary(self.arrays[f"param.{name}"]) - target).abs().max().item()
                self.compare.measured(stats, drawn / 1e-6)
            if (pool := f"init_pool.{name}") in self.compare:
                self.compare.measured(pool, distance(ours, self.compare.take(pool), SEEDS * n))
        self.check_equal(draws[0])

    def check_equal(self, ours: Mapping[str, Tensor]) -> None:
        """What starts as zero, and what starts equal to something else."""
        if "init_zero" in self.case:
            zero = {name for name, tensor in ours.items() if not tensor.any()}
            self.compare.measured(
                "init_zero", float("inf") if zero ^ {*self.case["init_zero"]} else 0, "start"
            )
        for one, other in self.case.get("init_equal", ()):
            same = torch.equal(ours[one], ours[other])
            self.compare.measured(f"init_equal {one}", 0.0 if same else float("inf"), "start")


def wrong_rows(rows: tuple[Row, ...], tokens: Tensor) -> float:
    """Prompts whose tokens differ; learnable places are not compared, padding is."""
    if len(rows) != len(tokens):
        return float("inf")
    wrong = 0
    for row, target in zip(rows, tokens.tolist(), strict=True):
        same = all(target[i] == token for i, token in enumerate(row) if token >= 0)
        wrong += not same or any(target[len(row) :])
    return float(wrong)
