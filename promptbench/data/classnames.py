"""Class names: their text in a prompt, the words that CLIP reads, and label spaces."""

from dataclasses import dataclass
from functools import cache
from typing import Any

SPECIAL = ("<start_of_text>", "<end_of_text>")  # of CLIP's tokenizer


def readable(classname: str) -> str:
    """The class name as it goes into a prompt: underscores become spaces."""
    return classname.replace("_", " ")


def words(text: str) -> tuple[str, ...]:
    """The parts that CLIP's tokenizer cuts ``text`` into before encoding: two texts have equal tokens exactly
    if they have equal words.

    Broken and composed characters, quotes, ligatures and full width are made one, entities resolved, case and
    whitespace dropped (openai/CLIP: clip/simple_tokenizer.py). Written here so that torch is not loaded.
    """
    import html

    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return tuple(_pattern().findall(" ".join(text.split()).lower()))


@cache
def _pattern() -> Any:
    import regex

    pattern = r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return regex.compile("|".join(SPECIAL) + pattern, regex.IGNORECASE)


@dataclass(frozen=True)
class Classes:
    """A label space: class names in label order, the dataset's zero-shot template and its name."""

    names: tuple[str, ...]
    template: str = "a photo of a {}."
    dataset: str = ""

    def __len__(self) -> int:
        return len(self.names)
