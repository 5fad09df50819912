"""The heads, KgCoOp, TCP and CoCoOp against the equations of their cards, written out in NumPy.

Inputs are raw features from open_clip's own `encode_image`, `encode_text` and blocks on the tiny model, and
the learned tensors of a method, moved away from where they start. Nothing here was derived from methods/.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.reference import ReferenceCLIP
from promptbench.data import dataset as data
from promptbench.data.classnames import Classes
from promptbench.methods._base import Batch, Shots
from promptbench.methods._registry import get_method, resolve_settings
from promptbench.training.loop import Training, create, fit
from tests.plain import tokenize

Array = NDArray[Any]

STANDARD = Path(__file__).parent.parent / "datasets" / "standard"
TEMPLATES = {
    card["name"]: card["template"]
    for card in (yaml.safe_load(path.read_text()) for path in STANDARD.glob("*.yaml"))
    if "template" in card  # the suite has none
}
SELECT = (  # protocol.md 3.2
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
# protocol.md 3.1: anchors whose wording is not that of the zero-shot table.
KGCOOP_ANCHORS = {"dtd": "a photo of a {}, a type of texture."}
TCP_ANCHORS = {
    "dtd": "a photo of a {}, a type of texture.",
    "food101": "a photo of a {}, a type of food.",
    "fgvc_aircraft": "a photo of an aircraft {}.",
}
# TCP's card: what stands behind the four context tokens.
TCP_SENTENCES = {
    "oxford_pets": "{}, a type of pet.",
    "oxford_flowers": "{}, a type of flower.",
    "fgvc_aircraft": "{}, a type of aircraft.",
    "food101": "{}, a type of food.",
    "dtd": "{} texture.",
    "stanford_cars": "{}, a type of car",
    "eurosat": "{}.",
    "sun397": "{}.",
    "caltech101": "{}.",
    "ucf101": "person doing {}.",
    "imagenet": "{}.",
    "imagenetv2": "{}.",
    "imagenet_sketch": "{}.",
    "imagenet_a": "{}.",
    "imagenet_r": "{}.",
}
# Tip-Adapter's card: end of the search for beta and alpha, and alpha before it (beta: 1 everywhere).
TIP = {
    "caltech101": (12, 5, 3),
    "oxford_pets": (7, 3, 1.17),
    "stanford_cars": (20, 10, 3),
    "oxford_flowers": (50, 50, 10),
    "food101": (10, 10, 1.17),
    "fgvc_aircraft": (30, 30, 5),
    "sun397": (12, 10, 1.17),
    "dtd": (13, 13, 2),
    "eurosat": (12, 10, 2),
    "ucf101": (7, 3, 3),
    "imagenet": (7, 3, 1.17),
}
NOVEL = Classes(("hot dog", "suspension_bridge"), "a photo of {}, a type of food.")


# ---------------------------------------------------------------------- the cards' vocabulary in NumPy


def array(x: torch.Tensor) -> Array:
    return x.detach().double().numpy()


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def linear(x: Array, layer: Any) -> Array:
    """W x + b with the tensors of a layer."""
    out = x @ array(layer.weight).T
    return out if layer.bias is None else out + array(layer.bias)


def cross_entropy(logits: Array, labels: Array) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-logs[np.arange(len(labels)), labels].mean())


def one_hot(labels: Array, classes: int) -> Array:
    return np.eye(classes)[labels]


def same(found: torch.Tensor, expected: Array, tolerance: float = 1e-5) -> None:
    """Equal up to ``tolerance``: 1e-5 for unit-norm features, 1e-4 for logits."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(array(found), expected, rtol=0, atol=tolerance)


def differ(a: Array, b: Array) -> None:
    """A check that could not tell these two apart would prove nothing."""
    assert np.abs(a - b).max() > 1e-3


# ---------------------------------------------------------------------- inputs


def words(name: str) -> str:
    return name.replace("_", " ")


def encode_text(clip: FrozenCLIP, names: tuple[str, ...], template: str) -> Array:
    """Raw features of the template with every name, from open_clip's text tower: [C, e]."""
    return array(clip.model.encode_text(tokenize([template.format(words(name)) for name in names])))


