"""Check types and imports of the package in the layout it is installed in: `make lint` calls this.

``methods/`` and ``datasets/`` are installed as ``promptbench.methods`` and ``promptbench.datasets``, which
mypy and import-linter do not see in the checkout. So both run on a copy in ``build/tree``; paths in their
messages are those of the checkout. ``python -m tools.tree mypy|imports`` runs one of them.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TREE = ROOT / "build" / "tree"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
#: Folders of the checkout that hold Python files, and their places in the copy.
PLACES = {
    **{folder: name.replace(".", "/") for name, folder in SETTINGS["setuptools"]["package-dir"].items()},
    **{"tools": "tools", "tests": "tests"},
}
COMMANDS = {
    "mypy": ["-m", "mypy"],
    "imports": ["-c", "import importlinter.cli as c; c.lint_imports_command()", "--no-logo", "--no-cache"],
}


def copies() -> Iterator[tuple[Path, Path]]:
    """Every file to copy and its place in the copy."""
    yield ROOT / "pyproject.toml", TREE / "pyproject.toml"  # the settings of both
    for folder, place in PLACES.items():
        for path in sorted((ROOT / folder).rglob("*.py*")):
            if path.suffix == ".py" or path.name == "py.typed":
                yield path, TREE / place / path.relative_to(ROOT / folder)


def refresh() -> None:
    """Make the copy equal to the checkout; files that did not change keep their times, for mypy's cache."""
    wanted = {target: source for source, target in copies()}
    for target in TREE.rglob("*.py*"):
        if target.is_file() and target not in wanted:
            target.unlink()
    for target, source in wanted.items():
        if not target.exists() or target.stat().st_mtime_ns != source.stat().st_mtime_ns:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def source_paths(text: str) -> str:
    """``text`` with the paths of the copy at the starts of lines replaced by those of the checkout."""
    for folder, place in PLACES.items():
        if folder != place:
            text = re.sub(rf"^{place}/", f"{folder}/", text, flags=re.MULTILINE)
    return text


def check(name: str) -> int:
    """Run one of `COMMANDS` over the copy and print its messages. Returns its exit code."""
    environment = {**os.environ, "PYTHONPATH": str(TREE), "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, *COMMANDS[name]], cwd=TREE, env=environment, capture_output=True, text=True
    )
    print(source_paths(done.stdout + done.stderr), end="", flush=True)
    return done.returncode


def main() -> int:
    refresh()
    return max([check(name) for name in sys.argv[1:] or COMMANDS])


if __name__ == "__main__":
    sys.exit(main())
