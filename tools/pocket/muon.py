"""Muon in fp32 for small matrices on a CPU.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". torch.optim.Muon rounds to
bf16, which processors without bf16 units emulate: half of a training step here. Matrices of one shape are
orthogonalised as one batch.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz, scaled to the step size of Adam (0.2 sqrt(max dim))."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.05
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                # q, k and v lie on one another in one matrix but are three maps
                parts = 3 if parameter.shape[0] == 3 * parameter.shape[1] else 1
                for part, matrix in zip(update.chunk(parts), parameter.chunk(parts), strict=True):
                    shapes[tuple(part.shape)].append((part, matrix))
            for shape, pairs in shapes.items():
                steps = _orthogonal(torch.stack([part for part, _ in pairs]))
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for (_, matrix), step in zip(pairs, steps, strict=True):
                    matrix.mul_(1 - group["lr"] * group["decay"]).sub_(step, alpha=size)


def _orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix of each of ``matrices`` [n, a, b], about: five Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x