def encode_prompts(
    clip: FrozenCLIP,
    names: tuple[str, ...],
    sentence: str,
    context: Array,
    layer: int = 0,
    own: Array | None = None,
) -> Array:
    """Raw features of ``[4 context tokens] <sentence>`` from open_clip's blocks over all 77 positions.

    ``own`` [C, 4, d]: what overwrites positions 1..4 before block ``layer`` (from 0), class by class.
    """
    model = clip.model
    tokens = tokenize([f"X X X X {sentence.format(words(name))}" for name in names])
    x = model.token_embedding(tokens)
    x[:, 1:5] = torch.from_numpy(context).float()
    x = x + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        if own is not None and i == layer:
            for c in range(len(names)):
                x[c, 1:5] = torch.from_numpy(own[c]).float()
        x = block(x, attn_mask=model.attn_mask)
    ends = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)]
    return array(ends @ model.text_projection)


def pictures(clip: FrozenCLIP, n_classes: int, seed: int = 0) -> tuple[Batch, Array, Array]:
    """A batch as the engine gives it, and the same pictures' raw features by open_clip and labels."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(7, 3, 32, 32, generator=g)
    labels = torch.arange(7) % n_classes
    with torch.no_grad():
        batch = Batch(labels, images, clip.image_features(images))
    raw = clip.model.encode_image(images)
    return batch, array(raw), labels.numpy()


def clusters(n_classes: int, per_class: int, noise: float, seed: int, width: int = 32) -> tuple[Array, Array]:
    """Raw features [N, e] in fp32 around one centre per class, and their labels; not of unit norm."""
    centres = 2 * np.random.default_rng(0).normal(size=(n_classes, width))
    labels = np.tile(np.arange(n_classes), per_class)
    spread = noise * np.random.default_rng(seed).normal(size=(len(labels), width))
    return (centres[labels] + spread).astype(np.float32), labels


Views = Callable[[int | None], torch.Tensor]


def shots_of(
    labels: Array, classes: Classes, features: Views, validation: tuple[Array, Array] | None = None
) -> Shots:
    held_out = None if validation is None else tuple(torch.from_numpy(part) for part in validation)
    return Shots(torch.from_numpy(labels), classes, features, lambda: held_out)  # type: ignore[arg-type, return-value]


def plain_views(features: Array) -> Views:
    """Features of the plain pictures; an augmented view is refused."""

    def views(number: int | None) -> torch.Tensor:
        assert number is None
        return torch.from_numpy(features)

    return views


def augmented_views(passes: Array) -> Views:
    """Features of the training views by pass; the plain pictures are refused."""

    def views(number: int | None) -> torch.Tensor:
        assert number is not None
        return torch.from_numpy(passes[number])

    return views


def make(name: str, clip: FrozenCLIP, classes: Classes, **settings: Any) -> Any:
    """A method with every learned tensor moved away from its start, so that no term of it is zero."""
    kind = get_method(name)
    method = create(kind, clip, kind.Settings(**settings), classes, seed=1)
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
    return method


def scale(clip: FrozenCLIP) -> float:
    return float(np.exp(clip.model.logit_scale.item()))


# ---------------------------------------------------------------------- linear probe


def regression(x: Array, y: Array, strength: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=1000, solver="lbfgs").fit(x, y)


def bisection(x: Array, y: Array, held_out: Array, known: Array) -> tuple[float, str]:
    """C by the card, and the turns taken: the best of seven, then eight steps between 0.1 and 10 times it."""

    def accuracy(strength: float) -> float:
        return float(regression(x, y, strength).score(held_out, known))

    grid = [1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6]
    best = grid[int(np.argmax([accuracy(strength) for strength in grid]))]
    left, right, turns = 0.1 * best, 10 * best, ""
    for _ in range(8):
        middle = 10 ** ((np.log10(left) + np.log10(right)) / 2)
        if accuracy(left) < accuracy(right):
            best, left, turns = right, middle, turns + "R"
        else:
            best, right, turns = left, middle, turns + "L"
    return best, turns


def probe(clip: FrozenCLIP, classes: Classes, shots: Shots) -> Any:
    method = make("linear_probe", clip, classes)
    method.before_training(shots)
    return method


@pytest.mark.parametrize("n_classes", [2, 4])
def test_linear_probe_is_a_regression_on_raw_features(
    clip: FrozenCLIP, classes: Classes, n_classes: int
) -> None:
    """Logits are those of scikit-learn's model of the features before normalisation, C = 0.316."""
    classes = Classes(classes.names[:n_classes])
    x, y = clusters(n_classes, 4, 3.0, seed=1)
    method = probe(clip, classes, shots_of(y, classes, plain_views(x)))
    batch, raw, labels = pictures(clip, n_classes)
    model = regression(x, y, 0.316)
    expected = raw @ model.coef_.T + model.intercept_
    if n_classes == 2:  # one row: the log-odds of the second class
        expected = np.concatenate([0 * expected, expected], axis=1)
    same(method.logits(batch, method.classifier(classes)), expected, 1e-4)
    assert method.loss(batch, classes).item() == pytest.approx(cross_entropy(expected, labels), abs=1e-4)


