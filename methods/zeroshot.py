"""Zero-shot CLIP: the frozen model and the dataset's template; nothing is trained."""

from typing import Literal

from torch import Tensor

from promptbench.data.classnames import Classes
from promptbench.methods._base import Method
from promptbench.methods._settings import Settings
from promptbench.methods._templates import SELECT_7


class ZeroShotSettings(Settings):
    templates: Literal["dataset", "ensemble"] = "dataset"


class ZeroShot(Method):
    """Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.

    logits = s * cos(f, t_c), t_c the text feature of the dataset's template with the class name.
    Trainable parameters: 0. One run, no seed (KaiyangZhou/CoOp: trainers/zsclip.py).

    ``templates=ensemble`` is ZeroshotCLIP2: the mean of the normalised features of seven generic
    templates and the dataset's own, normalised again. The official class keeps appending to one list, so
    a second dataset in the same process sees the first one's template; here it does not. It also leaves
    out ImageNet's own template, here added like any other.
    """

    name = "zeroshot"
    paper = "arXiv:2103.00020"
    published_name = "CLIP"
    uses_shots = False
    Settings = ZeroShotSettings
    settings: ZeroShotSettings

    def text_features(self, classes: Classes) -> Tensor:
        templates: tuple[str, ...] = (classes.template,)
        if self.settings.templates == "ensemble":
            templates = (*SELECT_7, *(t for t in templates if t not in SELECT_7))
        return self.clip.frozen_text(classes, templates)
