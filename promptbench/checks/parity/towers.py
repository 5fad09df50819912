"""Methods with anchors, adapters or tokens in the towers: KgCoOp, TCP, MMA, MMRL, MMRL++."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.checks.parity.case import Case
from promptbench.checks.parity.compare import tolerances
from promptbench.clip.tokens import uses_words
from promptbench.data.classnames import Classes
from promptbench.errors import UserError


class AnchoredCase(Case):
    """KgCoOp: a context kept near frozen text."""

    kind = "kgcoop"
    accepted = tolerances(features_raw=5e-5, loss=3e-5, steps=2e-6)
    required: tuple[str, ...] = ("image_features", "text_features", "logits", "loss")

    def settings(self) -> dict[str, Any]:
        found = {key: self.case[key] for key in ("n_ctx", "ctx_init", "weight")}
        return found | {"anchor": self.case["anchor_template"]}

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"prompt_learner.{name}": tensor for name, tensor in ours.items()}

    @torch.no_grad()
    def rest(self, method: Any) -> None:
        """The frozen model's features."""
        frozen = self.batch.frozen
        assert frozen is not None
        self.compare.check("teacher_image_features_raw", frozen)
        self.compare.check("teacher_image_features", F.normalize(frozen, dim=-1))
        self.compare.check("teacher_text_features", method.anchors(self.classes))
        if len(self.novel):
            self.compare.check("teacher_text_features_novel", method.anchors(self.novel))


class TCPCase(AnchoredCase):
    kind = "tcp"
    accepted = tolerances(features_raw=5e-5, loss=3e-5, steps=1e-5)

    def settings(self) -> dict[str, Any]:
        words, n, template = self.case["ctx_init"], self.case["n_ctx"], self.case["template"]
        context = (words if uses_words(words, n) else " ".join(["X"] * n)) + " "
        if not template.startswith(context):
            raise UserError(f"its template does not begin with {context.strip()!r}")
        hidden = self.clip.shape.embed_dim // 4
        own = {"sentence": template.removeprefix(context), "layer": self.case["block"], "hidden": hidden}
        return super().settings() | own

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        def name(part: str) -> str:
            return part.replace("down.", "meta_net.linear1.").replace("up.", "meta_net.linear2.")

        return {f"prompt_learner.{name(key)}": tensor for key, tensor in ours.items()}

    def rest(self, method: Any) -> None:
        super().rest(method)
        self.compare.check("class_tokens", method.class_tokens(self.classes))


class MMACase(AnchoredCase):
    kind = "mma"

    def settings(self) -> dict[str, Any]:
        case = self.case
        return {
            "first_layer": case["start"],
            "last_layer": case["end"],
            "hidden": case["dim"],
            "scale": case["scale"],
            "template": case["template"],
        }

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        def name(part: str, *rest: str) -> str:
            tower = {"text": "text_adapter", "vision": "visual_adapter"}.get(rest[0], "shared_adapter")
            index, kind = rest[-2:]
            inner = {"down": ["down", "0"], "up": ["up"], "shared": ["0"]}[part]
            return ".".join(["adapter_learner", tower, str(int(index) + self.case["start"]), *inner, kind])

        return {name(*key.split(".")): tensor for key, tensor in ours.items()}

    @torch.no_grad()
    def rest(self, method: Any) -> None:
        frozen, templates = self.batch.frozen, (self.case["template"],)
        assert frozen is not None
        text = self.clip.frozen_text(self.classes, templates, normalise_mean=False, normalise_each=False)
        for name, raw in {"image": frozen, "text": text}.items():
            self.compare.check(f"teacher_{name}_features_raw", raw)
            self.compare.check(f"teacher_{name}_features", F.normalize(raw, dim=-1))


class MMRLCase(AnchoredCase):
    """Two branches; the constant scale of 100 is our default."""

    kind = "mmrl"
    accepted = tolerances(features_raw=5e-5, loss=1e-4, steps=2e-5, logits=3e-4)
    exempt = 1e-3

    def settings(self) -> dict[str, Any]:
        case = self.case
        return {
            "tokens": case["n_rep_tokens"],
            "width": case["rep_dim"],
            "layers": case["rep_layers"],
            "share": case["alpha"],
            "weight": case["reg_weight"],
            "anchor": case["anchor_template"],
        }

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tokens = "representation_learner.compound_rep_tokens"
        families = {"to_text": f"{tokens}_r2tproj", "to_vision": f"{tokens}_r2vproj", "tokens": tokens}

        def name(family: str, *rest: str) -> str:
            return ".".join([{**families, "projection": "image_encoder.proj_rep"}[family], *rest])

        return {name(*key.split(".")): tensor for key, tensor in ours.items()}

    def outputs(self, method: Any) -> dict[str, Tensor]:
        classifier = method.classifier(self.classes)
        plain, tokens = method.both_features(self.batch, classifier[1])
        text = method.raw_text_features(self.classes)
        logits, by_tokens = method.branches(self.batch, classifier)
        raw = {"image_features": plain, "image_features_rep": tokens, "text_features": text}
        return {
            **{f"{name}_raw": feature for name, feature in raw.items()},
            **{name: F.normalize(feature, dim=-1) for name, feature in raw.items()},
            "logits": logits,
            "logits_rep": by_tokens,
            "logits_fused": method.logits(self.batch, classifier),
        }

    def evaluations(self, method: Any) -> dict[str, Tensor]:
        found = super().evaluations(method)
        if len(self.novel):
            classifier = method.classifier(self.novel)
            found["logits_novel_rep"] = method.branches(self.batch, classifier)[1]
            found["logits_novel_fused"] = method.logits(self.batch, (*classifier[:2], True))
        return found

    def rest(self, method: Any) -> None:
        super().rest(method)
        for tower in ("text", "vision"):
            for layer, tokens in zip(sorted(self.case["rep_layers"]), method.tokens_of(tower), strict=True):
                self.compare.check(f"rep_tokens_{tower}.{layer}", tokens)


class MMRLPPCase(MMRLCase):
    kind = "mmrlpp"

    def settings(self) -> dict[str, Any]:
        case = self.case
        own = {"rank": case["residual_rank"], "projection_rank": case["proj_rank"], "mix": case["beta"]}
        if "beta_transfer" in case:
            own["target_mix"] = {"elsewhere": case["beta_transfer"]}
        return super().settings() | own

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        learner = "representation_learner"
        found = {f"{learner}.compound_rep_tokens": ours["tokens"]}
        found |= {f"image_encoder.{factor}": ours[f"projection_{factor}"] for factor in "AB"}
        for tower, place in (("text", f"{learner}.srra_r2tproj"), ("vision", f"{learner}.srra_r2vproj")):
            found[f"{place}.weight"] = ours[f"shared.{tower}"]
            for part in ("A", "B", "bias"):
                own = ours[f"{part}.{tower}"]
                found |= {f"{place}.srra.{j}.{part}": value for j, value in enumerate(own)}
        return found

    def evaluations(self, method: Any) -> dict[str, Tensor]:
        found = super().evaluations(method)
        if len(self.novel) and "beta_transfer" in self.case:
            target = Classes(self.novel.names, self.novel.template, "elsewhere")
            logits = method.logits(self.batch, method.classifier(target))
            found["logits_novel_beta_transfer"] = logits
        return found