@pytest.mark.parametrize(
    ("noise", "seed", "per_class", "turns"),
    [(0.1, 0, 24, "LLLLLLLL"), (5.0, 1, 8, "LRRRRLLL"), (8.0, 17, 24, "RLLLLRRL")],
)
def test_linear_probe_chooses_its_penalty(
    clip: FrozenCLIP, classes: Classes, noise: float, seed: int, per_class: int, turns: str
) -> None:
    """The first best of the grid, then the end kept in the eighth bisection; equals go left.

    In fp64: in fp32 rounding decides when L-BFGS stops, and so which of two close ends is better.
    """
    (x, y), (held_out, known) = clusters(4, 4, noise, seed), clusters(4, per_class, noise, seed + 100)
    x, held_out = x.astype(np.float64), held_out.astype(np.float64)
    strength, taken = bisection(x, y, held_out, known)
    assert taken == turns
    if set(turns) == {"L"}:  # every C is right everywhere: the first of the grid, then always its left end
        assert strength == pytest.approx(1e5)
    method = probe(clip, classes, shots_of(y, classes, plain_views(x), (held_out, known)))
    model = regression(x, y, strength)
    same(method.weight, model.coef_, 1e-6)
    same(method.bias, model.intercept_, 1e-6)


def test_linear_probe_knows_its_classes_only(clip: FrozenCLIP, classes: Classes) -> None:
    """Some of its classes: their rows. Any class it does not know: zero-shot with the dataset's template."""
    x, y = clusters(4, 4, 3.0, seed=1)
    method = probe(clip, classes, shots_of(y, classes, plain_views(x)))
    batch, raw, _ = pictures(clip, 2)
    model = regression(x, y, 0.316)
    some = Classes((classes.names[3], classes.names[1]))
    expected = raw @ model.coef_[[3, 1]].T + model.intercept_[[3, 1]]
    same(method.logits(batch, method.classifier(some)), expected, 1e-4)
    mixed = Classes((*NOVEL.names, classes.names[0]), NOVEL.template)
    text = unit(encode_text(clip, mixed.names, NOVEL.template))
    same(method.logits(batch, method.classifier(mixed)), scale(clip) * unit(raw) @ text.T, 1e-4)


# ---------------------------------------------------------------------- CLIP-Adapter


@pytest.mark.parametrize("template", ["a photo of a {}.", "{} texture."])
def test_clip_adapter(clip: FrozenCLIP, classes: Classes, template: str) -> None:
    """f' = 0.2 relu(W2 relu(W1 f)) + 0.8 f of the feature before normalisation; frozen template text."""
    classes = Classes(classes.names, template)
    method = make("clip_adapter", clip, classes)
    batch, raw, labels = pictures(clip, len(classes))
    adapted = relu(linear(relu(linear(raw, method.down)), method.up))
    image = unit(0.2 * adapted + 0.8 * raw)
    differ(image, unit(0.2 * unit(adapted) + 0.8 * unit(raw)))
    text = unit(encode_text(clip, classes.names, template))
    logits = scale(clip) * image @ text.T
    same(method.image_features(batch), image)
    same(method.text_features(classes), text)
    same(method.logits(batch, method.classifier(classes)), logits, 1e-4)
    assert method.loss(batch, classes).item() == pytest.approx(cross_entropy(logits, labels), abs=1e-4)


# ---------------------------------------------------------------------- Tip-Adapter and Tip-Adapter-F


def cache_logits(plain: Array, affinity: Array, values: Array, alpha: float, beta: float) -> Array:
    """s f.W + alpha exp(-beta (1 - f.F_train)) L."""
    return plain + alpha * np.exp(-beta * (1 - affinity)) @ values


