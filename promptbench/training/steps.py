"""The steps of a training: optimiser, learning rate and loss scaling."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from promptbench.clip.arithmetic import CPU_FP32, Arithmetic
from promptbench.data.classnames import Classes
from promptbench.methods._base import Batch, Method
from promptbench.methods._settings import Settings
from promptbench.training.schedule import learning_rate


def make_optimizer(settings: Settings, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimiser over all trainable parameters alike; the decay acts on prompts and biases too."""
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr, betas=settings.betas, eps=settings.eps, weight_decay=decay)


class Steps:
    """The steps of one training: optimiser, learning rate and loss scaling.

    ``per_epoch`` batches make an epoch; ``length`` is the training's in epochs, ``epochs`` that rounded up.
    """

    def __init__(self, method: Method, per_epoch: int, arithmetic: Arithmetic = CPU_FP32) -> None:
        self.method, self.per_epoch, self.arithmetic = method, per_epoch, arithmetic
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        settings = method.settings
        self.optimizer = make_optimizer(settings, self.parameters)
        self.scaler = torch.amp.GradScaler(arithmetic.device.type, enabled=arithmetic.precision == "fp16")
        self.length = settings.steps / per_epoch if settings.steps else settings.epochs
        self.epochs = math.ceil(self.length)

    def rate(self, epoch: int, step: int = 0) -> float:
        """The learning rate of a step of an epoch, both counted from 0; the optimiser has it from now on."""
        within = step / self.per_epoch if self.method.settings.schedule == "step" else 0.0
        rate = learning_rate(self.method.settings, epoch + within, self.length)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def take(self, batch: Batch, classes: Classes, epoch: int, step: int) -> tuple[Tensor, float]:
        """Take one step; the loss before it [], still on the device, and the learning rate."""
        rate = self.rate(epoch, step)
        self.optimizer.zero_grad(set_to_none=True)
        with self.arithmetic.autocast():
            loss = self.method.loss(batch, classes)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), rate
