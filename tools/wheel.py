"""Build the wheel, install it in an empty environment and run it there: `make wheel-check`.

The wheel is built from the files that git knows or would add, without left-overs of an earlier build.
``--share`` takes the dependencies from the running environment instead of downloading them.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
ROOMS = {"promptbench": "promptbench", "methods": "promptbench/methods", "datasets": "promptbench/datasets"}
SINGLE = {"results/__init__.py", "results/published.csv"}  # the records stay in the repository


def tracked() -> list[str]:
    """Paths of the checkout's files, relative to it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in output.split("\0") if path and (ROOT / path).is_file()]


def expected(paths: list[str]) -> set[str]:
    """Names in the wheel of those ``paths`` that belong to the package."""
    names = {f"promptbench/{path}" for path in SINGLE}
    for path in paths:
        top, *rest = PurePosixPath(path).parts
        if top in ROOMS and rest:
            names.add("/".join([ROOMS[top], *rest]))
    return names


def build(paths: list[str], folder: Path) -> Path:
    """The wheel of these files, built in ``folder``."""
    source = folder / "source"
    for path in paths:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path, share: bool) -> Path:
    """A new environment in ``folder`` with the wheel in it; returns its folder of programs."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if share:
        # Paths in a .pth file are searched last; .pth files in them (of editable installs) are not read.
        (own,) = folder.glob("lib/python*/site-packages")
        shared = [path for path in sys.path if Path(path).name == "site-packages"]
        (own / "shared.pth").write_text("\n".join(shared) + "\n")
        pip.append("--no-deps")
    subprocess.run([*pip, str(wheel)], check=True)
    return programs


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the wheel, install it elsewhere and try it.")
    parser.add_argument("--share", action="store_true", help="take the dependencies from this environment")
    share = parser.parse_args().share
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = tracked()
        wheel = build(paths, folder)
        with zipfile.ZipFile(wheel) as archive:
            packed = {entry for entry in archive.namelist() if ".dist-info/" not in entry}
        wanted = expected(paths)
        for what, names in (("missing from", wanted - packed), ("only in", packed - wanted)):
            for entry in sorted(names):
                print(f"{what} the wheel: {entry}", file=sys.stderr)
        if packed != wanted:
            return 1
        programs = install(wheel, folder / "venv", share)
        # In an empty folder, so that the checkout cannot be imported.
        (folder / "empty").mkdir()
        where = "import promptbench, sys; sys.exit(not promptbench.__file__.startswith(sys.prefix))"
        commands = [
            ["python", "-c", where],
            ["promptbench", "--version"],
            ["promptbench", "ls", "methods"],
            ["promptbench", "ls", "datasets"],
        ]
        for program, *arguments in commands:
            subprocess.run([str(programs / program), *arguments], cwd=folder / "empty", check=True)
        print(
            f"{wheel.name}: {len(packed)} files, the same as in the checkout; it runs in a clean environment."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
