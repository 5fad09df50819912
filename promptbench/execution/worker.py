"""Runs the trials of a job one at a time: skips finished ones, resumes interrupted ones."""

from functools import partial
from typing import Any

import torch

from promptbench.clip.arithmetic import suitable_threads
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.errors import UserError
from promptbench.execution.claims import claim, identity
from promptbench.execution.job import Job, Reporter
from promptbench.execution.run import run_trial
from promptbench.storage import sweep
from promptbench.training.checkpoint import discard_damaged
from promptbench.training.files import RECORD
from promptbench.trials.record import Fault, Record, examine
from promptbench.trials.trial import Trial


class Worker:
    """Runs trials of a job one at a time, each backbone loaded once."""

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self.job, self.reporter = job, reporter
        self.clips: dict[Any, FrozenCLIP] = {}

    def attempt(self, trial: Trial, number: int, total: int, block: bool) -> Record | UserError | None:
        """The record of a trial: of an earlier run, or of this one. The error if it fails by the user's
        mistake. None if another process is at it; with ``block`` its end is waited for."""
        if block:
            self.reporter.wait(trial)
        with claim(self.job.out, trial, block) as mine:
            if not mine:
                return None
            return self.done(trial) or self.run(trial, number, total)

    def done(self, trial: Trial) -> Record | UserError | None:
        """The record of a trial that nothing is left to do for: it is whole, and so are the files beside it.
        The error if a newer version of the program made it, or if it cannot be read: it is never replaced."""
        folder = trial.folder(self.job.out)
        done = examine(folder)
        if isinstance(done, Fault) and (done.newer or done.unread):
            what = f"was {done.why} of promptbench" if done.newer else f"cannot be read ({done.why})"
            fix = "update promptbench" if done.newer else "make it readable"
            error = UserError(f"{done.path} {what} and is left as it is; {fix}, or choose another --out.")
            self.reporter.fail(trial, error)
            return error
        old = self.job.replace.get(trial.hash)
        if done is None or (old is not None and old == identity(folder)):
            return None
        if isinstance(done, Fault) or (damage := done.damage(folder, trial)):
            what = f"{RECORD} is damaged ({done.why})" if isinstance(done, Fault) else damage
            self.reporter.note(trial, f"{what}; the trial is run again")
            return None
        self.reporter.finish(trial, done, skipped=True)
        return done

    def run(self, trial: Trial, number: int, total: int) -> Record | UserError:
        """The record of a trial that is this process's to do, or the error if it fails by the user's
        mistake."""
        job, key = self.job, (trial.backbone, trial.pretrained)
        self.reporter.start(trial, number, total)
        sweep(trial.folder(job.out))
        failed: UserError | None = None
        try:
            if key not in self.clips:
                loaded = FrozenCLIP.load(*key, device=job.device, cache=job.cache)
                loaded.memory.share = job.share
                self.clips[key] = loaded.compile() if job.compiled else loaded
            clip, fresh = self.clips[key], trial.hash in job.replace
            if len(trial.weights) == len(clip.fingerprint) and trial.weights != clip.fingerprint:
                raise UserError("its weights file was replaced after the command had started; run it again.")
            with suitable_threads(job.device, clip.shape):
                if not fresh and discard_damaged(trial.folder(job.out)):
                    self.reporter.note(
                        trial, "its checkpoint was damaged, or made by other code; it starts over"
                    )
                record = run_trial(
                    trial,
                    job.datasets,
                    clip,
                    trial.folder(job.out),
                    partial(self.reporter.epoch, trial),
                    job.workers,
                    fresh,
                    job.validate,
                )
        except UserError as error:
            failed = error
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if (failed := _out_of_memory(error)) is None:
                raise
        if job.device.type == "cuda":
            torch.cuda.empty_cache()  # what this trial needed may be missing to another process
        if failed is not None:
            self.reporter.fail(trial, failed)
            return failed
        self.reporter.finish(trial, record, skipped=False)
        return record


def _out_of_memory(error: BaseException) -> UserError | None:
    """The user's error for an allocation that failed; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        whose, fewer = "the GPU's", "--per-gpu 1"
    # torch has no type for a failed allocation on the CPU
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        whose, fewer = "the machine's", "--jobs 1"
    else:
        return None
    return UserError(
        f"it ran out of {whose} memory; run fewer at once ({fewer}) or use a smaller batch "
        "(--set batch_size=...)."
    )
