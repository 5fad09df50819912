"""Whether initial values are drawn from the same distribution, told from summaries of official draws."""

import torch
from torch import Tensor

SIGMAS = 8.0  # how far a mean or a deviation may be off, in its own deviations
RANK = 20  # how many of our values may lie beyond the official extreme where one is expected


def summary(values: Tensor) -> Tensor:
    """Smallest, largest, mean and population deviation: [4] float64."""
    x = values.double()
    return torch.stack([x.min(), x.max(), x.mean(), x.std(correction=0)])


def distance(ours: Tensor, official: Tensor, n: int) -> float:
    """How far our draws [seeds, ...] of one tensor are from the `summary` of ``n`` official values, 1 being
    the bound of what chance does; without chance in our draws the two must be equal up to rounding."""
    if (ours == ours[:1]).all():
        return (summary(ours[0]) - official).abs().max().item() / 1e-6
    x = ours.double().flatten().sort().values
    smallest, largest, mean, deviation = official.tolist()
    spread, both = x.std(correction=0).item(), 1 / n + 1 / len(x)
    kurtosis = ((x - x.mean()) / spread).pow(4).mean().item()
    off = [
        abs(x.mean().item() - mean) / (SIGMAS * spread * both**0.5),
        abs(spread - deviation) / (SIGMAS * spread * (max(kurtosis - 1, 0.1) / 4 * both) ** 0.5),
    ]
    rank = RANK * max(1, len(x) // n)
    if rank < len(x):  # extremes: neither far inside ours nor far outside
        for values, extreme in ((x, largest), (-x.flip(0), -smallest)):
            inside = (values > extreme).sum().item() / rank
            tail = (values[-1] - values[-1 - rank]).item()
            off += [inside, (extreme - values[-1].item()) / (3 * tail)]
    return float(max(off))
