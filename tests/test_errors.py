"""The error for an unknown name suggests one that exists."""

import pytest

from promptbench.errors import unknown


@pytest.mark.parametrize("name", ["vit-b-16", "ViT-B/16", "VIT-B-16"])
def test_suggestions_know_no_case_and_no_slash(name: str) -> None:
    known = ["RN50", "unit-b-16", "ViT-B-16", "ViT-B-16-quickgelu", "ViT-L-14"]
    assert "Did you mean 'ViT-B-16'?" in str(unknown("backbone", name, known))


def test_nothing_is_listed_where_nothing_is_known() -> None:
    assert str(unknown("tag", "a", [])) == "Unknown tag 'a'."
