"""Backbones by name and their weights from a tag or a file: an error says what does not fit, and why.

Anything that could make a number silently wrong is refused: a QuickGELU mismatch (open_clip only warns),
a missing, extra or wrongly shaped array, a tower our forward does not reproduce, pictures that must be
brought to size in another way than ours (`promptbench.data.views`).
"""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from promptbench.clip.architectures import native, refusal
from promptbench.data.cards import POCKET
from promptbench.errors import UserError, unknown
from promptbench.storage import hash_file

_OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}  # extra keys of OpenAI's own files
_SUFFIXES = (".pt", ".pth", ".safetensors", ".bin")
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
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


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


def preprocessing(name: str, pretrained: str | None) -> dict[str, Any]:
    """``mean``, ``std`` (per channel) and ``size`` (pixels) of the pictures this backbone expects: those of
    the weights' tag; of a file without a tag, OpenAI's. Raises UserError as `weights_file`."""
    tag = _find(name, pretrained)[1]
    config = _tag_config(name, tag) if tag else {}
    mean, std = (tuple(config.get(key) or usual) for key, usual in (("mean", MEAN), ("std", STD)))
    return {"size": backbone_shape(name).image_size, "mean": mean, "std": std}


def _tag_config(name: str, tag: str) -> dict[str, Any]:
    import open_clip

    return open_clip.get_pretrained_cfg(name, tag)


