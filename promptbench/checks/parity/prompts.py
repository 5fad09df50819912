"""Prompts in the words of CoOp's and MaPLe's repositories: CoOp, CoCoOp, VPT, IVLP, MaPLe, PromptSRC."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.checks.parity.case import CONSTANT, Case
from promptbench.clip.tokens import prompt_rows
from promptbench.methods._base import Method
from promptbench.methods._settings import PromptSettings, Settings
from promptbench.methods._templates import GENERIC_60
from promptbench.training.schedule import aggregation_weights
from promptbench.training.steps import Steps

SGD = {"optimizer": "sgd", "lr": 0.0025, "momentum": 0.9, "weight_decay": 5e-4}
#: PromptSRC's terms by the beginnings of their arrays' names; these are weighted
TERMS = {"loss_ce": "ce", "loss_text": "text", "loss_image": "image", "loss_kl": "logits"}


class PromptCase(Case):
    """SGD with one rate for all, unless the case says otherwise."""

    required: tuple[str, ...] = ("image_features", "text_features", "logits", "loss")

    def optimiser(self) -> dict[str, Any]:
        return CONSTANT | SGD | (super().optimiser() if "optimiser" in self.case else {})

    def check_tokens(self, method: Method) -> None:
        s, rows = method.settings, method.layout(self.classes).rows
        if isinstance(s, PromptSettings) and s.n_ctx:  # official tokens are in the order of "end"
            rows = prompt_rows(self.classes.names, s.ctx_init, s.n_ctx)
        self.rows("tokens", rows)

    def named(self, *keys: str) -> dict[str, Any]:
        return {key: self.case[key] for key in keys}


class CoOpCase(PromptCase):
    kind = "coop"

    def settings(self) -> dict[str, Any]:
        own = {
            "position": self.case.get("class_token_position", "end"),
            "class_specific": self.case.get("class_specific_context", False),
        }
        return self.named("n_ctx", "ctx_init") | own

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"prompt_learner.{name}": tensor for name, tensor in ours.items()}


class CoCoOpCase(CoOpCase):
    kind = "cocoop"

    def settings(self) -> dict[str, Any]:
        return self.named("n_ctx", "ctx_init")


class MaPLeCase(PromptCase):
    kind = "maple"

    def settings(self) -> dict[str, Any]:
        return self.named("n_ctx", "depth", "ctx_init")

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first = {"text": "ctx", "couple": "proj"}
        deeper = {"text": "compound_prompts_text", "couple": "compound_prompt_projections"}

        def name(part: str, layer: str, *rest: str) -> str:
            place = [first[part]] if layer == "0" else [deeper[part], str(int(layer) - 1)]
            return ".".join(["prompt_learner", *place, *rest])

        return {name(*key.split(".")): tensor for key, tensor in ours.items()}


class IVLPCase(PromptCase):
    kind = "ivlp"

    def settings(self) -> dict[str, Any]:
        case = self.case
        return {
            "n_ctx": case["n_ctx_text"] if case["depth_text"] else 0,
            "n_ctx_vision": case["n_ctx_vision"] if case["depth_vision"] else 0,
            "depth_text": case["depth_text"] or 1,
            "depth_vision": case["depth_vision"] or 1,
            "ctx_init": case["ctx_init"],
        }

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first = {"text": "prompt_learner.ctx", "vision": "image_encoder.VPT"}
        tower = {"text": "text_encoder", "vision": "image_encoder"}

        def name(part: str, layer: str) -> str:
            deeper = f"{tower[part]}.transformer.resblocks.{layer}.VPT_shallow"
            return first[part] if layer == "0" else deeper

        return {name(*key.split(".")): tensor for key, tensor in ours.items()}


class VPTCase(IVLPCase):
    kind = "vpt"

    def settings(self) -> dict[str, Any]:
        return self.named("n_ctx_vision", "depth_vision")


class PromptSRCCase(IVLPCase):
    """IVLP, a frozen teacher, and runs of several epochs whose parameters are summed."""

    kind = "promptsrc"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.aggregates = "gpa_mean" in self.case and "epochs" in self.case
        if self.aggregates and "loss" not in self.arrays:  # such a run may hold nothing else
            self.required = ()

    def settings(self) -> dict[str, Any]:
        given = {"text_loss_weight": "text_weight", "image_loss_weight": "image_weight"}
        return super().settings() | {ours: self.case[key] for key, ours in given.items() if key in self.case}

    def terms(self, method: Method) -> dict[str, Tensor]:
        terms, found = method.loss_terms(self.batch, self.classes), {}
        for name in self.arrays:
            for stem, term in TERMS.items():
                if name.startswith(stem):
                    found[name.removesuffix("_per_step")] = terms[term]
        return found

    @torch.no_grad()
    def rest(self, method: Method) -> None:
        self.check_teacher()
        if self.aggregates:
            self.check_aggregation()
        if "logits_train" in self.compare:
            inside = method.train().logits(self.batch, method.classifier(self.classes))
            self.compare.check("logits_train", inside)

    def check_teacher(self) -> None:
        """The frozen model's features and logits, with the templates of the folder."""
        templates = tuple(self.folder.settings.get("templates_promptsrc_teacher", GENERIC_60))
        if self.compare.starting("teacher_"):  # our method has its own: the case must mean the same
            self.compare.measured("templates", float(len({*templates} ^ {*GENERIC_60})), "tokens")
        text = self.clip.frozen_text(self.classes, templates, normalise_each=False)
        kept = {"normalise_each": False, "normalise_mean": False}
        assert self.batch.frozen is not None
        image = F.normalize(self.batch.frozen, dim=-1)
        ours = {
            "text_features_raw": self.clip.frozen_text(self.classes, templates, **kept),
            "text_features": text,
            "image_features_raw": self.batch.frozen,
            "image_features": image,
            "logits": self.clip.logits(image, text),
        }
        for name, tensor in ours.items():
            self.compare.check(f"teacher_{name}", tensor)

    @torch.enable_grad()
    def check_aggregation(self) -> None:
        """A run of several epochs and the Gaussian-weighted sum of the parameters after each."""
        case, per_epoch = self.case, self.case["batches_per_epoch"]
        weights = {key: case[key] for key in ("epochs", "gpa_mean", "gpa_std")}
        shares, method = aggregation_weights(Settings(**weights)), self.create().train()
        steps = Steps(method, per_epoch)
        sums = {name: torch.zeros_like(p) for name, p in method.named_parameters()}
        for epoch, share in enumerate(shares, 1):
            for step in range(per_epoch):
                steps.take(self.batch, self.classes, 0, step)
            self.compare.check_all(f"epoch{epoch}", self.official(dict(method.named_parameters())))
            for name, parameter in method.named_parameters():
                sums[name] += share * parameter.detach()
        method.load_state_dict(sums)
        self.compare.check_all("gpa", self.official(dict(method.named_parameters())))
        self.compare.check("gpa_weights", torch.tensor(shares, dtype=torch.float64))
        with torch.no_grad():
            logits = method.eval().logits(self.batch, method.classifier(self.classes))
        self.compare.check("logits_gpa", logits)
