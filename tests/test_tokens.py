"""Token rows and the packed layout."""

import pytest
from open_clip.tokenizer import SimpleTokenizer

from promptbench.clip.tokenizer import END, START, encode
from promptbench.clip.tokens import TextLayout, prompt_rows, template_rows
from promptbench.errors import UserError

encode_all = SimpleTokenizer().encode


def test_words_beyond_the_context_stay_frozen() -> None:
    (row,) = prompt_rows(["cat"], "a photo of a", 2)
    assert row == (START, -1, -2, *encode_all("of a cat."), END)


def test_more_tokens_than_words_start_from_placeholders() -> None:
    (row,) = prompt_rows(["cat"], "a photo of a", 16)
    assert row == (START, *(-1 - j for j in range(16)), *encode_all("cat."), END)


def test_as_many_tokens_as_words() -> None:
    (row,) = prompt_rows(["cat"], "this is one fine picture of a", 7)
    assert row == (START, *(-1 - j for j in range(7)), *encode_all("cat."), END)


def test_positions() -> None:
    name, stop = encode_all("golden retriever"), encode_all(".")
    assert prompt_rows(["golden_retriever"], "", 3, "middle") == ((START, -1, *name, -2, -3, *stop, END),)
    assert prompt_rows(["golden_retriever"], "", 3, "front") == ((START, *name, -1, -2, -3, *stop, END),)


def test_name_ending_in_punctuation_is_tokenised_with_its_full_stop() -> None:
    """ "St." + "." is one token ".." for CLIP, as in the official code."""
    assert prompt_rows(["St."], "", 1) == ((START, -1, *encode_all("X St..")[1:], END),)


def test_no_context_and_no_words_is_the_bare_name() -> None:
    assert prompt_rows(["cat"], "", 0) == template_rows(["cat"], "{}.")


def test_layout_holds_no_padding_and_the_prefix_once() -> None:
    rows = prompt_rows(["ox", "golden retriever", "cow", "grand piano"], "a photo of a", 4)
    layout = TextLayout(rows, 77)
    assert layout.n_prefix == 5  # start token and four context tokens
    assert layout.n_tokens == 5 + sum(len(row) - 5 for row in rows)
    assert [(count, length) for _, count, length in layout.groups] == [(2, 3), (2, 4)]
    assert [layout.ids[end] for end in layout.ends] == [END] * 4
    assert layout.deep
    assert not TextLayout(prompt_rows(["ox", "cow"], "", 4, "front"), 77).deep


def test_template_words_are_part_of_the_prefix() -> None:
    layout = TextLayout(template_rows(["ox", "cow"], "a photo of a {}."), 77)
    assert layout.n_prefix == 1 + len(encode("a photo of a"))


def test_a_prompt_that_is_too_long_is_named() -> None:
    with pytest.raises(UserError, match=r"'red panda \.' has 9 tokens.*reads 8"):
        TextLayout(prompt_rows(["ox", "red panda"], "", 4), 8)
