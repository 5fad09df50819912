"""Class names as token rows, and the layout in which the text tower runs them without padding.

A *row* is the token ids of one prompt from start to end token. Learnable context tokens stand in it as
negative numbers: slot ``j`` is ``-1 - j``.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any, Literal

import torch

from promptbench.clip.prompts import mixed
from promptbench.clip.tokenizer import END, START, Row, decode, encode
from promptbench.data.classnames import readable
from promptbench.errors import UserError

Position = Literal["end", "middle", "front"]
# Up to so many packed tokens one attention with a mask costs less than one per length (docs/speed.md).
DENSE = 256


def text_rows(texts: Sequence[str]) -> tuple[Row, ...]:
    """Rows of plain sentences, no learnable tokens."""
    return tuple((START, *encode(text), END) for text in texts)


def template_rows(classnames: Sequence[str], template: str) -> tuple[Row, ...]:
    """Rows of ``template`` with ``{}`` replaced by each class name."""
    return text_rows([template.replace("{}", readable(name)) for name in classnames])


def uses_words(words: str, n_ctx: int) -> bool:
    """Whether a context of n_ctx tokens starts from ``words``: the official code does so up to four tokens,
    CoOp for exactly as many as there are words; otherwise the context starts random."""
    return bool(words) and (n_ctx <= 4 or n_ctx == len(words.split()))


def prompt_rows(
    classnames: Sequence[str], words: str, n_ctx: int, position: Position = "end", sentence: str = "{}."
) -> tuple[Row, ...]:
    """Rows of ``<context> <class name>.`` with ``n_ctx`` learnable tokens (CoOp and all its heirs).

    The learnable tokens replace the first ``n_ctx`` tokens of ``words`` (or of as many "X", see
    `uses_words`). Words beyond ``n_ctx`` stay as frozen text: "a photo of a" with n_ctx 2 gives
    ``[c1][c2] of a <name>.`` The end token keeps its place, since tokens are replaced, never added.

    ``position``: where the class name stands among the context tokens; `middle` has the first
    ``n_ctx // 2`` of them before it, `front` none. ``sentence``: what follows the context, the class name
    at its ``{}``.
    """
    if not uses_words(words, n_ctx):
        words = " ".join(["X"] * n_ctx)
    slots = tuple(-1 - j for j in range(n_ctx))
    rows = []
    for classname in classnames:
        name = readable(classname)
        # The whole sentence is tokenised at once: a name ending in "." would otherwise get two tokens
        # for its last two characters where the official code has one.
        tail = encode(f"{words} {sentence.replace('{}', name)}".strip())[n_ctx:]
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        length = 0 if position == "end" else len(encode(name))
        rows.append((START, *slots[:before], *tail[:length], *slots[before:], *tail[length:], END))
    return tuple(rows)


class TextLayout:
    """Where every token of C prompts goes when nothing is padded and nothing is computed twice.

    The rows' longest common beginning (start token, shared context tokens, template words) is the
    *prefix*, computed once. What follows, the *suffixes*, is packed end to end, classes sorted by suffix
    length so that classes of one length form a block for attention.

    Packed sequence = prefix (``n_prefix`` tokens), then the suffixes: ``n_tokens`` in all.

    Attributes (index tensors on ``device``):
        ids        [n_tokens]  token ids, 0 where a learnable token goes
        positions  [n_tokens]  position in the sentence, for the positional embedding
        groups     (first row in the packed sequence, classes, suffix length) per length
        masks      [length, n_prefix + length] bool per group: a suffix sees the prefix and its own past
        dense      [n_tokens, n_tokens] bool, the same of the whole sequence; None where that is too long
        dense_ends [C, n_tokens] bool, its rows of the end tokens
        ends       [C]         packed index of each class's end token, in the order of the classes
        order      [C]         classes in packed order; ``back`` undoes it
        slot_at    [m]         packed indices of learnable tokens
        slot_of    [m]         which learnable token stands there (class-specific: ``c * n_ctx + j``)

    ``shared`` False keeps the context out of the prefix, for contexts that differ between classes.
    Raises UserError if a row is longer than the context length.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        context_length: int,
        shared: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        longest = max(rows, key=len)
        if len(longest) > context_length:
            text = decode(tuple(token for token in longest[1:-1] if token >= 0))
            raise UserError(
                f"The prompt with {text!r} has {len(longest)} tokens, but this backbone reads "
                f"{context_length}; shorten the class name or the template, or use fewer context tokens "
                "(--set n_ctx=...)."
            )
        self.rows = tuple(rows)
        self.n_ctx = max((-token for row in rows for token in row if token < 0), default=0)
        first, limit = rows[0], min(len(row) for row in rows) - 1
        self.n_prefix = next(
            (
                i
                for i in range(limit)
                if any(row[i] != first[i] for row in rows) or (not shared and first[i] < 0)
            ),
            limit,
        )
        order = sorted(range(len(rows)), key=lambda c: len(rows[c]))
        packed = [(0, i, token) for i, token in enumerate(first[: self.n_prefix])]
        self.groups: list[tuple[int, int, int]] = []
        ends = [0] * len(rows)
        for c in order:
            suffix = rows[c][self.n_prefix :]
            if self.groups and self.groups[-1][2] == len(suffix):
                start, count, length = self.groups[-1]
                self.groups[-1] = (start, count + 1, length)
            else:
                self.groups.append((len(packed), 1, len(suffix)))
            packed += [(c, self.n_prefix + i, token) for i, token in enumerate(suffix)]
            ends[c] = len(packed) - 1

        def index(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        slots = [(at, c, -1 - token) for at, (c, _, token) in enumerate(packed) if token < 0]
        self.shared, self.device = shared, device
        self.n_tokens = len(packed)
        self.ids = index([max(token, 0) for _, _, token in packed])
        self.positions = index([position for _, position, _ in packed])
        self.ends = index(ends)
        self.order = index(order)
        self.back = index(sorted(range(len(order)), key=order.__getitem__))
        self._make_masks()
        self.slot_at = index([at for at, _, _ in slots])
        self.slot_of = index([j if shared else c * self.n_ctx + j for _, c, j in slots])
        # Deep prompting overwrites positions 1..n_ctx, so it needs all of them in the shared prefix.
        self.deep = first[1 : 1 + self.n_ctx] == tuple(-1 - j for j in range(self.n_ctx)) and (
            self.n_prefix > self.n_ctx
        )
        self._owners = [c for c, _, _ in packed]
        self._variants: dict[Any, Any] = {}
        self._padded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def _make_masks(self) -> None:
        sizes = [(length, self.n_prefix + length) for _, _, length in self.groups]
        self.masks = [torch.ones(s, dtype=torch.bool, device=self.device).tril(self.n_prefix) for s in sizes]
        self.dense: torch.Tensor | None = None
        self.dense_ends: torch.Tensor | None = None
        if self.n_tokens > DENSE:
            return
        suffixes = [
            mask[:, self.n_prefix :]
            for mask, (_, n, _) in zip(self.masks, self.groups, strict=True)
            for _ in range(n)
        ]
        first = torch.ones(self.n_prefix, self.n_prefix, dtype=torch.bool, device=self.device).tril()
        self.dense = torch.block_diag(first, *suffixes).bool()
        self.dense[self.n_prefix :, : self.n_prefix] = True
        self.dense_ends = self.dense[self.ends]

    def padded(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows as official code has them, [C, length] with zeros behind the end token, and where that
        is, [C]. Made once."""
        if length not in self._padded:
            rows = [[*row, *[0] * (length - len(row))] for row in self.rows]
            ends = [len(row) - 1 for row in self.rows]
            self._padded[length] = (
                torch.tensor(rows, device=self.device),
                torch.tensor(ends, device=self.device),
            )
        return self._padded[length]

    def put(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """``x`` [n_tokens, d] with learnable ``tokens`` [n_ctx, d] (or [C, n_ctx, d]) in their places."""
        if not self.shared:
            tokens = tokens.expand(len(self.rows), self.n_ctx, -1)
        return x.index_copy(0, self.slot_at, tokens.reshape(-1, x.shape[-1])[self.slot_of].to(x.dtype))

    def prompted(
        self, x: torch.Tensor, tokens: torch.Tensor, mix: float = 1.0
    ) -> tuple[torch.Tensor, "TextLayout"]:
        """Hidden states with deep ``tokens`` in positions 1..n, and their layout: a longer one if there
        were no such positions, one without sharing if the tokens differ between classes."""
        tokens = tokens.to(x.dtype)
        if not self.n_ctx:
            return torch.cat([x[:1], tokens, x[1:]]), self._inserted(len(tokens))
        if self.shared and tokens.ndim == 2:
            tokens = mixed(tokens, x[1 : 1 + self.n_ctx], mix)
            return torch.cat([x[:1], tokens, x[1 + self.n_ctx :]]), self
        if mix != 1:
            raise ValueError("tokens of single classes replace, they are not mixed")
        layout, source = self._unshared()
        x = x if source is None else x[source]
        n = tokens.shape[-2]
        if n == self.n_ctx:
            return layout.put(x, tokens), layout
        at, of = layout._places(n)
        return x.index_copy(0, at, tokens.reshape(-1, x.shape[-1])[of]), layout

    def _places(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed indices of positions 1..n of every class, where classes share the start token only, and
        which of [C * n] tokens belongs there."""
        key = ("places", n)
        if key not in self._variants:
            found = [
                (at, c * n + position - 1)
                for at, (c, position) in enumerate(zip(self._owners, self.positions.tolist(), strict=True))
                if 1 <= position <= n
            ]
            parts = zip(*found, strict=True)
            self._variants[key] = tuple(torch.tensor(part, device=self.device) for part in parts)
        return self._variants[key]

    def _inserted(self, n: int) -> "TextLayout":
        """This layout with ``n`` more tokens behind the start token, which all classes share."""
        if n not in self._variants:
            longer = copy(self)
            longer.n_prefix, longer.n_tokens = self.n_prefix + n, self.n_tokens + n
            longer.ends = self.ends + n
            longer.groups = [(start + n, count, length) for start, count, length in self.groups]
            longer.n_ctx, longer._variants = n, {}
            longer._make_masks()
            self._variants[n] = longer
        return self._variants[n]

    def _unshared(self) -> tuple["TextLayout", torch.Tensor | None]:
        """The layout of the same rows with the context apart for every class, and where each of its tokens
        lies in this one."""
        if not self.shared:
            return self, None
        if "unshared" not in self._variants:
            own = TextLayout(self.rows, max(map(len, self.rows)), shared=False, device=self.device)
            ends, positions = self.ends.tolist(), own.positions.tolist()
            source = [
                at if at < self.n_prefix else ends[c] - (len(self.rows[c]) - 1 - at)
                for c, at in zip(own._owners, positions, strict=True)
            ]
            self._variants["unshared"] = own, torch.tensor(source, device=self.device)
        return self._variants["unshared"]
