"""Loading weights: what does not fit is refused, with what and why; nothing in a file is ever executed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from promptbench.clip import backbones, weight_files, weights
from promptbench.errors import UserError
from promptbench.storage import hash_file
from tests import plain

State = dict[str, torch.Tensor]


@pytest.fixture
def state(tiny: nn.Module) -> State:
    return {key: value.clone() for key, value in tiny.state_dict().items()}


def build(state: State) -> nn.Module:
    return weights.build_model(plain.CONFIG, state, "w.safetensors")


def test_exact_state_loads(state: State) -> None:
    for key, value in build(state).state_dict().items():
        assert torch.equal(value, state[key])


def test_half_precision_becomes_fp32(state: State) -> None:
    model = build({key: value.half() for key, value in state.items()})
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_missing_key_is_named(state: State) -> None:
    del state["visual.proj"]
    with pytest.raises(UserError, match=r"missing visual\.proj"):
        build(state)


def test_unexpected_key_is_named(state: State) -> None:
    with pytest.raises(UserError, match="unexpected logit_bias"):
        build(state | {"logit_bias": torch.zeros(1)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(state: State, value: float) -> None:
    state["visual.proj"][0, 0] = value
    with pytest.raises(UserError, match=r"visual\.proj holds NaN or infinity"):
        build(state)


def test_wrong_shape_is_named(state: State) -> None:
    state["text_projection"] = torch.zeros(64, 48)
    with pytest.raises(UserError, match=r"text_projection is \[64, 48\] instead of \[64, 32\]"):
        build(state)


def test_pruned_token_table(state: State) -> None:
    table = state.pop("token_embedding.weight")
    ids = torch.tensor([5, 49407, 320])
    model = build(state | {"token_embedding.ids": ids, "token_embedding.rows": table[ids].half()})
    loaded: Any = model.token_embedding.weight  # type: ignore[union-attr]
    assert torch.equal(loaded[ids], table[ids].half().float())
    assert loaded.count_nonzero() == 3 * 64


@pytest.mark.parametrize("ids", [[5, 49408, 7], [5, 6]])
def test_pruned_table_that_disagrees(state: State, ids: list[int]) -> None:
    state.pop("token_embedding.weight")
    with pytest.raises(UserError, match="token ids and rows disagree"):
        build(state | {"token_embedding.ids": torch.tensor(ids), "token_embedding.rows": torch.zeros(3, 64)})


def test_openai_weights_need_quick_gelu(tmp_path: Path) -> None:
    """OpenAI's own files carry three extra keys by which they are known."""
    path = tmp_path / "openai.safetensors"
    save_file({"input_resolution": torch.tensor(224), "x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"QuickGELU mismatch.*--backbone ViT-B-16-quickgelu"):
        weights.load_model("ViT-B-16", str(path))


def test_tag_trained_with_the_other_gelu() -> None:
    with pytest.raises(UserError, match=r"QuickGELU mismatch.*--backbone ViT-B-16-quickgelu"):
        weights.weights_file("ViT-B-16", "openai")
    with pytest.raises(UserError, match=r"QuickGELU mismatch.*--backbone ViT-B-16\b"):
        weights._check_gelu("ViT-B-16-quickgelu", True, False, "these weights")
    assert weights.weights_file("ViT-B-16-quickgelu", "openai") == (None, "openai")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_file(tmp_path: Path, state: State, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="truncated or not a weights file"):
        weight_files.read_weights(path)


def test_pt_state_dict_and_checkpoint(tmp_path: Path, state: State) -> None:
    for name, content in (
        ("plain", state),
        ("checkpoint", {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
        read = weight_files.read_weights(tmp_path / f"{name}.pt")
        assert read.keys() == state.keys()
        assert all(torch.equal(read[k], state[k]) for k in state)


class _Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("echo this must never run",)


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"x": _Bomb()}, path)
    with pytest.raises(UserError, match="could run code"):
        weight_files.read_weights(path)


class _Traced(nn.Module):
    """As OpenAI's archives: an image and a text forward, and three integer buffers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        this: Any = self
        rows = this.ln_final(this.transformer(this.token_embedding.weight[:5][None])) @ this.text_projection
        total = rows.sum() + this.positional_embedding.sum() + this.input_resolution
        return this.visual(images) * this.logit_scale + total


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated; OpenAI's files are traced all the same
def test_torchscript_archive_is_read_without_running_it(tmp_path: Path, tiny: nn.Module) -> None:
    path = tmp_path / "ViT.pt"
    traced = torch.jit.trace(_Traced(tiny), torch.zeros(1, 3, 32, 32), check_trace=False)
    traced.save(str(path))
    read = weight_files.read_weights(path)
    expected = traced.state_dict()
    for key in tiny.state_dict():
        assert torch.equal(read[key], expected[key]), key
    assert read["input_resolution"] == 32
    # Why a reader of our own is needed:
    with pytest.raises(RuntimeError, match="TorchScript"), pytest.warns(UserWarning, match="TorchScript"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-61", r"Unknown backbone 'ViT-B-61'\. Did you mean"),
        ("RN50", "ResNet, which has no tokens"),
        ("coca_ViT-B-32", "CoCa"),
        ("ViT-B-16-SigLIP", "timm"),
        ("ViT-L-14-CLIPA", "class token|causal|tokenizer"),
    ],
)
def test_backbones_that_cannot_be_prompted(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        backbones.backbone_config(name)


def test_weights_that_are_not_there() -> None:
    with pytest.raises(UserError, match="needs weights: add `--pretrained openai`"):
        weights.weights_file("ViT-B-16-quickgelu", None)
    with pytest.raises(UserError, match=r"no weights file 'nowhere\.safetensors'"):
        weights.weights_file("ViT-B-16-quickgelu", "nowhere.safetensors")
    with pytest.raises(UserError, match=r"Unknown weights tag .* 'opnai'\. Did you mean 'openai'"):
        weights.weights_file("ViT-B-16-quickgelu", "opnai")


def test_shapes_of_the_paper() -> None:
    shape = backbones.backbone_shape("ViT-B-16-quickgelu")
    assert (shape.text_width, shape.vision_width, shape.embed_dim) == (512, 768, 512)
    assert (shape.text_layers, shape.vision_layers, shape.context_length) == (12, 12, 77)


@pytest.mark.parametrize("name", ["hf-hub:timm/ViT-B-16", "local-dir:/nowhere"])
def test_places_are_no_backbones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise AssertionError("open_clip was asked for a place")

    monkeypatch.setattr("open_clip.get_model_config", reached)
    with pytest.raises(UserError, match="Unknown backbone"):
        backbones.backbone_config(name)


def test_advice_names_weights_that_fit() -> None:
    assert "openai" not in weights.fitting_tags("ViT-B-16")
    assert "laion2b_s32b_b79k" in weights.fitting_tags("ViT-H-14")
    assert weights.fitting_tags("ViT-H-14-quickgelu") == ["metaclip_fullcc"]
    with pytest.raises(UserError, match="add `--pretrained laion2b_s32b_b79k`"):
        weights.weights_file("ViT-H-14", None)
    with pytest.raises(UserError, match=r"no published ones fit: add `--pretrained FILE\.safetensors`\.$"):
        weights.weights_file("ViT-S-16", None)


@pytest.mark.parametrize("name", ["ViT-H-14", "ViT-H-14-quickgelu", "ViT-H-14-378-quickgelu"])
def test_weights_of_squashed_pictures(name: str) -> None:
    with pytest.raises(UserError, match=r"'dfn5b' of .* trained on images resized by 'squash'"):
        weights.weights_file(name, "dfn5b")


def test_weights_of_another_interpolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_tag_config", lambda *_: {"interpolation": "bilinear"})
    with pytest.raises(UserError, match="resized with bilinear interpolation"):
        weights.weights_file("ViT-B-16", "laion400m_e31")


def test_tag_of_a_file(tmp_path: Path) -> None:
    """The tag says how pictures are normalised, and so makes another trial of the same file."""
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    given = f"laion2b_s32b_b82k={path}"
    assert weights.preprocessing("ViT-L-14", str(path))["mean"] == weights.MEAN
    found = weights.preprocessing("ViT-L-14", given)
    assert (found["mean"], found["std"]) == ((0.5,) * 3, (0.5,) * 3)
    assert weights.weights_file("ViT-L-14", str(path)) == (path, "")
    assert weights.weights_file("ViT-L-14", given) == (None, f"laion2b_s32b_b82k={hash_file(path)}")
    with pytest.raises(UserError, match=r"w\.safetensors does not fit this backbone"):  # the file is read
        weights.load_model("ViT-B-16-quickgelu", f"openai={path}")
    with pytest.raises(UserError, match="QuickGELU mismatch"):
        weights.weights_file("ViT-L-14", f"openai={path}")
    with pytest.raises(UserError, match=r"Unknown weights tag .* 'laion3b'"):
        weights.weights_file("ViT-L-14", f"laion3b={path}")
    with pytest.raises(UserError, match=r"no weights file 'gone\.pt'"):
        weights.weights_file("ViT-L-14", "laion2b_s32b_b82k=gone.pt")


def hugging_face(state: State) -> State:
    """The arrays as Hugging Face's CLIPModel names and lays them out, written out the other way round."""
    found = {"logit_scale": state["logit_scale"]}
    for tower, ours in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
        found[f"{tower}.embeddings.position_ids"] = torch.arange(77)[None]
        for layer in range(4):
            theirs, mine = f"{tower}.encoder.layers.{layer}", f"{ours}.resblocks.{layer}"
            for part in ("weight", "bias"):
                joined = state[f"{mine}.attn.in_proj_{part}"]
                width = len(joined) // 3
                for number, kind in enumerate("qkv"):
                    rows = joined[number * width : (number + 1) * width].clone()
                    found[f"{theirs}.self_attn.{kind}_proj.{part}"] = rows
                found[f"{theirs}.self_attn.out_proj.{part}"] = state[f"{mine}.attn.out_proj.{part}"]
                found[f"{theirs}.layer_norm1.{part}"] = state[f"{mine}.ln_1.{part}"]
                found[f"{theirs}.layer_norm2.{part}"] = state[f"{mine}.ln_2.{part}"]
                found[f"{theirs}.mlp.fc1.{part}"] = state[f"{mine}.mlp.c_fc.{part}"]
                found[f"{theirs}.mlp.fc2.{part}"] = state[f"{mine}.mlp.c_proj.{part}"]
    for part in ("weight", "bias"):
        found[f"text_model.final_layer_norm.{part}"] = state[f"ln_final.{part}"]
        found[f"vision_model.pre_layrnorm.{part}"] = state[f"visual.ln_pre.{part}"]
        found[f"vision_model.post_layernorm.{part}"] = state[f"visual.ln_post.{part}"]
    found["text_model.embeddings.token_embedding.weight"] = state["token_embedding.weight"]
    found["text_model.embeddings.position_embedding.weight"] = state["positional_embedding"]
    found["vision_model.embeddings.class_embedding"] = state["visual.class_embedding"]
    found["vision_model.embeddings.patch_embedding.weight"] = state["visual.conv1.weight"]
    found["vision_model.embeddings.position_embedding.weight"] = state["visual.positional_embedding"]
    found["text_projection.weight"] = state["text_projection"].T.contiguous()
    found["visual_projection.weight"] = state["visual.proj"].T.contiguous()
    return found


def test_hugging_faces_layout(
    tmp_path: Path, state: State, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "backbone_config", lambda name: plain.CONFIG)
    theirs = hugging_face(dict(tiny.state_dict()))
    path = tmp_path / "model.safetensors"
    save_file(theirs, path)
    model, _, _ = weights.load_model("tiny", str(path))
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    del theirs["vision_model.encoder.layers.2.self_attn.k_proj.bias"]
    save_file(theirs, path)
    with pytest.raises(UserError, match=r"\(Hugging Face's CLIP layout\) does not fit .*missing visual"):
        weights.load_model("tiny", str(path))
    (tmp_path / "config.json").write_text(
        '{"text_config": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "gelu"}}'
    )
    with pytest.raises(UserError, match=r"QuickGELU mismatch: .* were trained with plain GELU"):
        weights.load_model("tiny", str(path))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "clip_model."])
def test_names_without_those_of_wrappers(tmp_path: Path, prefix: str, suffix: str) -> None:
    state, path = {"visual.proj": torch.ones(2), "logit_scale": torch.ones(())}, tmp_path / f"w{suffix}"
    wrapped = {prefix + key: value for key, value in state.items()}
    save_file(wrapped, path) if suffix == ".safetensors" else torch.save(wrapped, path)
    assert weight_files.read_weights(path).keys() == state.keys()


@pytest.mark.parametrize(
    "keys", [("model",), ("state_dict",), ("model_state_dict",), ("model", "state_dict")]
)
def test_checkpoints_of_checkpoints(tmp_path: Path, keys: tuple[str, ...]) -> None:
    content: Any = {"visual.proj": torch.ones(2)}
    for key in reversed(keys):
        content = {"epoch": 3, key: content}
    torch.save(content, tmp_path / "w.pt")
    assert list(weight_files.read_weights(tmp_path / "w.pt")) == ["visual.proj"]


def test_one_name_with_a_prefix_is_none_of_a_wrapper(tmp_path: Path) -> None:
    torch.save({"model.x": torch.ones(1), "y": torch.ones(1)}, tmp_path / "w.pt")
    assert list(weight_files.read_weights(tmp_path / "w.pt")) == ["model.x", "y"]


def test_a_scale_that_is_no_logarithm(state: State) -> None:
    with pytest.raises(UserError, match="logit_scale is no logarithm"):
        build(state | {"logit_scale": torch.tensor(100.0)})


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; give the weights file in it"):
        weights.weights_file("ViT-B-16-quickgelu", str(tmp_path))


def test_arrays_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    """A view of stride 0: a file of a kilobyte that claims terabytes."""
    torch.save({"x": torch.zeros(1).expand(10**12)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="x is larger than what the file holds"):
        weight_files.read_weights(tmp_path / "w.pt")
