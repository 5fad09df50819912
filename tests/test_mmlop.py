"""MMLoP against its equations written out in NumPy, and every switch of its card."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.tokens import template_rows
from promptbench.data.classnames import Classes
from promptbench.errors import UserError
from promptbench.methods._base import Batch
from promptbench.methods._registry import get_method, resolve_settings
from promptbench.methods._templates import GENERIC_60
from promptbench.training.loop import create
from tests.test_methods import make_batch

Array = NDArray[np.float64]


def make(clip: FrozenCLIP, classes: Classes, **settings: Any) -> Any:
    kind = get_method("mmlop")
    return create(kind, clip, kind.Settings(**{"depth": 3, **settings}), classes, seed=1)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def array(x: torch.Tensor) -> Array:
    return x.detach().double().numpy()


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def expected_loss(
    clip: FrozenCLIP, classes: Classes, batch: Batch, method: Any, drift: bool
) -> dict[str, float]:
    """The four terms from raw features, by the card."""
    prompts = method.prompts()
    layout = clip.prompt_layout(classes, "a photo of a", 4)
    t = unit(array(clip.text_features(layout, prompts)))
    f = unit(array(clip.image_features(batch.images, prompts)))  # type: ignore[arg-type]
    z = unit(array(batch.frozen))  # type: ignore[arg-type]
    raw = [array(clip.text_features(clip.layout(template_rows(classes.names, t_)))) for t_ in GENERIC_60]
    g = unit(np.mean(raw, axis=0))
    if drift:
        t = unit(t - (t - g).mean(axis=0))
    s = float(clip.scale)
    p, q = softmax(s * f @ t.T), softmax(s * z @ g.T)
    return {
        "ce": float(-np.log(p[np.arange(len(p)), batch.labels.numpy()]).mean()),
        "text": float(25 * np.abs(t - g).mean()),
        "image": float(10 * np.abs(f - z).mean()),
        "logits": float((q * (np.log(q) - np.log(p))).sum() / p.size),
    }


@pytest.mark.parametrize("drift", ["off", "test", "both"])
@pytest.mark.parametrize("consistency", ["off", "features", "logits", "both"])
def test_loss_is_the_card(clip: FrozenCLIP, classes: Classes, drift: Any, consistency: Any) -> None:
    batch = make_batch(clip, len(classes))
    method = make(clip, classes, drift=drift, consistency=consistency).train()
    terms = expected_loss(clip, classes, batch, method, drift == "both")
    total = terms["ce"]
    if consistency in ("features", "both"):
        total += terms["text"] + terms["image"]
    if consistency in ("logits", "both"):
        total += terms["logits"]
    assert method.loss(batch, classes).item() == pytest.approx(total, rel=1e-5)
    assert min(terms.values()) > 1e-3  # a term that is zero here would prove nothing
    assert method.needs_frozen == (consistency != "off")


def test_drift_correction_pins_the_centroid(clip: FrozenCLIP, classes: Classes) -> None:
    """Before renormalisation the class mean of the corrected features is that of the anchors."""
    t = array(make(clip, classes, drift="off").eval().text_features(classes))
    corrected = array(make(clip, classes, drift="both").eval().text_features(classes))
    g = array(make(clip, classes).anchors(classes))
    expected = t - (t - g).mean(axis=0)
    np.testing.assert_allclose(expected.mean(axis=0), g.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(corrected, unit(expected), atol=1e-6)
    one = Classes(("zebra",))
    np.testing.assert_allclose(
        array(make(clip, classes).text_features(one)), array(make(clip, classes).anchors(one)), atol=1e-6
    )


def test_drift_in_testing_only(clip: FrozenCLIP, classes: Classes) -> None:
    method = make(clip, classes, drift="test")
    training, testing = method.train().text_features(classes), method.eval().text_features(classes)
    assert not torch.allclose(training, testing, atol=1e-4)
    assert torch.equal(training, make(clip, classes, drift="off").text_features(classes))


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_prompts_are_products_of_low_rank(
    clip: FrozenCLIP, classes: Classes, rank: int, shared: bool
) -> None:
    method = make(clip, classes, rank=rank, shared=shared)
    prompts = method.prompts()
    assert len(prompts.text) == len(prompts.vision) == 3
    for i, (text, vision) in enumerate(zip(prompts.text, prompts.vision, strict=True)):
        assert text.shape == (4, clip.shape.text_width)
        assert vision.shape == (4, clip.shape.vision_width)
        assert torch.linalg.matrix_rank(text) == torch.linalg.matrix_rank(vision) == rank
        joint = torch.linalg.matrix_rank(torch.cat([text, vision], dim=1))
        assert joint == (rank if shared else min(4, 2 * rank))
        assert torch.equal(text, method.U[i] @ method.V_text[i])


def test_initial_scales(clip: FrozenCLIP, classes: Classes) -> None:
    def spread(init: str, rank: int) -> float:
        prompts = make(clip, classes, init=init, rank=rank, n_ctx=4).prompts()
        return torch.cat([p.flatten() for p in (*prompts.text[1:], *prompts.vision)]).std().item()

    for rank in (1, 4):
        assert spread("matched", rank) == pytest.approx(0.02, rel=0.6)
    assert spread("small", 1) == pytest.approx(4e-4, rel=0.6)


def test_words_start_from_the_best_low_rank_fit(clip: FrozenCLIP, classes: Classes) -> None:
    words = array(clip.embed("a photo of a"))
    left, values, right = np.linalg.svd(words, full_matrices=False)
    for rank in (1, 2, 4):
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        method = make(clip, classes, init="words", rank=rank)
        np.testing.assert_allclose(array(method.prompts().text[0]), best, atol=1e-5)
        assert method.U[0].detach().square().mean(dim=0) == pytest.approx([1.0] * rank, rel=1e-4)


def test_residual_form_starts_at_the_words(clip: FrozenCLIP, classes: Classes) -> None:
    method = make(clip, classes, residual=True)
    assert torch.equal(method.prompts().text[0], clip.embed("a photo of a"))
    assert set(method.state_dict()) == set(make(clip, classes).state_dict())
    method.loss(make_batch(clip, len(classes)), classes).backward()
    assert method.V_text[0].grad.abs().max() > 0


@pytest.mark.parametrize("setting", [{"init": "words"}, {"residual": True}])
def test_words_that_are_not_used_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="init=words and residual need n_ctx tokens of words"):
        resolve_settings(get_method("mmlop"), "base2novel", 16, "a", None, {"n_ctx": 8, **setting})


def test_anchor_of_the_words(clip: FrozenCLIP, classes: Classes) -> None:
    method = make(clip, classes, anchor="words")
    raw = clip.text_features(clip.layout(template_rows(classes.names, "a photo of a {}.")))
    np.testing.assert_allclose(array(method.anchors(classes)), unit(array(raw)), atol=1e-6)


def test_the_templates_are_sixty() -> None:
    assert len(set(GENERIC_60)) == 60
    assert all(t.count("{}") == 1 and t.endswith(".") for t in GENERIC_60)
