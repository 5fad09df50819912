"""Documents hang together: links lead somewhere, the site shows every page, the metadata is valid."""

import pkgutil
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


ROOMS = {path.name for path in (ROOT / "promptbench").iterdir() if path.is_dir()}
TOP = {"promptbench", "methods", "datasets", "results", "tests", "tools", "examples", "docs"}
EXAMPLES = {"methods/shallow.py"}  # files that a guide tells the reader to write


def gone(text: str) -> list[str]:
    """Code that a text names but that does not exist: Python files, rooms ("reporting/plots/"), and modules
    or what is in them ("promptbench.errors.UserError")."""
    missing = []
    for path in re.findall(r"(?<![\w./<-])((?:\w+/)+(?:\w+\.py\b|(?=[`\s,.;)])))", text):
        ours = path.split("/")[0] in TOP | ROOMS and path not in EXAMPLES
        if ours and not any((folder / path).exists() for folder in (ROOT, ROOT / "promptbench")):
            missing.append(path)
    for name in re.findall(r"\bpromptbench(?:\.[A-Za-z_]\w*)+", text):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_that_a_page_names_exists(page: Path) -> None:
    if page.name != "CHANGELOG.md":  # it names what was
        assert gone(page.read_text("utf-8")) == []


def test_code_that_is_gone_is_noticed() -> None:
    text = "See `data/gone.py`, reporting/nowhere/, promptbench.errors.UserError and `promptbench.missing`;"
    assert gone(f"{text} trainers/coop.py is theirs.") == [
        "data/gone.py",
        "reporting/nowhere/",
        "promptbench.missing",
    ]


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
    released = f"## [{PROJECT['version']}] - {citation['date-released']}"
    assert released in (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert citation["type"] == "software"
    assert citation["authors"]
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])
    assert isinstance(citation["message"], str)


def test_changelog_keeps_its_format() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$", text, re.M)
    assert versions[0] == ("Unreleased", "")
    assert versions[1][0] == PROJECT["version"]
    assert all(date for _, date in versions[1:])
    assert len(versions) == len(re.findall(r"^## ", text, re.M))
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= GROUPS


def test_every_package_is_installed() -> None:
    """The packages in pyproject.toml are the folders with an ``__init__.py``, at the places they map to."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for package, folder in setuptools["package-dir"].items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert len(setuptools["packages"]) == len(set(setuptools["packages"]))
    assert set(setuptools["packages"]) == found
