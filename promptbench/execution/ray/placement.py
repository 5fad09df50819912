"""What a trial needs of a node, and whether a node has room for it."""

from collections.abc import Sequence

from promptbench.clip.arithmetic import one_thread
from promptbench.clip.backbones import backbone_shape
from promptbench.clip.memory import estimate
from promptbench.errors import UserError
from promptbench.execution.job import Job
from promptbench.execution.ray.connection import Resources
from promptbench.methods._registry import get_method
from promptbench.trials.trial import Trial


def request(trial: Trial, job: Job, nodes: Sequence[Resources], per_gpu: int) -> dict[str, float]:
    """What a trial asks Ray for. On CUDA a part of a GPU, and a core for itself and each decoder; on the CPU
    one core for a very small backbone, all of a node for others. Memory as estimated; never more than the
    smallest node that could do the work has (class sets that do not fit are recomputed).

    Raises UserError if no node could do it.
    """
    kind = "GPU" if job.device.type == "cuda" else "CPU"
    least = 1 / per_gpu if kind == "GPU" else 1
    fit = [have for have in nodes if have.get(kind, 0) >= least]
    if not fit:
        raise UserError(f"No node of the Ray cluster has a {kind}; start one that has (`ray start`).")
    cores, memory = (min(have.get(what, 0) for have in fit) for what in ("CPU", "memory"))
    shape = backbone_shape(trial.backbone)
    names = job.datasets[trial.dataset].classes(trial.train_classes).names
    need = estimate(trial.settings, get_method(trial.method).trains, shape, names, trial.precision)
    if kind == "GPU":
        wanted, part = min(1 + job.workers, cores), {"GPU": 1 / per_gpu}
    else:
        wanted, part = 1 if one_thread(job.device, shape) else cores, {}
    return {"CPU": wanted, "memory": int(min(need, memory)), **part}


def has_room(have: Resources, busy: Sequence[Resources], need: Resources) -> bool:
    """Whether a node that runs ``busy`` takes a trial, if only as the one that waits there."""
    return all(
        amount <= have.get(what, 0) and sum(one.get(what, 0) for one in busy) <= have[what] + 1e-6
        for what, amount in need.items()
        if amount
    )
