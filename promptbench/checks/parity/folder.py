"""Folders of official outputs: ``cases.json``, frozen weights, inputs and arrays."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptbench.clip import backbones, weight_files, weights
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.errors import UserError

FROZEN = "frozen_clip.safetensors"
IDS, ROWS = "token_embedding.ids", "token_embedding.rows"


class Folder:
    """Reads the files of a folder, each frozen CLIP once. Raises UserError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.settings: dict[str, Any] = json.loads((path / "cases.json").read_text())
            if not all(isinstance(case, dict) for case in self.settings["cases"].values()):
                raise ValueError("cases must map names to settings")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"Cannot read {path / 'cases.json'} ({error}); give a folder of goldens."
            ) from None
        self.cases: dict[str, dict[str, Any]] = self.settings["cases"]
        self._clips: dict[tuple[str, ...], FrozenCLIP] = {}

    def read(self, name: str) -> dict[str, Tensor]:
        """The arrays of one file."""
        return weight_files.read_weights(self.path / name)

    def clip(self, files: tuple[str, ...] = ()) -> FrozenCLIP:
        """The frozen CLIP of some files, the first whole, the others with further rows of the vocabulary.

        By default that of `FROZEN` with the rows of all files that hold nothing else.
        """
        if files not in self._clips:
            first, *others = (self.read(name) for name in files or (FROZEN,))
            if not files:
                paths = sorted(self.path.glob("frozen_clip_*.safetensors"))
                others = [more for path in paths if (more := self.read(path.name)).keys() == {IDS, ROWS}]
            for more in others:
                for key in (IDS, ROWS):
                    first[key] = torch.cat([first[key], more[key]])
            self._clips[files] = build_clip(first)
        return self._clips[files]

    def images(self, stem: str) -> Tensor:
        """The images behind a zero-shot file: ``inputs_<X>`` of ``zeroshot_..._<X>``, if there is one."""
        named = self.path / f"inputs_{stem.rsplit('_', 1)[-1]}.safetensors"
        path = named if named.exists() else sorted(self.path.glob("inputs_*.safetensors"))[0]
        return self.read(path.name)["images"]


def build_clip(state: Mapping[str, Tensor]) -> FrozenCLIP:
    """The frozen CLIP of a state dict, its sizes read from its arrays."""
    width, patches = state["visual.conv1.weight"].shape[0], len(state["visual.positional_embedding"]) - 1
    patch, text_width = state["visual.conv1.weight"].shape[-1], state["ln_final.weight"].shape[0]

    def layers(prefix: str) -> int:
        return len({key.split(".resblocks.")[1].split(".")[0] for key in state if key.startswith(prefix)})

    config = {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "width": width,
            "layers": layers("visual.transformer.resblocks."),
            "patch_size": patch,
            "image_size": round(patches**0.5) * patch,
            "head_width": 64,
        },
        "text_cfg": {
            "width": text_width,
            "layers": layers("transformer.resblocks."),
            "heads": text_width // 64,
            "context_length": len(state["positional_embedding"]),
        },
    }
    return FrozenCLIP(weights.build_model(config, dict(state), FROZEN), backbones.shape_of(config))
