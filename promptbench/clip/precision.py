"""The number formats of the frozen towers, by name. Needs no torch, because trials name one, too."""

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