def passes_of(classes: Classes, shots: int, noise: float = 4.0) -> tuple[Array, Array]:
    """Features [10, N, e] of ten augmented views, of sizes that differ, and labels [N]."""
    views = [clusters(len(classes), shots, noise, seed=50 + i) for i in range(10)]
    return np.stack([(1 + i) * x for i, (x, _) in enumerate(views)]), views[0][1]


def tip(
    name: str,
    clip: FrozenCLIP,
    classes: Classes,
    held_out: tuple[Array, Array] | None = None,
    **settings: Any,
) -> tuple[Any, Shots]:
    """A cache of three shots, its keys moved away from where they start if they are trained."""
    passes, labels = passes_of(classes, 3)
    shots = shots_of(labels, classes, augmented_views(passes), held_out)
    method = make(name, clip, classes, **{"shots": 3, **settings})
    method.before_training(shots)
    if name == "tip_adapter_f":
        with torch.no_grad():
            method.keys.add_(0.1 * torch.randn(method.keys.shape, generator=torch.Generator().manual_seed(3)))
    return method, shots


def keys_of(name: str, method: Any, classes: Classes) -> Array:
    """Tip-Adapter's keys by the card; Tip-Adapter-F's as they were learned."""
    if name == "tip_adapter_f":
        return array(method.keys)
    return unit(passes_of(classes, 3)[0].astype(float).mean(axis=0))


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_keys_are_the_mean_of_ten_views(clip: FrozenCLIP, classes: Classes, name: str) -> None:
    """Raw features are averaged over the passes, then normalised; so starts Tip-Adapter-F, too."""
    passes, labels = passes_of(classes, 3)
    method = make(name, clip, classes, shots=3)
    method.before_training(shots_of(labels, classes, augmented_views(passes)))
    expected = unit(passes.astype(float).mean(axis=0))
    differ(expected, unit(unit(passes.astype(float)).mean(axis=0)))
    same(method.keys, expected)


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_cache_logits(clip: FrozenCLIP, classes: Classes, name: str) -> None:
    method, _ = tip(name, clip, classes, alpha=7.0, beta=2.5)
    batch, raw, labels = pictures(clip, len(classes))
    f, text = unit(raw), unit(encode_text(clip, classes.names, classes.template))
    values = one_hot(passes_of(classes, 3)[1], len(classes))
    plain = scale(clip) * f @ text.T
    expected = cache_logits(plain, f @ keys_of(name, method, classes).T, values, 7.0, 2.5)
    differ(expected, plain)
    same(method.text_features(classes), text)
    same(method.logits(batch, method.classifier(classes)), expected, 1e-4)
    assert method.loss(batch, classes).item() == pytest.approx(cross_entropy(expected, labels), abs=1e-4)


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
@pytest.mark.parametrize("dataset", ["oxford_pets", "oxford_flowers"])
def test_alpha_and_beta_are_searched(clip: FrozenCLIP, classes: Classes, name: str, dataset: str) -> None:
    """200 values of beta outside, 20 of alpha inside, the first best pair; trained keys as they are."""
    largest_beta, largest_alpha, start = TIP[dataset]
    held_out = clusters(4, 10, 5.0, seed=20)
    settings = resolve_settings(get_method(name), "fewshot", 3, dataset).model_dump()
    method, shots = tip(name, clip, classes, held_out, **settings)
    assert method.weights.tolist() == pytest.approx([start, 1.0])
    f, known = unit(held_out[0].astype(float)), held_out[1]
    text = unit(encode_text(clip, classes.names, classes.template))
    plain, affinity = scale(clip) * f @ text.T, f @ keys_of(name, method, classes).T
    values = one_hot(passes_of(classes, 3)[1], 4)
    found, best, ties = (0.0, 0.0), 0.0, 0
    for i in range(200):
        beta = 0.1 + i * (largest_beta - 0.1) / 200
        for j in range(20):
            alpha = 0.1 + j * (largest_alpha - 0.1) / 20
            logits = cache_logits(plain, affinity, values, alpha, beta)
            accuracy = float((logits.argmax(axis=1) == known).mean())
            ties = ties + 1 if accuracy == best else ties
            if accuracy > best:
                found, best, ties = (alpha, beta), accuracy, 0
    assert ties > 0  # so that another order or >= would give another pair
    assert found[0] > 0.1  # so that the search had something to find
    method.after_training(shots)
    assert method.weights.tolist() == pytest.approx(found, rel=1e-6)
    batch, raw, _ = pictures(clip, 4)
    affinity = unit(raw) @ keys_of(name, method, classes).T
    expected = cache_logits(scale(clip) * unit(raw) @ text.T, affinity, values, *found)
    same(method.logits(batch, method.classifier(classes)), expected, 1e-4)


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_without_validation_alpha_and_beta_stay(clip: FrozenCLIP, classes: Classes, name: str) -> None:
    """As on ImageNet, where the validation pictures are the test pictures."""
    method, shots = tip(name, clip, classes, None, alpha=1.17)
    method.after_training(shots)
    assert method.weights.tolist() == pytest.approx([1.17, 1.0])


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_novel_classes_have_no_cache_entries(clip: FrozenCLIP, classes: Classes, name: str) -> None:
    """Novel classes only: zero-shot. Known ones among novel ones: their entries, in their new columns."""
    method, _ = tip(name, clip, classes, alpha=7.0, beta=2.5)
    batch, raw, _ = pictures(clip, 2)
    f = unit(raw)
    text = unit(encode_text(clip, NOVEL.names, NOVEL.template))
    same(method.text_features(NOVEL), text)
    same(method.logits(batch, method.classifier(NOVEL)), scale(clip) * f @ text.T, 1e-4)
    mixed = Classes((classes.names[2], "zebra", classes.names[0]))
    values = one_hot(passes_of(classes, 3)[1], 4)
    values = np.stack([values[:, 2], 0 * values[:, 0], values[:, 0]], axis=1)
    text = unit(encode_text(clip, mixed.names, mixed.template))
    affinity = f @ keys_of(name, method, classes).T
    expected = cache_logits(scale(clip) * f @ text.T, affinity, values, 7.0, 2.5)
    same(method.logits(batch, method.classifier(mixed)), expected, 1e-4)


