"""The arithmetic of a run: where it computes, in which number format, with how many threads and decoders."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from promptbench.clip.backbones import Shape
from promptbench.clip.precision import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Arithmetic:
    """How a run computes, decided once and handed along.

    ``device``: where the towers are; ``precision``: the number format of the frozen towers' matrix products
    (prompts stay fp32 in any case); ``decoders``: processes that decode images, 0 for none besides this one.
    """

    device: torch.device
    precision: Precision = "fp32"
    decoders: int = 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which towers and losses are computed."""
        return autocast(self.device, self.precision)


CPU_FP32 = Arithmetic(torch.device("cpu"))


def resolve_precision(device: torch.device, precision: str) -> Precision:
    """The precision that is asked for; "auto" means fp32 on a CPU, and on CUDA bf16, or fp16 (with loss
    scaling) where the hardware has no bf16."""
    if precision != "auto":
        return precision  # type: ignore[return-value]
    if device.type != "cuda":
        return "fp32"
    native = torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if native else "fp16"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The autocast context of a precision."""
    if precision == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=DTYPES[precision])


def one_thread(device: torch.device, shape: Shape) -> bool:
    """Whether a very small backbone runs on the CPU.

    There a second thread gains nothing and loses much as soon as another program wants its core; and one
    thread gives the same bits whatever the machine's number of cores. Larger backbones use all threads.
    """
    return device.type == "cpu" and shape.vision_width <= 256


@contextmanager
def suitable_threads(device: torch.device, shape: Shape) -> Iterator[None]:
    """`one_thread` where that is best, all that are set otherwise."""
    before = torch.get_num_threads()
    if one_thread(device, shape):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
