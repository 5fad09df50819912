"""The weights of a backbone, from a tag or a file: an error says what does not fit, and why.

Anything that could make a number silently wrong is refused: a QuickGELU mismatch (open_clip only warns),
a missing, extra or wrongly shaped array, images that must be resized in another way than ours
(`promptbench.data.views`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from promptbench.clip.backbones import (
    backbone_config,
    backbone_shape,
    pocket_folder,
)
from promptbench.clip.weight_files import (
    OPENAI_MARKS,
    from_hugging_face,
    hugging_face_gelu,
    is_hugging_face,
    read_weights,
)
from promptbench.data.cards import POCKET
from promptbench.errors import UserError, unknown
from promptbench.storage import hash_file

_SUFFIXES = (".pt", ".pth", ".safetensors", ".bin")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocessing(name: str, pretrained: str | None) -> dict[str, Any]:
    """``mean``, ``std`` (per channel) and ``size`` (pixels) of the images this backbone expects: those of
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
    """How images are resized for these weights, if not in our way; else empty."""
    resize, interpolation = tag.get("resize_mode") or "shortest", tag.get("interpolation") or "bicubic"
    if resize != "shortest":
        return f"resized by {resize!r}"
    return f"resized with {interpolation} interpolation" if interpolation != "bicubic" else ""


def weights_file(name: str, pretrained: str | None) -> tuple[Path | None, str]:
    """What identifies the weights: a local file, or (None, tag), or (None, "tag=SHA-256 of the file").

    ``pretrained`` is an open_clip tag, a local file, or TAG=FILE: the weights are the file's; mean, std and
    QuickGELU those of the tag, since a file does not tell them. Checks everything short of reading.
    Raises UserError for a missing file, an unknown tag, a tag trained with the other GELU, or on images
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
            f"The weights {tag!r} of {name} were trained on images {reason}, but here the shortest side is "
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
    if OPENAI_MARKS & state.keys():
        _check_gelu(name, bool(config.get("quick_gelu", False)), True, f"{path.name}: OpenAI's weights")
        state = {key: value for key, value in state.items() if key not in OPENAI_MARKS}
    what = path.name
    if is_hugging_face(state):
        what = f"{path.name} (Hugging Face's CLIP layout)"
        if not tag and (quick := hugging_face_gelu(path)) is not None:
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
    problems += [
        f"{key} holds NaN or infinity"
        for key in expected
        if key in state and state[key].shape == expected[key].shape and not state[key].isfinite().all()
    ]
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
