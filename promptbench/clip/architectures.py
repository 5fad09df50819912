"""Which of open_clip's architectures can be prompted here, read from its configuration files.

Without torch, which `import open_clip` would load: the shell completes these names.
"""

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def native() -> list[str]:
    """The names of all architectures that can be prompted, in the order of `open_clip.list_models`."""
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    files = (Path(spec.origin).parent / "model_configs").glob("*.json")
    found = {file.stem: json.loads(file.read_text("utf-8")) for file in files}
    kept = [
        name
        for name, config in found.items()
        if {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys() and not refusal(config)
    ]
    return sorted(
        kept, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name.lower())]
    )


def refusal(config: Mapping[str, Any]) -> str:
    """Why our forward cannot run this architecture; empty if it can."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    for reason, found in {
        "its vision tower is a timm model": "timm_model_name" in vision,
        "its vision tower is a ResNet, which has no tokens to prompt": isinstance(vision["layers"], list)
        if "layers" in vision
        else False,
        "its text tower is a Hugging Face model": "hf_model_name" in text,
        "its text tower uses another tokenizer": "hf_tokenizer_name" in text,
        "it is a CoCa or custom-text model": "multimodal_cfg" in config or config.get("custom_text"),
        "its vision tower does not read out the class token": vision.get("pool_type", "tok") != "tok"
        or vision.get("attentional_pool")
        or vision.get("no_ln_pre"),
        "its text tower does not read out the end token": text.get("pool_type", "argmax") != "argmax"
        or text.get("embed_cls")
        or text.get("proj_bias")
        or text.get("proj_type", "linear") != "linear",
        "its text attention is not causal": text.get("no_causal_mask"),
        "its blocks are not CLIP's": any(
            tower.get(key)
            for tower in (vision, text)
            for key in (
                "block_type",
                "qk_norm",
                "scaled_cosine_attn",
                "scale_heads",
                "scale_attn",
                "scale_fc",
            )
        ),
    }.items():
        if found:
            return reason
    return ""
