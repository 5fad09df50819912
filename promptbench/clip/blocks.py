"""One block of a tower, with the places for hooks; and attention over packed text."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.clip.tokens import TextLayout

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
#: `run_block`, or what torch.compile makes of it.
RunBlock = Callable[..., Tensor]


def run_block(
    block: Any,
    x: Tensor,
    attention: Attention,
    hook: Callable[[Tensor], tuple[Tensor | None, Tensor | None]] | None = None,
    out: Callable[[Tensor], Tensor] | None = None,
    pick: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One pre-norm residual block of open_clip on tokens x [..., N, d].

    ``attention`` gets queries, keys and values [..., heads, N, d / heads] and returns the queries' shape.
    ``pick`` chooses the tokens that are still needed, [..., M, d]: all attend, only they are computed.
    """
    attn = block.attn
    weight, bias, width = attn.in_proj_weight, attn.in_proj_bias, attn.embed_dim
    pick = pick or (lambda t: t)

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (attn.num_heads, -1)).transpose(-3, -2)

    h = block.ln_1(x)
    read = pick(x)
    if read is x:
        q, k, v = F.linear(h, weight, bias).chunk(3, dim=-1)
    else:
        q = F.linear(pick(h), weight[:width], bias[:width])
        k, v = F.linear(h, weight[width:], bias[width:]).chunk(2, dim=-1)
    inside, beside = hook(h) if hook else (None, None)
    if inside is not None:
        more_q, more_k, more_v = inside.chunk(3, dim=-1)
        q, k, v = q + pick(more_q), k + more_k, v + more_v
    attended = attention(heads(q), heads(k), heads(v)).transpose(-3, -2).flatten(-2)
    projected = attn.out_proj(attended)
    read = read + block.ls_1(projected if out is None else projected + out(attended))
    read = read + block.ls_2(block.mlp(block.ln_2(read)))
    return read if beside is None else read + pick(beside)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """The projection into the joint space, in fp32 under any autocast: it is tiny, features are compared."""
    with torch.autocast(x.device.type, enabled=False):
        return x.float() @ weight


# ---------------------------------------------------------------------- attention over packed text


def attend_packed(q: Tensor, k: Tensor, v: Tensor, layout: TextLayout) -> Tensor:
    """Causal attention over the packed sequence: q, k, v [heads, n_tokens, d] -> the same shape."""
    if layout.dense is not None:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=layout.dense)[0]
    (k0, *ks), (v0, *vs) = _groups(k, layout), _groups(v, layout)
    q0, *qs = _groups(q, layout)
    parts = [F.scaled_dot_product_attention(q0, k0, v0, is_causal=True)[0]]
    for query, key, value, mask in zip(qs, ks, vs, layout.masks, strict=True):
        out = F.scaled_dot_product_attention(query, _after(k0, key), _after(v0, value), attn_mask=mask)
        parts.append(out.transpose(0, 1).flatten(1, 2))
    return torch.cat(parts, dim=1)


def attend_ends(q: Tensor, k: Tensor, v: Tensor, layout: TextLayout) -> Tensor:
    """Attention of the end tokens only: q [heads, C, d] in class order -> the same shape.

    An end token sees its whole sentence, so sentences that are apart need no mask.
    """
    if layout.dense_ends is not None:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=layout.dense_ends)[0]
    (k0, *ks), (v0, *vs) = _groups(k, layout), _groups(v, layout)
    queries = q[:, layout.order].split([count for _, count, _ in layout.groups], dim=1)
    parts = []
    for query, key, value in zip(queries, ks, vs, strict=True):
        query = query.transpose(0, 1)[:, :, None]
        out = F.scaled_dot_product_attention(query, _after(k0, key), _after(v0, value))
        parts.append(out[:, :, 0].transpose(0, 1))
    return torch.cat(parts, dim=1)[:, layout.back]


def _groups(t: Tensor, layout: TextLayout) -> list[Tensor]:
    """Cut [heads, n_tokens, d] into the prefix [1, heads, n_prefix, d] and per suffix length a batch
    [classes, heads, length, d]."""
    sizes = [count * length for _, count, length in layout.groups]
    prefix, *parts = t.split([layout.n_prefix, *sizes], dim=1)
    batches = [
        part.unflatten(1, (count, length)).transpose(0, 1)
        for part, (_, count, length) in zip(parts, layout.groups, strict=True)
    ]
    return [prefix[None], *batches]


def _after(prefix: Tensor, own: Tensor) -> Tensor:
    """Keys (or values) of a batch of suffixes behind those of the prefix they all share."""
    return torch.cat([prefix.expand(len(own), -1, -1, -1), own], dim=2)
