"""Adapters of features and of classifiers: CLIP-LoRA, TaskRes, CLIP-Adapter."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.checks.parity.case import Case
from promptbench.checks.parity.compare import Comparison, relative, tolerances
from promptbench.checks.parity.start import distance, summary
from promptbench.checks.parity.tables import check_template_tokens
from promptbench.clip.reference import ReferenceCLIP
from promptbench.data.classnames import Classes
from promptbench.errors import UserError
from promptbench.methods._base import Method
from promptbench.training.steps import Steps

SCALE_30 = tolerances(loss=1e-4, steps=1e-5, logits_after=1e-4)
SCALE_100 = SCALE_30 | {"logits": 3e-4, "logits_after": 3e-4}
MAPS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}


class AdapterCase(Case):
    """The logits' scale is the case's, and the official start is in ``param.`` itself."""

    accepted = SCALE_100
    drawn = True  # whether the official start is what our method draws, too

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if "logit_scale" not in self.case:
            self.compare.accepted = SCALE_30

    def label_space(self, names: Any) -> Classes:
        templates = self.case.get("templates") or [self.case["template"]]
        return Classes(tuple(names), templates[0])

    def optimiser(self) -> dict[str, Any]:
        scale = {"logit_scale": self.case["logit_scale"]} if "logit_scale" in self.case else {}
        return super().optimiser() | scale

    def check_start(self) -> None:
        """The official values against our own draws; what is drawn without chance must be equal."""
        if not self.drawn:
            return
        draws = [self.official(dict(self.draw(seed).named_parameters())) for seed in range(1, 25)]
        for name in draws[0]:
            ours = torch.stack([draw[name].detach() for draw in draws])
            official = self.arrays[f"param.{name}"]
            away = distance(ours, summary(official), official.numel())
            self.compare.measured(f"param.{name}", away, "start")


class TemplatesCase(AdapterCase):
    """Frozen text of one or several templates; text and image features of the towers are frozen."""

    def check_tokens(self, method: Method) -> None:
        check_template_tokens(self.compare, "tokens", self.classes, self.case["templates"])

    def outputs(self, method: Method) -> dict[str, Tensor]:
        frozen = self.batch.frozen
        assert frozen is not None
        return {
            "text_features": method.text_features(self.classes),
            "image_features_raw": frozen,
            "image_features": F.normalize(frozen, dim=-1),
            "logits": method.logits(self.batch, method.classifier(self.classes)),
        }


class TaskResCase(TemplatesCase):
    kind = "taskres"

    def settings(self) -> dict[str, Any]:
        return {"scale": self.case["residual_scale"], "templates": self.case["templates"]}

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_learner.text_feature_residuals": ours["residual"]}

    def outputs(self, method: Any) -> dict[str, Tensor]:
        return super().outputs(method) | {"text_features_raw": method.base_features(self.classes)}


class CLIPAdapterCase(TemplatesCase):
    kind = "clip_adapter"

    def settings(self) -> dict[str, Any]:
        if len(self.case["templates"]) > 1:
            raise UserError("CLIP-Adapter has one template")
        return {"ratio": self.case["ratio"], "reduction": self.case["reduction"]}

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"adapter.fc.0.weight": ours["down.weight"], "adapter.fc.2.weight": ours["up.weight"]}

    def outputs(self, method: Any) -> dict[str, Tensor]:
        output, mixed = method.adapted(self.batch.frozen)
        kept = {"normalise_each": False, "normalise_mean": False}
        return super().outputs(method) | {
            "text_features_raw": self.clip.frozen_text(self.classes, self.case["templates"], **kept),
            "adapter_output": output,
            "mixed_features_raw": mixed,
            "mixed_features": method.image_features(self.batch),
        }


class CLIPLoRACase(AdapterCase):
    """Low-rank changes, with the masks of the official dropout where it is on."""

    kind = "clip_lora"

    def settings(self) -> dict[str, Any]:
        case = self.case
        return {
            "rank": case["r"],
            "alpha": case["alpha"],
            "params": "".join(key for key in "qkvo" if key in case["params"]),
            "text_blocks": sorted(case["blocks"]["text"]),
            "vision_blocks": sorted(case["blocks"]["vision"]),
            "dropout": case["dropout"],
            "template": case["template"],
        }

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        params = self.settings()["params"]
        found: dict[str, Tensor] = {}
        for tower in ("text", "vision"):
            for i, block in enumerate(self.settings()[f"{tower}_blocks"]):
                downs, ups = ours[f"A.{tower}.{i}"].chunk(len(params)), ours[f"B.{tower}.{i}"]
                for key, down, up in zip(params, downs, ups, strict=True):
                    place = place_of(tower, block, key)
                    found |= {f"{place}.w_lora_A": down, f"{place}.w_lora_B": up}
        return found

    def state(self, method: Method, suffix: str) -> None:
        self.masked = not suffix and bool(self.compare.starting(r"mask1\."))
        super().state(method, suffix)

    def gradients(self, method: Method, loss: Tensor) -> dict[str, Tensor]:
        """The format leaves open whether the gradient at the start is that of step 1, under its masks."""
        plain = super().gradients(method, loss)
        if method.training or not self.masked:
            return plain
        method.clip = ReferenceCLIP(self.clip)
        mask(method.train(), 1, self.compare)
        masked = self.gradients(method, method.loss(self.batch, self.classes))
        method.clip = self.clip
        method.eval()

        def away(ours: dict[str, Tensor]) -> float:
            return max(relative(tensor, self.arrays[f"grad.{name}"]) for name, tensor in ours.items())

        return min(plain, masked, key=away)

    def train(self, prefix: str) -> None:
        self.inside: list[Tensor] = []
        super().train(prefix)
        if not prefix and self.inside:
            self.compare.check("logits_train", torch.stack(self.inside))

    def step(self, method: Method, steps: Steps, number: int, before: dict[str, list[Tensor]]) -> Tensor:
        if self.compare.starting(rf"mask{number}\."):
            method.clip = ReferenceCLIP(
                self.clip
            )  # masks differ between classes, so no token is shared by them
            mask(method, number, self.compare)
        with torch.no_grad():
            self.inside.append(method.logits(self.batch, method.classifier(self.classes)))
        loss = super().step(method, steps, number, before)
        method.clip = self.clip
        return loss

    def check_outputs(self, method: Method, suffix: str) -> None:
        """Merged or not, the features are the same."""
        super().check_outputs(method, suffix)
        with torch.no_grad():
            for name, tensor in self.outputs(method).items():
                self.compare.check(f"{name}{suffix}_merged", tensor)

    def after_steps(self, method: Any) -> None:
        for tower in ("text", "vision"):
            for block in method.blocks[tower]:
                for key, weight in method.merged(tower, block).items():
                    self.compare.check(f"merged_after.{place_of(tower, block, key)}.weight", weight)

    def rest(self, method: Method) -> None:
        """Runs of n steps with the released cosine, without dropout."""
        found = (re.match(r"cosine(\d+)_", name) for name in self.arrays)
        for number in sorted({match[1] for match in found if match}):
            n, stem = int(number), f"cosine{number}"
            schedule: dict[str, Any] = {"steps": n, "schedule": "step", "lr_min": 1e-6, "dropout": 0.0}
            method = self.create(**schedule).train()
            steps, rates, losses = Steps(method, n), [], []
            for step in range(n):
                loss, rate = steps.take(self.batch, self.classes, 0, step)
                rates.append(rate)
                losses.append(loss)
                ours = self.official(dict(method.named_parameters()))
                self.compare.check_all(f"{stem}_step{step + 1}", ours)
            self.compare.check(f"{stem}_lr", torch.tensor(rates, dtype=torch.float64))
            self.compare.check_steps(f"{stem}_loss_per_step", torch.stack(losses))


def place_of(tower: str, block: int, key: str) -> str:
    """The official name of a map."""
    visual = "visual." if tower == "vision" else ""
    return f"{visual}transformer.resblocks.{block}.attn.{MAPS[key]}"


def mask(method: Any, number: int, compare: Comparison) -> None:
    """Let a method in training drop what the official code dropped in step ``number``."""
    share: float = 1 - method.settings.dropout

    def drop(tower: str, layer: int, key: str, h: Tensor) -> Tensor:
        if not method.training:
            return h
        elements = compare.take(f"mask{number}.{place_of(tower, layer, key)}")
        rows, length, width = h.shape
        kept: Tensor = elements.view(length, rows, width).transpose(0, 1)
        return h * kept / share

    method.drop = drop