def fitting_tags(name: str) -> list[str]:
    """The open_clip tags of weights that a backbone can be run with here. Raises UserError as
    `backbone_config`."""
    quick = bool(backbone_config(name).get("quick_gelu", False))
    if name == POCKET:
        return []
    import open_clip

    found = {tag: _tag_config(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    return [
        tag
        for tag, config in found.items()
        if bool(config.get("quick_gelu", False)) == quick and not _other_views(config)
    ]


def _other_views(tag: Mapping[str, Any]) -> str:
    """How the pictures of these weights are brought to size, if not as ours are; else empty."""
    resize, interpolation = tag.get("resize_mode") or "shortest", tag.get("interpolation") or "bicubic"
    if resize != "shortest":
        return f"resized by {resize!r}"
    return f"resized with {interpolation} interpolation" if interpolation != "bicubic" else ""


def weights_file(name: str, pretrained: str | None) -> tuple[Path | None, str]:
    """What identifies the weights: a local file, or (None, tag), or (None, "tag=SHA-256 of the file").

    ``pretrained`` is an open_clip tag, a local file, or TAG=FILE: the weights are the file's; mean, std and
    QuickGELU those of the tag, since a file does not tell them. Checks everything short of reading.
    Raises UserError for a missing file, an unknown tag, a tag trained with the other GELU, or on pictures
    resized in another way than ours.
    """
    path, tag = _find(name, pretrained)
    return (None, f"{tag}={hash_file(path)}") if path and tag else (path, tag)


def weights_identity(name: str, pretrained: str | None) -> str:
    """What a trial says of its weights: SHA-256 of the file, or the tag. Raises UserError as
    `weights_file`."""
    path, tag = weights_file(name, pretrained)
    return hash_file(path) if path else tag


def _find(name: str, pretrained: str | None) -> tuple[Path | None, str]:
    """The local file or None, and the tag or empty; raises UserError as `weights_file`."""
    backbone_config(name)
    if pretrained is None:
        if name == POCKET:
            return pocket_folder() / "pocket.safetensors", ""
        tags = fitting_tags(name)
        example = "openai" if "openai" in tags else tags[0] if tags else ""
        if not example:
            raise UserError(
                f"Backbone {name!r} needs weights and no published ones fit: add `--pretrained "
                "FILE.safetensors`."
            )
        raise UserError(
            f"Backbone {name!r} needs weights: add `--pretrained {example}` (downloads them; other tags "
            "are in `promptbench ls backbones`) or `--pretrained FILE.safetensors`."
        )
    path = Path(pretrained)
    if path.is_file():
        return path, ""
    if path.is_dir() and "/" in pretrained:  # no tag has one
        raise UserError(f"{pretrained} is a folder; give the weights file in it, such as model.safetensors.")
    tag, equals, file = pretrained.partition("=")
    named = bool(equals) and "/" not in tag and name != POCKET
    path = Path(file if named else pretrained)
    if name == POCKET or ((named or path.suffix in _SUFFIXES) and not path.is_file()):
        raise UserError(f"There is no weights file {str(path)!r}; give the path of an existing file.")
    tag = tag if named else pretrained
    _check_tag(name, tag)
    return (path if named else None), tag


def _check_tag(name: str, tag: str) -> None:
    import open_clip

    if tag not in open_clip.list_pretrained_tags_by_model(name):
        hint = "A path of a local file works too."
        raise unknown(f"weights tag for {name}", tag, fitting_tags(name), hint)
    config = _tag_config(name, tag)
    if reason := _other_views(config):
        raise UserError(
            f"The weights {tag!r} of {name} were trained on pictures {reason}, but here the shortest side is "
            "resized (bicubic) and the rest cropped; choose other weights from `promptbench ls backbones`."
        )
    model = bool(backbone_config(name).get("quick_gelu", False))
    _check_gelu(name, model, bool(config.get("quick_gelu", False)), f"the weights {tag!r}")


def _check_gelu(name: str, model: bool, weights: bool, what: str) -> None:
    if model != weights:
        other = name.removesuffix("-quickgelu") if model else f"{name}-quickgelu"
        kind = "QuickGELU" if weights else "plain GELU"
        raise UserError(
            f"QuickGELU mismatch: {what} were trained with {kind} but backbone {name!r} computes the "
            f"other one, which would quietly cost accuracy; use `--backbone {other}`."
        )


def load_model(name: str, pretrained: str | None = None) -> tuple[torch.nn.Module, dict[str, Any], str]:
    """Build an open_clip CLIP in fp32 with its weights: (model, configuration, SHA-256 of the weights file).

    Raises UserError if anything about the weights does not fit (`weights_file`, `read_weights`,
    `build_model` say what).
    """
    path, tag = _find(name, pretrained)
    config = backbone_config(name)
    if path is None:
        import open_clip.pretrained

        try:
            path = Path(open_clip.pretrained.download_pretrained(open_clip.get_pretrained_cfg(name, tag)))
        except Exception as error:
            raise UserError(
                f"Could not download the weights {tag!r} of {name} ({type(error).__name__}); fetch the file "
                f"on a machine with a network and pass it with `--pretrained {tag}=FILE`."
            ) from None
    state = read_weights(path)
    if _OPENAI_MARKS & state.keys():
        _check_gelu(name, bool(config.get("quick_gelu", False)), True, f"{path.name}: OpenAI's weights")
        state = {key: value for key, value in state.items() if key not in _OPENAI_MARKS}
    what = path.name
    if _is_hugging_face(state):
        what = f"{path.name} (Hugging Face's CLIP layout)"
        if not tag and (quick := _hugging_face_gelu(path)) is not None:
            _check_gelu(name, bool(config.get("quick_gelu", False)), quick, f"{what}: these weights")
        state = from_hugging_face(state)
    return build_model(config, state, what), config, hash_file(path)


def untrained_model(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """An open_clip CLIP in fp32 with open_clip's random initial weights, and its configuration."""
    config = backbone_config(name)
    return _new_model(config), config


def _new_model(config: Mapping[str, Any]) -> torch.nn.Module:
    from open_clip.model import CLIP

    keys = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    with torch.random.fork_rng(devices=[]):  # open_clip draws initial weights; nobody else should notice
        return CLIP(**{key: config[key] for key in keys if key in config})


def build_model(config: Mapping[str, Any], state: Mapping[str, torch.Tensor], what: str) -> torch.nn.Module:
    """An open_clip CLIP in fp32 holding exactly ``state``.

    A pruned token table (``token_embedding.ids`` [n] and ``.rows`` [n, d]) is unfolded; tokens outside
    it get a zero row. Raises UserError naming missing, unexpected or wrongly shaped arrays of ``what``.
    """
    state = dict(state)
    if "token_embedding.ids" in state and "token_embedding.rows" in state:
        ids, rows = state.pop("token_embedding.ids").long(), state.pop("token_embedding.rows")
        vocabulary = config["text_cfg"].get("vocab_size", 49408)
        if len(ids) != len(rows) or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary):
            raise UserError(f"{what} does not fit: its token ids and rows disagree; get the file again.")
        state["token_embedding.weight"] = torch.zeros(vocabulary, rows.shape[1]).index_copy_(
            0, ids, rows.float()
        )
    model = _new_model(config)
    expected = model.state_dict()
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} is {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems += [f"{key} holds NaN or infinity" for key, value in state.items() if not value.isfinite().all()]
    scale = state.get("logit_scale", torch.zeros(()))
    if scale.isfinite().all() and not scale.float().exp().isfinite().all():
        problems.append("logit_scale is no logarithm: exp() of it is infinite")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{what} does not fit this backbone: {', '.join(problems[:3])}{more}; "
            "check that --backbone names the architecture the file was trained for."
        )
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The arrays of a weights file: safetensors, a ``.pt`` state dict (alone or in a checkpoint), or OpenAI's
    TorchScript archive; without the prefixes of wrappers such as DataParallel and torch.compile.

    No code from the file is ever run: ``.pt`` goes through torch's weights_only reader, TorchScript
    archives through a reader of our own that knows tensors and nothing else.
    Raises UserError if the file is truncated, not a weights file, or not safe to read.
    """
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


def _is_hugging_face(state: Mapping[str, torch.Tensor]) -> bool:
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


def _hugging_face_gelu(path: Path) -> bool | None:
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
            elif not prefix and name in _OPENAI_MARKS:
                found[name] = torch.tensor(value)

    walk(top, "")
    return found