def test_tip_adapter_averages_seven_templates_on_imagenet(clip: FrozenCLIP, classes: Classes) -> None:
    """Each normalised, their mean normalised again; the dataset's own template is not among them."""
    classes = Classes(classes.names, TEMPLATES["imagenet"], "imagenet")
    raw = np.stack([encode_text(clip, classes.names, template) for template in SELECT])
    expected = unit(unit(raw).mean(axis=0))
    own = unit(encode_text(clip, classes.names, TEMPLATES["imagenet"]))
    differ(expected, own)
    for name in ("tip_adapter", "tip_adapter_f"):
        same(make(name, clip, classes).text_features(classes), expected)
        elsewhere = Classes(classes.names, TEMPLATES["imagenet"], "caltech101")
        same(make(name, clip, elsewhere).text_features(elsewhere), own)


@pytest.mark.parametrize("dataset", sorted(TIP))
def test_tip_adapter_settings(dataset: str) -> None:
    beta_max, alpha_max, alpha = TIP[dataset]
    for name in ("tip_adapter", "tip_adapter_f"):
        s = resolve_settings(get_method(name), "fewshot", 8, dataset)
        assert (s.beta_max, s.alpha_max, s.alpha, s.beta) == (beta_max, alpha_max, alpha, 1.0)
        assert (s.passes, s.shots, s.crop_min, s.drop_last) == (10, 8, 0.5, False)
    assert s.epochs == (100 if dataset == "eurosat" else 20)
    assert (s.optimizer, s.lr, s.eps, s.weight_decay, s.batch_size) == ("adamw", 1e-3, 1e-4, 0.01, 256)


