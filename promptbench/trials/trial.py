"""What a trial is: one training and the evaluations that follow it, a frozen value.

Nothing here needs torch: tables and figures are made from trials and records alone.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from promptbench.clip.precision import Precision
from promptbench.data.cards import POCKET, Half, Split
from promptbench.storage import hash_value
from promptbench.training.counts import Evaluation

#: Settings added after the first trials had been hashed, at the values that describe what was done before:
#: at these values they do not change the hash.
_LATER = {"drop_last": True, "betas": [0.9, 0.999], "logit_scale": 0.0}


class Trial(BaseModel):
    """Everything that the result of a training depends on. Two trials are the same iff their hashes are.

    ``data`` is the fingerprint of the datasets, ``weights`` that of the backbone's weights (file hash or
    tag), so that a changed file makes another trial. ``files`` is the fingerprint of the images that the
    trial reads, where ``data`` does not cover their contents (`Dataset.files`); else empty. ``pretrained``
    says only where the weights were found. ``variant`` names the settings that the user changed ("rank=2"),
    for people. Methods that use no training images have shots 0 and seed 0: one trial, not one per seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    method: str
    settings: dict[str, Any]
    dataset: str
    data: str
    train_classes: Half
    shots: int
    seed: int
    evaluations: tuple[Evaluation, ...]
    split: Split = "test"
    limit: int | None = None
    backbone: str = POCKET
    pretrained: str | None = None
    weights: str = ""
    files: str = ""
    precision: Precision = "fp32"
    variant: str = ""

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the trial's content."""
        content = self.model_dump(mode="json", exclude={"pretrained", "variant"})
        if not self.files:  # records from before this field was added keep their hash
            del content["files"]
        settings = content["settings"].items()
        content["settings"] = {k: v for k, v in settings if k not in _LATER or v != _LATER[k]}
        return hash_value(content)

    def folder(self, out: Path | str) -> Path:
        """Where the trial's files are under the results folder ``out``."""
        name = f"shots{self.shots}-seed{self.seed}-{self.hash[:8]}"
        return Path(out).joinpath("runs", self.benchmark, self.method, self.dataset.replace(":", "-"), name)

    @property
    def label(self) -> str:
        """The trial in one line, for people."""
        method = f"{self.method} ({self.variant})" if self.variant else self.method
        return f"{method} on {self.dataset}" + (
            f", {self.shots} shots, seed {self.seed}" if self.shots else ""
        )


#: Defaults of `promptbench run`.
PRESETS: dict[str, dict[str, Any]] = {
    "pocket": {"backbone": POCKET, "pretrained": None, "suite": "pocket", "seeds": "1"},
    # the comparison of the papers: 11 datasets, three seeds, OpenAI's weights
    "paper": {
        "backbone": "ViT-B-16-quickgelu",
        "pretrained": "openai",
        "suite": "standard",
        "seeds": "1,2,3",
    },
}
