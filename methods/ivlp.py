"""IVLP: independent deep prompts in both towers."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from promptbench.clip import FrozenCLIP, Prompts
from promptbench.method import Count, Method, Positive, PromptSettings, Rate, deep_prompts
from promptbench.names import Classes
from promptbench.weights import Shape


class IVLPSettings(PromptSettings):
    lr: Rate = 0.0025
    epochs: Count = 20
    batch_size: Positive = 4
    n_ctx_vision: Count = Field(4, description="vision prompt tokens")
    depth_text: Positive = Field(9, description="layers with text prompts, the input counted")
    depth_vision: Positive = Field(9, description="layers with vision prompts, the input counted")


class IVLP(Method):
    """Independent vision-language prompting: the baseline of MaPLe, PromptSRC and MMLoP.

    Text tokens P_1..P_J (n_t x d_t) and vision tokens V_1..V_J (n_v x d_v), one set per layer, nothing
    shared; loss = cross-entropy. Text P_1 starts from "a photo of a", everything else N(0, 0.02).

    Trainable parameters: J_t * n_t * d_t + J_v * n_v * d_v
    (ViT-B/16, 4 + 4 tokens, depth 9: 46,080).

    Two settings are published: 4 + 4 tokens, depth 9, lr 0.0025, 20 epochs (muzairkhattak/PromptSRC:
    trainers/independentVL.py; the default here and the baseline of MMLoP's ablation), and 2 + 2 tokens,
    depth 12, lr 0.0035, 5 epochs (muzairkhattak/multimodal-prompt-learning). Transfer from ImageNet
    (crossdataset, domain) uses depth 3, few-shot 50 epochs, as PromptSRC does [our reading: no IVLP
    settings are released for them].
    """

    name = "ivlp"
    paper = "arXiv:2210.03117"
    published_name = "IVLP"
    trains = frozenset({"text", "vision"})
    formula = "J_t n_t d_t + J_v n_v d_v"
    Settings = IVLPSettings
    official_name = "IVLP"

    def __init__(self, clip: FrozenCLIP, settings: IVLPSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        s = settings
        first = [self.initial_context(s.n_ctx, s.ctx_init)] if s.n_ctx else []
        deeper = deep_prompts((s.depth_text - 1) if s.n_ctx else 0, s.n_ctx, clip.shape.text_width)
        self.text = nn.ParameterList([*first, *deeper])
        self.vision = deep_prompts(
            s.depth_vision if s.n_ctx_vision else 0, s.n_ctx_vision, clip.shape.vision_width
        )

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        if benchmark in ("crossdataset", "domain"):
            return {"depth_text": 3, "depth_vision": 3}
        return {"epochs": 50} if benchmark == "fewshot" else {}

    @classmethod
    def parameter_count(cls, settings: IVLPSettings, shape: Shape, n_classes: int) -> int:
        text = settings.depth_text * settings.n_ctx * shape.text_width
        return text + settings.depth_vision * settings.n_ctx_vision * shape.vision_width

    def prompts(self) -> Prompts:
        return Prompts(list(self.text), list(self.vision))

    @classmethod
    def official_settings(cls, case: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "n_ctx": case["n_ctx_text"] if case["depth_text"] else 0,
            "n_ctx_vision": case["n_ctx_vision"] if case["depth_vision"] else 0,
            "depth_text": case["depth_text"] or 1,
            "depth_vision": case["depth_vision"] or 1,
            "ctx_init": case["ctx_init"],
        }

    def official_parameter(self, name: str) -> str:
        tower, layer = name.split(".")
        if layer == "0":
            return {"text": "prompt_learner.ctx", "vision": "image_encoder.VPT"}[tower]
        encoder = {"text": "text_encoder", "vision": "image_encoder"}[tower]
        return f"{encoder}.transformer.resblocks.{layer}.VPT_shallow"
