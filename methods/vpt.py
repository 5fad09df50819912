"""VPT: prompts in the vision tower only, shallow or deep."""

from pydantic import Field

from promptbench.clip.backbones import Shape
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.data.classnames import Classes
from promptbench.methods._base import Method, deep_prompts
from promptbench.methods._settings import Count, Positive, Rate, Settings
from promptbench.methods._templates import PLAIN


class VPTSettings(Settings):
    lr: Rate = 0.0025
    epochs: Count = 5
    batch_size: Positive = 4
    n_ctx_vision: Positive = Field(8, description="vision prompt tokens")
    depth_vision: Positive = Field(12, description="layers with prompts, the input counted; 1 = shallow")


class VPT(Method):
    """Jia et al., Visual Prompt Tuning, ECCV 2022, on CLIP as in the MaPLe repository.

    Vision tokens V_1..V_J (n_v x d_v) behind the patches, one set per layer; J = 1 is the shallow, more the
    deep form. Text: the frozen ``a photo of a <class>.`` for every dataset. Loss = cross-entropy.

    Trainable parameters: J * n_v * d_v   (ViT-B/16, 8 tokens, J = 12: 73,728; 2 tokens, J = 1: 1,536).

    Settings (muzairkhattak/multimodal-prompt-learning: trainers/vpt.py, configs/trainers/VPT): deep with 8
    tokens and J = 12, lr 0.0025, batch 4, 5 epochs; shallow (2 tokens, J = 1) is the variant ``vpt-shallow``.
    Its transfer script (scripts/vpt/xd_test_vpt.sh) tests epoch 2, though 5 are trained; here all benchmarks
    have the 5 [our choice], and no published table rests on it. The VPT paper itself puts prompts right
    behind the class token, which without positional embedding is the same, and trains a classifier head,
    which CLIP's text replaces.
    """

    name = "vpt"
    paper = "arXiv:2203.12119"
    published_name = "Deep vision prompting (VPT)"
    trains = frozenset({"vision"})
    Settings = VPTSettings
    settings: VPTSettings

    def __init__(self, clip: FrozenCLIP, settings: VPTSettings, classes: Classes) -> None:
        super().__init__(clip, settings, classes)
        self.vision = deep_prompts(settings.depth_vision, settings.n_ctx_vision, clip.shape.vision_width)

    @classmethod
    def parameter_count(cls, settings: VPTSettings, shape: Shape, n_classes: int) -> int:
        return settings.depth_vision * settings.n_ctx_vision * shape.vision_width

    def prompts(self) -> Prompts:
        return Prompts(vision=list(self.vision))

    def template(self, classes: Classes) -> str:
        return PLAIN
