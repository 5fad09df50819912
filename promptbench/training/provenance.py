"""Where a trial ran: versions, device, hash of the code, peak memory."""

import platform
import resource
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch

import promptbench
from promptbench.storage import hash_file, hash_value

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow", "scikit-learn")


def describe(device: torch.device) -> dict[str, Any]:
    """Device, threads, platform, commit and package versions, as plain values."""
    cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "promptbench": promptbench.__version__,
        **_repository(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


@cache
def code_hash() -> str:
    """SHA-256 over all files of the package: engine, methods, datasets, and whatever they load."""
    return hash_value([[name, hash_file(path)] for name, path in sorted(package_files().items())])


def package_files() -> dict[str, Path]:
    """The files of the package by name, without what Python and editors leave there."""
    found = {}
    for part in ("promptbench", "promptbench.methods", "promptbench.datasets"):
        root = Path(str(resources.files(part)))
        for path in root.rglob("*"):
            inside = path.relative_to(root)
            # In an installed package methods and datasets lie inside it, in a checkout beside it.
            apart = part == "promptbench" and inside.parts[0] in ("methods", "datasets", "results")
            hidden = any(one.startswith((".", "__pycache__")) for one in inside.parts)
            if path.is_file() and not (apart or hidden or path.suffix == ".pyc"):
                found[f"{part}/{inside.as_posix()}"] = path
    return found


@cache
def _repository() -> dict[str, Any]:
    """Where the source tree is a git checkout: its commit, and whether the package differs from it
    (``dirty``); both None elsewhere, or where git cannot tell."""
    root = Path(promptbench.__file__).parent.parent

    def git(*arguments: str) -> str:
        # A checkout of another user's is only read here, which git allows where it is told to.
        command = ["git", "-c", "safe.directory=*", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not (root / ".git").exists():  # a checkout of something else that holds an installation
            raise FileNotFoundError
        changed = git("status", "--porcelain", "--", "promptbench", "methods", "datasets")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


class PeakMemory:
    """Peak memory since construction: allocated bytes on CUDA, resident bytes of the process elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            # Not allowed in some containers: the mark is then that of the whole process.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    def bytes(self) -> int:
        """The peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "linux":
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
