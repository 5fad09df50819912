"""What training has done so far, and the checkpoint that a run which was interrupted resumes from."""

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from promptbench.errors import UserError
from promptbench.storage import canonical, write_atomic
from promptbench.training.files import CHECKPOINT, METRICS
from promptbench.training.provenance import code_hash
from promptbench.training.steps import Steps


@dataclass
class Progress:
    """What training has done so far: saved in the checkpoint, reported after every epoch."""

    epoch: int = 0
    steps: int = 0
    train_seconds: float = 0.0
    frozen_seconds: float = 0.0
    wait_seconds: float = 0.0  # of the training time: for images
    history: list[dict[str, float]] = field(default_factory=list)
    aggregate: list[Tensor] = field(default_factory=list)  # weighted sum of the parameters so far


Report = Callable[[Progress, int], None]  # after each epoch, with the number of epochs


def save(folder: Path, progress: Progress, steps: Steps) -> None:
    """Write metrics and checkpoint of a training into a trial's folder."""
    state = {
        "progress": vars(progress),
        "method": steps.method.state_dict(),
        "optimizer": steps.optimizer.state_dict(),
        "scaler": steps.scaler.state_dict(),
    }
    # The checkpoint last: a run resumed from it never goes back to an epoch whose metrics were lost.
    write_atomic(folder / METRICS, "".join(canonical(row) + "\n" for row in progress.history))
    content = io.BytesIO()
    torch.save(state, content)
    write_atomic(folder / CHECKPOINT, content.getvalue() + digest(content.getvalue()))


def digest(saved: bytes) -> bytes:
    """What a checkpoint ends with: its SHA-256 together with the code's, which the rest of the training must
    have in common with its beginning."""
    return hashlib.sha256(saved + code_hash().encode()).digest()


def resume(folder: Path, steps: Steps) -> Progress:
    """Continue from the checkpoint in a trial's folder if there is an intact one.

    Raises UserError, and removes it, if another version of the program wrote it.
    """
    saved = _read(folder / CHECKPOINT)
    if saved is None:
        return Progress()
    try:
        # On the CPU: what belongs on the device is copied there, and Adam's count of steps does not.
        state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
        steps.method.load_state_dict(state["method"])
        steps.optimizer.load_state_dict(state["optimizer"])
        if steps.scaler.is_enabled():
            steps.scaler.load_state_dict(state["scaler"])
        progress = Progress(**state["progress"])
        progress.aggregate = [one.to(steps.arithmetic.device) for one in progress.aggregate]
        return progress
    except torch.OutOfMemoryError:  # not the file's fault
        raise
    except (EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError):
        (folder / CHECKPOINT).unlink(missing_ok=True)
        raise UserError(
            f"The checkpoint in {folder} was written by another version of promptbench and has been removed; "
            "run the same command again to start this trial over."
        ) from None


def discard_damaged(folder: Path) -> bool:
    """Remove the checkpoint in ``folder`` if it is damaged: the trial then starts over.

    Returns whether there was a damaged one.
    """
    path = folder / CHECKPOINT
    if _read(path) is not None or not path.exists():
        return False
    path.unlink(missing_ok=True)
    return True


def _read(path: Path) -> bytes | None:
    """What was saved in a checkpoint, which ends with its SHA-256; None if that does not fit."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    saved, found = content[:-32], content[-32:]
    return saved if digest(saved) == found else None
