"""MaPLe: deep text prompts, and vision prompts that are linear maps of them."""

from copy import deepcopy
from typing import Any

from pydantic import Field
from torch import nn

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.data.classnames import Classes
from promptbench.methods._base import Method, deep_prompts
from promptbench.methods._settings import Count, Positive, PromptSettings, Rate


class MaPLeSettings(PromptSettings):
    lr: Rate = 0.0035
    epochs: Count = 5
    batch_size: Positive = 4
    n_ctx: Positive = Field(2, description="context tokens, in both towers")
    depth: Positive = Field(9, description="layers with prompts, the input counted")


class MaPLe(Method):
    """Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023.

    Text prompts P_1..P_J (n x d_t) are learned; the vision prompts are V_i = F_i(P_i) with a linear map
    d_t -> d_v per layer, so gradients couple the towers. F_i sees the raw tokens, without positional
    embedding. Loss = cross-entropy. With n = 2 and "a photo of a" the prompt reads
    ``[p1][p2] of a <class>.``: the last two words stay frozen text.

    Trainable parameters: J * n * d_t + J * (d_t * d_v + d_v)   (ViT-B/16, n = 2, J = 9: 3,555,072).

    Initialisation (muzairkhattak/multimodal-prompt-learning: trainers/maple.py): P_1 from the words, the
    rest N(0, 0.02); F_1 PyTorch's default, F_2..F_J copies of one further such map.
    Settings: base2novel depth 9, lr 0.0035, 5 epochs; crossdataset and domain depth 3, lr 0.0026,
    2 epochs. Few-shot settings were never released; ours are those of base2novel with 50 epochs.
    """

    name = "maple"
    paper = "arXiv:2210.03117"
    published_name = "MaPLe"
    trains = frozenset({"text", "vision"})
    Settings = MaPLeSettings
    settings: MaPLeSettings

    def __init__(self, clip: FrozenCLIP, settings: MaPLeSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        width, s = clip.shape.text_width, settings
        first = self.initial_context(s.n_ctx, s.ctx_init)
        self.text = nn.ParameterList([first, *deep_prompts(s.depth - 1, s.n_ctx, width)])
        maps = [nn.Linear(width, clip.shape.vision_width) for _ in range(2)]
        self.couple = nn.ModuleList([maps[0], *(deepcopy(maps[1]) for _ in range(s.depth - 1))])

    @classmethod
    def paper_settings(cls, benchmark: str, shots: int, dataset: str) -> dict[str, Any]:
        if benchmark in ("crossdataset", "domain"):
            return {"depth": 3, "lr": 0.0026, "epochs": 2}
        return {"epochs": 50} if benchmark == "fewshot" else {}

    @classmethod
    def parameter_count(cls, settings: MaPLeSettings, shape: Shape, n_classes: int) -> int:
        coupling = shape.text_width * shape.vision_width + shape.vision_width
        return settings.depth * (settings.n_ctx * shape.text_width + coupling)

    def prompts(self) -> Prompts:
        return Prompts(list(self.text), [f(p) for f, p in zip(self.couple, self.text, strict=True)])