@pytest.mark.parametrize("batch_size", [10, 8])
def test_tip_adapter_f_cosine_runs_over_all_steps(
    clip: FrozenCLIP, colours: data.Dataset, batch_size: int
) -> None:
    """The rate of step k of n is lr (1 + cos(pi k / n)) / 2; a short last batch of an epoch is a step."""
    settings = resolve_settings(
        get_method("tip_adapter_f"), "fewshot", 4, "colours", None, {"batch_size": batch_size, "epochs": 2}
    )
    method = create(get_method("tip_adapter_f"), clip, settings, colours.classes(), seed=1)
    progress = fit(method, Training(colours, colours.few_shot(4, 1, "all"), colours.classes(), seed=1))
    steps = 2 * -(-20 // batch_size)
    assert progress.steps == steps
    last = settings.lr * (1 + np.cos(np.pi * (steps - 1) / steps)) / 2
    assert progress.history[-1]["lr"] == pytest.approx(last)


# ---------------------------------------------------------------------- TaskRes


@pytest.mark.parametrize(("dataset", "a"), [("oxford_pets", 0.5), ("oxford_flowers", 1.0)])
def test_taskres(clip: FrozenCLIP, classes: Classes, dataset: str, a: float) -> None:
    """normalise(t + a x) with t before normalisation; a = 0.5, Flowers 1."""
    classes = Classes(classes.names, TEMPLATES[dataset], dataset)
    scaled = resolve_settings(get_method("taskres"), "fewshot", 16, dataset).scale
    method = make("taskres", clip, classes, scale=scaled)
    raw_text = encode_text(clip, classes.names, TEMPLATES[dataset])
    text = unit(raw_text + a * array(method.residual))
    differ(text, unit(unit(raw_text) + a * array(method.residual)))
    batch, raw, labels = pictures(clip, len(classes))
    logits = scale(clip) * unit(raw) @ text.T
    same(method.text_features(classes), text)
    same(method.logits(batch, method.classifier(classes)), logits, 1e-4)
    assert method.loss(batch, classes).item() == pytest.approx(cross_entropy(logits, labels), abs=1e-4)


def test_taskres_averages_eight_templates_on_imagenet(clip: FrozenCLIP, classes: Classes) -> None:
    """The 7 "select" ones and "a photo of a {}.", averaged before any normalisation."""
    classes = Classes(classes.names, TEMPLATES["imagenet"], "imagenet")
    method = make("taskres", clip, classes)
    templates = (*SELECT, "a photo of a {}.")
    raw = np.stack([encode_text(clip, classes.names, template) for template in templates])
    same(method.text_features(classes), unit(raw.mean(axis=0) + 0.5 * array(method.residual)))
    variant = Classes((classes.names[2], classes.names[0]), TEMPLATES["imagenet_a"], "imagenet_a")
    rows = unit(raw.mean(axis=0)[[2, 0]] + 0.5 * array(method.residual)[[2, 0]])
    same(method.text_features(variant), rows)  # ImageNet-A and -R: their rows of base and residual


def test_taskres_has_no_residual_for_novel_classes(clip: FrozenCLIP, classes: Classes) -> None:
    method = make("taskres", clip, classes)
    batch, raw, _ = pictures(clip, 2)
    text = unit(encode_text(clip, NOVEL.names, NOVEL.template))
    same(method.text_features(NOVEL), text)
    same(method.logits(batch, method.classifier(NOVEL)), scale(clip) * unit(raw) @ text.T, 1e-4)
    mixed = Classes((classes.names[2], "zebra"))
    residual = np.stack([array(method.residual)[2], np.zeros(32)])
    same(method.text_features(mixed), unit(encode_text(clip, mixed.names, mixed.template) + 0.5 * residual))


# ---------------------------------------------------------------------- two classes of one name (ImageNet)


MISSILES = Classes(("missile", "ox", "missile"))


def test_linear_probe_keeps_classes_of_one_name_apart(clip: FrozenCLIP) -> None:
    """ImageNet has "missile" and "sunglasses" twice (protocol.md 2.2: index by label, not by name)."""
    x, y = clusters(3, 4, 3.0, seed=1)
    method = probe(clip, MISSILES, shots_of(y, MISSILES, plain_views(x)))
    batch, raw, _ = pictures(clip, 3)
    model = regression(x, y, 0.316)
    expected = raw @ model.coef_.T + model.intercept_
    same(method.logits(batch, method.classifier(MISSILES)), expected, 1e-4)


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_cache_keeps_classes_of_one_name_apart(clip: FrozenCLIP, name: str) -> None:
    method, _ = tip(name, clip, MISSILES, alpha=7.0, beta=2.5)
    batch, raw, _ = pictures(clip, 3)
    f, text = unit(raw), unit(encode_text(clip, MISSILES.names, MISSILES.template))
    values = one_hot(passes_of(MISSILES, 3)[1], 3)
    affinity = f @ keys_of(name, method, MISSILES).T
    expected = cache_logits(scale(clip) * f @ text.T, affinity, values, 7.0, 2.5)
    same(method.logits(batch, method.classifier(MISSILES)), expected, 1e-4)


def test_taskres_keeps_classes_of_one_name_apart(clip: FrozenCLIP) -> None:
    method = make("taskres", clip, MISSILES)
    raw = encode_text(clip, MISSILES.names, MISSILES.template)
    same(method.text_features(MISSILES), unit(raw + 0.5 * array(method.residual)))


# ---------------------------------------------------------------------- KgCoOp


def same_anchored(method: Any, clip: FrozenCLIP, classes: Classes, text: Array, g: Array) -> None:
    """Features, anchors, logits and loss = CE + 8 (1 - mean cos(t, g)), as KgCoOp and TCP have it."""
    batch, raw, labels = pictures(clip, len(classes))
    logits = scale(clip) * unit(raw) @ text.T
    distance = 1 - (text * g).sum(axis=1).mean()
    assert distance > 1e-3
    same(method.text_features(classes), text)
    same(method.anchors(classes), g)
    same(method.logits(batch, method.classifier(classes)), logits, 1e-4)
    expected = cross_entropy(logits, labels) + 8 * distance
    assert method.loss(batch, classes).item() == pytest.approx(expected, abs=1e-4)


def test_the_cards_know_every_standard_dataset() -> None:
    assert set(TCP_SENTENCES) == set(TEMPLATES)


@pytest.mark.parametrize("dataset", sorted(TEMPLATES))
def test_kgcoop(clip: FrozenCLIP, classes: Classes, dataset: str) -> None:
    """``[ctx] {}.`` for every dataset; loss = CE + 8 (1 - mean cos(t, g)), DTD's g in other words."""
    classes = Classes(classes.names, TEMPLATES[dataset], dataset)
    method = make("kgcoop", clip, classes)
    text = unit(encode_prompts(clip, classes.names, "{}.", array(method.ctx)))
    g = unit(encode_text(clip, classes.names, KGCOOP_ANCHORS.get(dataset, TEMPLATES[dataset])))
    same_anchored(method, clip, classes, text, g)


# ---------------------------------------------------------------------- TCP


def class_aware_tokens(method: Any, g: Array) -> Array:
    """reshape(W2 quickgelu(W1 g + b1) + b2): [C, 4, d]."""
    hidden = linear(g, method.down)
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    return linear(hidden, method.up).reshape(len(g), 4, -1)


@pytest.mark.parametrize("dataset", sorted(TEMPLATES))
def test_tcp(clip: FrozenCLIP, classes: Classes, dataset: str) -> None:
    """Class-aware tokens before block 2, the tail of the template, anchors of their own wording, the loss."""
    classes = Classes(classes.names, TEMPLATES[dataset], dataset)
    method = make("tcp", clip, classes, layer=2, hidden=24)
    g = unit(encode_text(clip, classes.names, TCP_ANCHORS.get(dataset, TEMPLATES[dataset])))
    own = class_aware_tokens(method, g)
    sentence = TCP_SENTENCES[dataset]
    text = unit(encode_prompts(clip, classes.names, sentence, array(method.ctx), 2, own))
    same(method.class_tokens(classes), own)
    same_anchored(method, clip, classes, text, g)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("reference", [False, True])
def test_tcp_at_other_blocks(clip: FrozenCLIP, classes: Classes, layer: int, reference: bool) -> None:
    """Block ``layer`` counted from 0, in both text paths; novel classes get tokens from their own anchors."""
    method = make("tcp", clip, classes, layer=layer, hidden=24)
    if reference:
        method.clip = ReferenceCLIP(clip)
    g = unit(encode_text(clip, NOVEL.names, NOVEL.template))
    own, context = class_aware_tokens(method, g), array(method.ctx)
    expected = unit(encode_prompts(clip, NOVEL.names, "{}, a type of food.", context, layer, own))
    differ(expected, unit(encode_prompts(clip, NOVEL.names, "{}, a type of food.", context, 2, own)))
    same(method.text_features(NOVEL), expected)


# ---------------------------------------------------------------------- CoCoOp


@pytest.mark.parametrize("template", ["a photo of a {}.", "{} texture."])
def test_cocoop(clip: FrozenCLIP, classes: Classes, template: str) -> None:
    """All four tokens are shifted by W2 relu(W1 f + b1) + b2 of the normalised image feature f."""
    classes = Classes(classes.names, template)
    method = make("cocoop", clip, classes)
    batch, raw, labels = pictures(clip, len(classes))
    f, net = unit(raw), method.meta_net
    shift = linear(relu(linear(f, net["linear1"])), net["linear2"])
    differ(shift, linear(relu(linear(raw, net["linear1"])), net["linear2"]))
    differ(shift[:1], shift[1:])
    context = array(method.ctx)
    text = np.stack([unit(encode_prompts(clip, classes.names, "{}.", context + one)) for one in shift])
    same(torch.nn.functional.normalize(method.text_for(torch.from_numpy(f).float(), classes), dim=-1), text)
    logits = scale(clip) * np.einsum("be,bce->bc", f, text)
    same(method.logits(batch, method.classifier(classes)), logits, 1e-4)
    assert method.loss(batch, classes).item() == pytest.approx(cross_entropy(logits, labels), abs=1e-4)


# ---------------------------------------------------------------------- starts and settings of the cards


def test_starts(clip: FrozenCLIP, classes: Classes) -> None:
    """KgCoOp and CoCoOp start from "a photo of a", TCP from N(0, 0.02), TaskRes from 0, C_reg unset."""

    def fresh(name: str, **settings: Any) -> Any:
        return create(get_method(name), clip, get_method(name).Settings(**settings), classes, seed=1)

    embedded = clip.model.token_embedding(tokenize(["a photo of a"]))[0, 1:5]
    for name in ("kgcoop", "cocoop"):
        same(fresh(name).ctx, array(embedded))
    assert fresh("tcp", layer=2).ctx.std().item() == pytest.approx(0.02, rel=0.2)
    assert fresh("taskres").residual.abs().max() == 0
    adapter, cocoop = fresh("clip_adapter"), fresh("cocoop")
    assert adapter.down.bias is None
    assert adapter.up.bias is None
    assert adapter.down.weight.shape == (8, 32)  # e / 4
    assert cocoop.meta_net["linear1"].weight.shape == (2, 32)  # e / 16


@pytest.mark.parametrize(
    ("name", "benchmark", "shots", "dataset", "expected"),
    [
        ("cocoop", "base2novel", 16, "dtd", {"optimizer": "sgd", "lr": 2e-3, "epochs": 10, "batch_size": 1}),
        ("cocoop", "crossdataset", 16, "imagenet", {"lr": 2e-3, "epochs": 10, "batch_size": 1, "n_ctx": 4}),
        ("kgcoop", "base2novel", 16, "dtd", {"optimizer": "sgd", "lr": 2e-3, "epochs": 100, "n_ctx": 4}),
        ("kgcoop", "fewshot", 4, "dtd", {"epochs": 100, "batch_size": 128, "weight": 8.0, "n_ctx": 4}),
        ("tcp", "base2novel", 16, "dtd", {"optimizer": "adam", "lr": 2e-3, "eps": 1e-3, "epochs": 50}),
        ("tcp", "fewshot", 4, "dtd", {"weight_decay": 5e-4, "batch_size": 32, "epochs": 50, "weight": 8.0}),
        ("tcp", "base2novel", 16, "sun397", {"epochs": 25, "layer": 8, "hidden": 128, "n_ctx": 4}),
        ("taskres", "fewshot", 4, "dtd", {"optimizer": "adam", "lr": 2e-3, "epochs": 100, "scale": 0.5}),
        ("taskres", "fewshot", 8, "imagenet", {"lr": 2e-4, "epochs": 200, "batch_size": 256}),
        ("taskres", "fewshot", 16, "oxford_flowers", {"scale": 1.0, "epochs": 200, "weight_decay": 5e-4}),
        ("clip_adapter", "fewshot", 16, "dtd", {"optimizer": "sgd", "lr": 2e-3, "batch_size": 32}),
        ("clip_adapter", "fewshot", 16, "dtd", {"epochs": 200, "ratio": 0.2, "reduction": 4}),
    ],
)
def test_settings(name: str, benchmark: str, shots: int, dataset: str, expected: dict[str, Any]) -> None:
    settings = resolve_settings(get_method(name), benchmark, shots, dataset).model_dump()
    assert {key: settings[key] for key in expected} == expected
