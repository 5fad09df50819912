"""Scores that are no numbers never become a result: an argmax of NaN is the first class."""

from pathlib import Path
from typing import Any

import pytest
import torch

from promptbench.clip import backbones
from promptbench.clip.cache import FeatureCache
from promptbench.clip.features import frozen_features
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data import dataset as data
from promptbench.data.views import Views
from promptbench.errors import UserError
from promptbench.methods._registry import get_method
from promptbench.training.device import default_device
from promptbench.training.evaluate import predict
from promptbench.training.loop import create
from tests import plain


def broken(kind: str) -> FrozenCLIP:
    """Weights every one of which is finite."""
    model: Any = plain.tiny_model()
    with torch.no_grad():
        if kind == "scale":
            model.logit_scale.fill_(100.0)
        elif kind == "text overflow":
            model.ln_final.weight *= 1e25
            model.text_projection *= 1e25
        elif kind == "text zero":
            model.text_projection.zero_()
        elif kind == "image overflow":
            model.visual.ln_post.weight *= 1e25
            model.visual.proj *= 1e25
        elif kind == "image zero":
            model.visual.proj.zero_()
    return FrozenCLIP(model, backbones.shape_of(plain.CONFIG))


@pytest.mark.parametrize("kind", ["scale", "text overflow", "image overflow"])
@pytest.mark.parametrize("name", ["zeroshot", "vpt"])
def test_scores_that_are_no_numbers(colours: data.Dataset, kind: str, name: str) -> None:
    clip, method = broken(kind), get_method(name)
    classes = colours.classes()
    made = create(method, clip, method.Settings(), classes, 1)
    with pytest.raises(UserError, match=r"(scores|image features) of .*colours are not finite numbers; "):
        predict(made, colours, classes, colours.items("test"))


@pytest.mark.parametrize("kind", ["text zero", "image zero"])
@pytest.mark.parametrize("name", ["zeroshot", "vpt"])
def test_scores_that_say_nothing(colours: data.Dataset, kind: str, name: str) -> None:
    clip, method = broken(kind), get_method(name)
    made = create(method, clip, method.Settings(), colours.classes(), 1)
    with pytest.raises(UserError, match="are the same for every class of every image"):
        predict(made, colours, colours.classes(), colours.items("test"))


def test_finite_scores_pass(colours: data.Dataset, clip: FrozenCLIP) -> None:
    method = get_method("zeroshot")
    made = create(method, clip, method.Settings(), colours.classes(), 1)
    assert len(predict(made, colours, colours.classes(), colours.items("test"))) == 15


def test_features_that_are_no_numbers_are_not_kept(colours: data.Dataset, tmp_path: Path) -> None:
    clip = broken("image overflow")
    clip.cache = FeatureCache(tmp_path / "features")
    for _ in range(2):
        with pytest.raises(UserError, match="image features of colours are not finite numbers"):
            frozen_features(clip, colours, colours.items("test"), Views(**clip.preprocess), None)
    assert clip.cache.entries() == []


@pytest.mark.parametrize("name", ["meta", "xla", "hpu", "vulkan", "mps", "lazy", "nonsense"])
def test_devices_that_compute_nothing(name: str) -> None:
    with pytest.raises(UserError, match=f"--device {name} names no device of this machine that computes"):
        default_device(name)
