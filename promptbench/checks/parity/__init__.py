"""Compare methods with outputs of their official implementations: ``python -m promptbench.parity DIR``.

DIR holds ``cases.json``, ``frozen_clip.safetensors``, ``inputs_*.safetensors`` and one safetensors file per
case: the same frozen weights, learnable parameters and inputs must give the same features, logits, losses,
gradients, parameters after steps of the released optimiser, searches and initial distributions. Every array
of every file is compared or used as input; an unknown array is an error.
"""

from promptbench.checks.parity.command import main, run

__all__ = ["main", "run"]
