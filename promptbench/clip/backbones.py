"""Backbones by name: their configuration and sizes, and which of open_clip's our forward can run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from promptbench.clip.architectures import native, refusal
from promptbench.data.cards import POCKET
from promptbench.errors import UserError, unknown


@dataclass(frozen=True)
class Shape:
    """Sizes of a backbone, read from its configuration: enough to count a method's parameters."""

    embed_dim: int
    text_width: int
    text_layers: int
    context_length: int
    vision_width: int
    vision_layers: int
    image_size: int
    patch_size: int = 16
    vocabulary: int = 49408


def pocket_folder() -> Path:
    """Where the embedded backbone lies inside the installed package."""
    return Path(str(resources.files("promptbench.datasets"))) / "pocket" / "backbone"


def backbones() -> list[str]:
    """Names accepted by ``--backbone``: the embedded one and every native open_clip ViT we can run."""
    return [POCKET, *native()]


@cache
def _open_clip_config(name: str) -> dict[str, Any]:
    import open_clip

    # Other names, such as "hf-hub:...", open_clip would look for on the network or on the disk.
    return (open_clip.get_model_config(name) or {}) if name in open_clip.list_models() else {}


def backbone_config(name: str) -> dict[str, Any]:
    """The open_clip model configuration of a backbone. Raises UserError if unknown or not supported."""
    if name == POCKET:
        return json.loads((pocket_folder() / "pocket.json").read_text())["model_cfg"]
    config = _open_clip_config(name)
    if not config:
        raise unknown("backbone", name, backbones(), "See `promptbench ls backbones`.")
    if reason := refusal(config):
        raise UserError(
            f"Backbone {name!r} cannot be prompted here: {reason}; choose a native CLIP ViT from "
            f"`promptbench ls backbones`."
        )
    return config


def backbone_shape(name: str) -> Shape:
    """Sizes of a backbone without loading weights. Raises UserError as `backbone_config`."""
    return shape_of(backbone_config(name))


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Sizes from an open_clip model configuration."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    return Shape(
        embed_dim=config["embed_dim"],
        text_width=text.get("width", 512),
        text_layers=text.get("layers", 12),
        context_length=text.get("context_length", 77),
        vision_width=vision["width"],
        vision_layers=vision["layers"],
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 16),
        vocabulary=text.get("vocab_size", 49408),
    )
