"""Tip-Adapter and Tip-Adapter-F: features in, a cache, its training and the search."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from promptbench.checks.parity.compare import difference
from promptbench.checks.parity.heads import TemplatesCase
from promptbench.clip.tokens import template_rows
from promptbench.data.views import epoch_order
from promptbench.errors import UserError
from promptbench.methods._base import Batch, Method, Shots
from promptbench.methods.tip_adapter import TipAdapter
from promptbench.training.steps import Steps

CLOSE = 1e-3  # a gap between the two largest logits within which rounding may decide


class TipAdapterCase(TemplatesCase):
    kind = "tip_adapter"
    required: tuple[str, ...] = ("text_features", "cache_keys", "search_accuracy", "logits_test")

    def inputs(self) -> None:
        take = self.compare.take
        self.passes, labels = take("aug_features_raw"), take("train_labels")
        self.held_out = Batch(take("val_labels"), frozen=take("val_features_raw"))
        self.tested = Batch(take("test_labels"), frozen=take("test_features_raw"))
        assert self.held_out.frozen is not None
        held_out = self.held_out.frozen, self.held_out.labels
        self.shots = Shots(labels, self.classes, lambda number: self.passes[number], lambda: held_out)
        self.batch = self.held_out

    def settings(self) -> dict[str, Any]:
        case = self.case
        beta_max, alpha_max = case["search_scale"]
        beta_steps, alpha_steps = case["search_step"]
        return {
            "shots": len(self.shots.labels) // len(self.classes),
            "passes": case["augment_epochs"],
            "alpha": case["init_alpha"],
            "beta": case["init_beta"],
            "alpha_max": alpha_max,
            "beta_max": beta_max,
            "alpha_steps": alpha_steps,
            "beta_steps": beta_steps,
            "templates": case["templates"],
        }

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}  # nothing is learned

    def draw(self, seed: int, **changes: Any) -> TipAdapter:
        """Our method with the cache that it makes of the augmented features."""
        method = super().draw(seed, **changes)
        assert isinstance(method, TipAdapter)
        if len(self.passes) != method.settings.passes:
            raise UserError("aug_features_raw has not as many passes as augment_epochs says")
        method.before_training(self.shots)
        return method

    def check_inputs(self, method: Any) -> None:
        """The cache, the text, and the features of the held out and of the test images."""
        templates = self.case["templates"]
        rows = [template_rows(self.classes.names, template) for template in templates]
        raw = [self.clip.text_features(self.clip.layout(one)) for one in rows]
        self.compare.check("text_features_raw", torch.stack(raw, dim=1) if len(raw) > 1 else raw[0])
        self.compare.check("text_features", method.text_features(self.classes))
        self.compare.check("cache_keys", self.draw(0).keys)
        self.compare.check("cache_values", method.classifier(self.classes)[1])
        self.compare.check("val_features", method.image_features(self.held_out))
        self.compare.check("test_features", method.image_features(self.tested))

    def outputs(self, method: Any) -> dict[str, Tensor]:
        logits = method.logits(self.batch, method.classifier(self.classes))
        plain = method.scores(method.image_features(self.batch), method.text_features(self.classes))
        self.check_accuracy("accuracy", logits, self.batch)
        return {"logits": logits, "logits_zeroshot": plain}

    @torch.no_grad()
    def rest(self, method: Any) -> None:
        self.check_inputs(method)
        self.check_search(method)

    def check_search(self, method: Any) -> None:
        """The grids, what every pair is right about, and the pair that is chosen."""
        betas, alphas = (torch.tensor(values, dtype=torch.float64) for values in method.grid())
        self.compare.check("search_beta", betas)
        self.compare.check("search_alpha", alphas)
        pairs, labels = list(method.tried(self.held_out, self.classes)), self.held_out.labels
        size = len(betas), len(alphas)
        ours = torch.stack([smallest_margin(logits) for logits in pairs]).view(size)
        hits = [(logits.argmax(dim=-1) == labels).sum() for logits in pairs]
        right = 100 * torch.stack(hits).double().view(size) / len(labels)
        margin = self.arrays.get("search_margin", ours)
        self.compare.check("search_margin", ours)
        target = self.compare.take("search_accuracy")
        if right.shape == target.shape == margin.shape:
            right = torch.where(margin > CLOSE, right, target)
        self.compare.check("search_accuracy", right)
        method.after_training(self.shots)
        alpha, beta = method.weights
        self.compare.check("best_beta", beta)
        self.compare.check("best_alpha", alpha)
        self.compare.check("best_accuracy", right[betas == beta, alphas == alpha].squeeze())
        logits = method.logits(self.tested, method.classifier(self.classes))
        plain = method.scores(method.image_features(self.tested), method.text_features(self.classes))
        self.compare.check("logits_test", logits)
        self.check_accuracy("accuracy_test", logits, self.tested)
        self.check_accuracy("accuracy_test_zeroshot", plain, self.tested)

    def check_accuracy(self, name: str, logits: Tensor, batch: Batch) -> float:
        """Our accuracy in per cent; images that rounding may decide count for neither side."""
        ours, near = accuracy(logits, batch.labels)
        if name in self.compare:
            away = abs(ours - self.compare.take(name).item())
            self.compare.measured(name, max(0.0, away - near))
        return ours


class TipAdapterFCase(TipAdapterCase):
    """The first batch, used for all of ``step1`` and so on, and then the training itself."""

    kind = "tip_adapter_f"
    required: tuple[str, ...] = (
        "text_features",
        "logits",
        "loss",
        "cache_keys",
        "search_accuracy",
        "logits_test",
    )

    def inputs(self) -> None:
        super().inputs()
        self.batch = Batch(self.compare.take("labels"), frozen=self.compare.take("image_features_raw"))

    def official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"adapter.weight": ours["keys"]}

    def outputs(self, method: Any) -> dict[str, Tensor]:
        return {
            "image_features": method.image_features(self.batch),
            "logits": method.logits(self.batch, method.classifier(self.classes)),
        }

    def check_start(self) -> None:
        """The trained keys start as the cache's."""
        ours = self.official(dict(self.draw(0).named_parameters()))
        for name, tensor in ours.items():
            self.compare.measured(
                f"param.{name}", difference(tensor, self.arrays[f"param.{name}"]), "features"
            )

    def rest(self, method: Any) -> None:
        self.check_inputs(method)
        self.check_search(self.check_training())

    def check_training(self) -> Method:
        """All epochs in the order of the official run, short batches included."""
        epochs, size = self.case["epochs"], self.case["batch_size"]
        method = self.create(epochs=epochs, batch_size=size, schedule="step").train()
        number, steps = 0, None
        rates, losses, accuracies = [], [], []
        for epoch in range(1, epochs + 1):
            names = self.compare.starting(rf"batch_features_raw\.epoch{epoch}_batch\d+$")
            batches = [self.batch_of(f"epoch{epoch}_batch{b}") for b in range(1, len(names) + 1)]
            ours = epoch_order(len(self.shots.labels), size, 0, epoch, method.settings.drop_last)
            same = [len(batch.labels) for batch in batches] == [len(batch) for batch in ours]
            self.compare.measured(f"batches of epoch {epoch}", 0.0 if same else float("inf"), "tokens")
            steps = steps or Steps(method, len(ours))
            for step, batch in enumerate(batches):
                loss, rate = steps.take(batch, self.classes, epoch - 1, step)
                rates.append(rate)
                losses.append(loss)
                number += 1
                values = self.official(dict(method.named_parameters()))
                self.compare.check_all(f"train_step{number}", values)
            logits = self.test_logits(method)
            accuracies.append(self.check_accuracy("", logits, self.tested))
        self.compare.check("train_lr", torch.tensor(rates, dtype=torch.float64))
        self.compare.check_steps("train_loss_per_step", torch.stack(losses))
        self.compare.check("train_logits_test", logits)
        self.compare.check("train_accuracy_test_per_epoch", torch.tensor(accuracies, dtype=torch.float64))
        best = torch.tensor(1 + accuracies.index(max(accuracies)))  # what the released script goes back to
        self.compare.check("official_best_epoch", best)
        return method.eval()

    def batch_of(self, name: str) -> Batch:
        take = self.compare.take
        return Batch(take(f"batch_labels.{name}"), frozen=take(f"batch_features_raw.{name}"))

    @torch.no_grad()
    def test_logits(self, method: Method) -> Tensor:
        return method.logits(self.tested, method.classifier(self.classes))


def smallest_margin(logits: Tensor) -> Tensor:
    """The smallest gap between the two largest logits of any image: []."""
    two = logits.topk(2, dim=-1).values
    return (two[:, 0] - two[:, 1]).min()


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy in per cent, and how much of it rounding may decide."""
    two = logits.topk(2, dim=-1).values
    near = (two[:, 0] - two[:, 1] < CLOSE).double().mean().item()
    return 100 * (logits.argmax(dim=-1) == labels).double().mean().item(), 100 * near
