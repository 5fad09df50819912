"""Terms that keep prompted features near those of the frozen CLIP, shared by several methods."""

import torch.nn.functional as F
from torch import Tensor


def self_regulation(
    image: Tensor, text: Tensor, logits: Tensor, frozen: Tensor, anchors: Tensor, frozen_logits: Tensor
) -> dict[str, Tensor]:
    """PromptSRC's three terms, unweighted (muzairkhattak/PromptSRC: trainers/promptsrc.py).

    For unit-norm features image [B, e], text [C, e], their logits [B, C] and the frozen ones
    (``frozen`` [B, e] of the same views, ``anchors`` [C, e], ``frozen_logits`` [B, C]): ``text`` and
    ``image``, the mean absolute difference over all entries; ``logits``, KL(frozen || prompted) at
    temperature 1, over B * C.
    """
    reference = frozen_logits.log_softmax(dim=-1)
    divergence = F.kl_div(logits.log_softmax(dim=-1), reference, reduction="sum", log_target=True)
    return {
        "text": (text - anchors).abs().mean(),
        "image": (image - frozen).abs().mean(),
        "logits": divergence / logits.numel(),
    }


def cosine_distance(features: Tensor, anchors: Tensor) -> Tensor:
    """1 - the mean cosine of unit-norm rows: []."""
    return 1 - (features * anchors).sum(dim=-1).mean()
