"""CLIP's byte-pair tokenizer: text as token ids."""

import functools
from typing import Any

START, END = 49406, 49407
Row = tuple[int, ...]  # token ids; learnable tokens are negative, see `tokens`


@functools.cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@functools.lru_cache(maxsize=100_000)
def encode(text: str) -> Row:
    """CLIP's byte-pair ids of ``text``, without start and end token."""
    return tuple(_tokenizer().encode(text))


def decode(tokens: Row) -> str:
    """The text of token ids."""
    return str(_tokenizer().decode(list(tokens))).strip()
