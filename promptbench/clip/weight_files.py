"""Reading weights files: safetensors, state dicts and TorchScript archives, in open_clip's or Hugging Face's
names. No code from a file is ever run."""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from promptbench.errors import UserError

OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}  # extra keys of OpenAI's own files
_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
#: keys under which checkpoints keep the state dict, and prefixes that wrappers put before its names
_NESTED = ("state_dict", "model_state_dict", "model", "module")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "clip_model.", "clip.")
#: parts of names in Hugging Face's CLIPModel and in open_clip's CLIP (transformers: models/clip/
#: convert_clip_original_pytorch_to_hf.py, read backwards); "pre_layrnorm" is theirs
_HUGGING_FACE = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".self_attn.", ".attn."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The arrays of a weights file: safetensors, a ``.pt`` state dict (alone or in a checkpoint), or OpenAI's
    TorchScript archive; without the prefixes of wrappers such as DataParallel and torch.compile.

    No code from the file is ever run: ``.pt`` goes through torch's weights_only reader, TorchScript
    archives through a reader of our own that knows tensors and nothing else.
    Raises UserError if the file is truncated, not a weights file, not safe to read, or claims arrays larger
    than what it holds.
    """
    state = _read(path)
    for key, value in state.items():
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {key} is larger than what the file holds; get it again.")
    return state


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return _unwrapped(load_file(path))
        if _is_torchscript(path):
            return _read_torchscript(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is not a weights file, or holds more than a state dict and is not unpickled, since that "
            "could run code; get it again or save it as safetensors."
        ) from None
    except Exception as error:
        raise UserError(
            f"Cannot read the weights in {path} ({type(error).__name__}): the file is truncated or not a "
            "weights file; get it again."
        ) from None
    for _ in range(3):  # a checkpoint's state dict may lie in a checkpoint
        inner = [state[key] for key in _NESTED if key in state] if isinstance(state, Mapping) else []
        state = next((one for one in inner if isinstance(one, Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(
            f"{path} holds no state dict of tensors; save the model's state_dict() as safetensors."
        )
    return _unwrapped({str(key): value for key, value in state.items()})


def _unwrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arrays without what wrappers put before all of their names, such as "module." and "_orig_mod."."""
    for prefix in _WRAPPERS:
        if state and all(key.startswith(prefix) for key in state):
            return _unwrapped({key.removeprefix(prefix): value for key, value in state.items()})
    return state


def is_hugging_face(state: Mapping[str, torch.Tensor]) -> bool:
    return any(key.startswith(("text_model.", "vision_model.")) for key in state)


def from_hugging_face(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Arrays of Hugging Face's CLIPModel under open_clip's names: queries, keys and values in one array,
    projections transposed, position numbers left out. What has no place there keeps its name."""
    found = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    for part in ("weight", "bias"):
        for key in [one for one in found if one.endswith(f"self_attn.q_proj.{part}")]:
            three = [key.replace("q_proj", f"{kind}_proj") for kind in "qkv"]
            if all(one in found for one in three):
                joined = torch.cat([found.pop(one) for one in three])
                found[key.replace("self_attn.q_proj.", "self_attn.in_proj_")] = joined
    renamed = {}
    for key, value in found.items():
        transposed = key in ("text_projection.weight", "visual_projection.weight") and value.ndim == 2
        for theirs, ours in _HUGGING_FACE:
            key = key.replace(theirs, ours)
        renamed[key] = value.t().contiguous() if transposed else value
    return renamed


def hugging_face_gelu(path: Path) -> bool | None:
    """Whether the weights file beside a ``config.json`` of Hugging Face's CLIP was trained with QuickGELU;
    None where nothing tells."""
    try:
        config = json.loads((path.parent / "config.json").read_text("utf-8"))
        towers = [config[tower].get("hidden_act", "quick_gelu") for tower in ("text_config", "vision_config")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return "quick_gelu" in towers


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Node:
    """Stands for any TorchScript module object: only its attributes are kept."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a TorchScript archive such as OpenAI's ViT-B-16.pt, without its code."""
    with zipfile.ZipFile(path) as archive:
        root = next(n for n in archive.namelist() if n.endswith("/data.pkl")).removesuffix("data.pkl")

        class Reader(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if module.startswith("__torch__"):
                    return _Node
                if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                    return lambda flat, offset, size, stride, *_: flat.as_strided(size, stride, offset)
                if (module, name) == ("collections", "OrderedDict"):
                    return OrderedDict
                if module == "torch" and name in _STORAGES:
                    return _STORAGES[name]
                if module == "torch.jit._pickle":  # typed lists of ints, tensors, ...
                    return lambda value: value
                raise pickle.UnpicklingError(f"{module}.{name}")

            def persistent_load(self, pid: Any) -> Any:
                _, dtype, key, _, _ = pid
                return torch.frombuffer(bytearray(archive.read(f"{root}data/{key}")), dtype=dtype)

        top = Reader(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
    found: dict[str, torch.Tensor] = {}

    def walk(node: _Node, prefix: str) -> None:
        for name, value in vars(node).items():
            if isinstance(value, _Node):
                walk(value, f"{prefix}{name}.")
            elif isinstance(value, torch.Tensor) and name != "attn_mask":  # a constant, not a weight
                found[prefix + name] = value
            elif not prefix and name in OPENAI_MARKS:
                found[name] = torch.tensor(value)

    walk(top, "")
    return found
