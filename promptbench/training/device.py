"""The device that a command computes on, and the cores it may use."""

import os

import torch

from promptbench.errors import UserError


def default_device(asked: str | None = None) -> torch.device:
    """The device ``asked`` for, or that of ``PROMPTBENCH_DEVICE``, or CUDA if there is one, else the CPU.

    Raises UserError if that names no device of this machine.
    """
    name = asked or os.environ.get("PROMPTBENCH_DEVICE")
    what = f"--device {asked}" if asked else f"PROMPTBENCH_DEVICE={name}"
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type != "cuda":
            one = torch.ones(1, device=device)
            if one.item() != 1:  # "meta" and its like know shapes only, and have no numbers to give
                raise RuntimeError("it computes nothing")
            return one.device
        # Asked, not tried: a tensor would take some hundred MB of a GPU that workers are to use.
        if (index := device.index or 0) >= torch.cuda.device_count():
            raise RuntimeError("no such GPU")
        return torch.device("cuda", index)
    except Exception:  # backends that are not installed fail in ways of their own
        raise UserError(
            f"{what} names no device of this machine that computes; use cpu, cuda or cuda:N."
        ) from None


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
