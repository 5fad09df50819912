"""Linear probe: logistic regression on frozen image features."""

import warnings
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data.classnames import Classes
from promptbench.methods._base import Batch, Method, Shots, trained_rows
from promptbench.methods._settings import Count, Settings

GRID = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
STEPS = 8


class LinearProbeSettings(Settings):
    epochs: Count = Field(0, le=0, description="fitted in closed form, not by epochs")
    steps: Count = Field(0, le=0, description="nor by steps")
    C: float = Field(0.0, ge=0, description="inverse strength of the penalty; 0 = chosen on validation")


class LinearProbe(Method):
    """Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
    section 3.2.

    Multinomial logistic regression with an L2 penalty on frozen image features, not normalised, of the
    plain images; L-BFGS, at most 1000 iterations. C is chosen by accuracy on the few-shot validation
    images (KaiyangZhou/CoOp: lpclip): seven powers of ten, then eight bisection steps around the best.
    Where a dataset has no validation images of its own (ImageNet), C = 0.316 as in CLIP's own example.

    Trainable parameters: (e + 1) C   (ViT-B/16, 100 classes: 51,300).

    The official script runs ResNet-50 and draws its own images; here it is any backbone and the field's
    draw. A label space with a class that was not trained on is classified zero-shot.
    """

    name = "linear_probe"
    paper = "arXiv:2103.00020"
    published_name = "Linear probe CLIP"
    trains = frozenset({"head"})
    unfit = {"crossdataset": "it has no weights for the classes of other datasets"}
    fallback = "zero-shot where a class was not trained on"
    Settings = LinearProbeSettings
    settings: LinearProbeSettings

    def __init__(self, clip: FrozenCLIP, settings: LinearProbeSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        self.classes = classes
        self.weight = nn.Parameter(torch.zeros(len(classes), clip.shape.embed_dim))
        self.bias = nn.Parameter(torch.zeros(len(classes)))

    @classmethod
    def parameter_count(cls, settings: LinearProbeSettings, shape: Shape, n_classes: int) -> int:
        return (shape.embed_dim + 1) * n_classes

    def before_training(self, shots: Shots) -> None:
        x, y = shots.features(None).double().cpu().numpy(), shots.labels.cpu().numpy()
        held_out = shots.validation()
        strength = self.settings.C or (choose_strength(x, y, *held_out) if held_out else 0.316)
        weight, bias = solve(x, y, strength)
        if len(bias) == 1:  # two classes share one row: the second's logit, the first's is 0
            weight, bias = np.concatenate([0 * weight, weight]), np.append(0 * bias, bias)
        self.weight.data.copy_(torch.from_numpy(weight))
        self.bias.data.copy_(torch.from_numpy(bias))

    def classifier(self, classes: Classes) -> Any:
        """Weight and bias of the classes, or zero-shot text features if one of them is unknown."""
        rows = trained_rows(self.classes, classes)
        return self.text_features(classes) if -1 in rows else (self.weight[rows], self.bias[rows])

    def logits(self, batch: Batch, classifier: Any) -> Tensor:
        if isinstance(classifier, Tensor):
            return super().logits(batch, classifier)
        assert batch.frozen is not None
        with torch.autocast(batch.frozen.device.type, enabled=False):  # logits are fp32 everywhere
            return F.linear(batch.frozen, *classifier)


def solve(x: Any, y: Any, strength: float) -> tuple[Any, Any]:
    """Weight [C, e] and bias [C] (one row for two classes) of the regression with C = ``strength``."""
    from sklearn.exceptions import ConvergenceWarning  # here: it would slow every command down
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weak end of the grid never converges
        model = LogisticRegression(C=strength, max_iter=1000).fit(x, y)
    return model.coef_, model.intercept_


def choose_strength(x: Any, y: Any, held_out: Tensor, labels: Tensor) -> float:
    """C by validation accuracy: the best of `GRID`, the earlier of equals, then `STEPS` bisections."""
    features, known = held_out.double().cpu().numpy(), labels.cpu().numpy()

    def accuracy(strength: float) -> float:
        weight, bias = solve(x, y, strength)
        logits = features @ weight.T + bias
        guess = logits[:, 0] > 0 if len(bias) == 1 else logits.argmax(axis=1)
        return float((guess == known).mean())

    peak = max(GRID, key=accuracy)
    left, right = 0.1 * peak, 10 * peak
    best = peak
    for _ in range(STEPS):
        middle = (left * right) ** 0.5
        if accuracy(left) < accuracy(right):
            best, left = right, middle
        else:
            best, right = left, middle
    return best
