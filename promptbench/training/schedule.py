"""Learning rates and the weights of Gaussian prompt aggregation, as functions of the settings."""

import math

from promptbench.methods._settings import Settings


def learning_rate(settings: Settings, epoch: float, epochs: float | None = None) -> float:
    """The rate at ``epoch`` (counted from 0; a fraction inside an epoch, for ``schedule=step``) of
    ``epochs`` in all, by default the settings'.

    ``warmup_lr`` for the first ``warmup_epochs`` W, then from lr to lr_min by
    lr_min + (lr - lr_min) (1 + cos(pi (epoch - W) / epochs)) / 2: with a warm-up the cosine starts late
    and so never ends (Dassl.pytorch: dassl/optim/lr_scheduler.py, stepped once per epoch).
    """
    if epoch < settings.warmup_epochs:
        return settings.warmup_lr
    part = (epoch - settings.warmup_epochs) / (epochs or settings.epochs)
    height = (1 + math.cos(math.pi * part)) / 2
    return settings.lr_min + (settings.lr - settings.lr_min) * height


def aggregation_weights(settings: Settings, epochs: int | None = None) -> list[float]:
    """Gaussian prompt aggregation: the weight of the parameters after each epoch 1..E, summing to one.

    A normal density with mean ``gpa_mean`` and standard deviation ``gpa_std`` at e = 1..E over its sum
    (muzairkhattak/PromptSRC: trainers/promptsrc.py). Empty if ``gpa_std`` is 0.
    """
    if not settings.gpa_std:
        return []
    away = [
        ((e - settings.gpa_mean) / settings.gpa_std) ** 2 / 2
        for e in range(1, (epochs or settings.epochs) + 1)
    ]
    heights = [math.exp(min(away) - one) for one in away]  # the highest is 1: no density is lost to underflow
    return [height / sum(heights) for height in heights]
