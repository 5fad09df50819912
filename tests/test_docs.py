"""Documents hang together: links lead somewhere, the site shows every page, the metadata is valid."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import promptbench

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("datasets/**/*.md")])
GROUPS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # of Keep a Changelog
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):  # another host
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_the_site_shows_every_page() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def leaves(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        children = entry.values() if isinstance(entry, dict) else entry
        assert not isinstance(children, str)
        return [leaf for child in children for leaf in leaves(child)]  # type: ignore[attr-defined]

    shown = leaves(config["nav"])
    assert len(shown) == len(set(shown))
    pages = {str(page.relative_to(ROOT)) for page in PAGES}
    assert pages <= set(shown)
    assert all((ROOT / page).is_file() for page in shown)


def test_readme_is_short_and_leads_to_every_guide() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split()) <= 1_413
    assert "make demo" in readme
    assert "make test" in readme
    for guide in ROOT.glob("docs/*.md"):
        assert f"docs/{guide.name}" in readme


def test_citation_has_what_the_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert citation["license"] == PROJECT["license"]
    assert str(citation["version"]) == PROJECT["version"] == promptbench.__version__
    works = [citation, *citation["references"]]
    for work in works:
        assert work["authors"]
        assert all(author.get("name") or author.get("family-names") for author in work["authors"])
        assert isinstance(work["title"], str)
        assert work["type"] in {"software", "article"}
    assert isinstance(citation["message"], str)


def test_changelog_keeps_its_format() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$", text, re.M)
    assert versions[0] == ("Unreleased", "")
    assert versions[1][0] == PROJECT["version"]
    assert all(date for _, date in versions[1:])
    assert len(versions) == len(re.findall(r"^## ", text, re.M))
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= GROUPS
