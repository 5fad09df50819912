"""Pictures in folders: one sub-folder per class, listed once and kept in the user's cache directory; and
the lines of official lists."""

import json
import os
from contextlib import suppress
from pathlib import Path

from promptbench.cache import default_folder
from promptbench.errors import UserError
from promptbench.files import hash_value, write_atomic

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def list_folders(root: Path, dataset: str) -> dict[str, list[str]]:
    """Sub-folders of ``root`` and the sorted names of the pictures in each; other files are skipped.

    Kept under a key of the folders' own times of change, so that a million names are listed once.
    Raises UserError if ``root`` is no folder, holds no sub-folder, or one cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{dataset}: expected a folder with one sub-folder per class at {root}.")
    try:
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
        times = [(name, (root / name).stat().st_mtime_ns) for name in folders]
    except OSError as error:
        raise UserError(f"{dataset}: cannot list {root} ({error.strerror}).") from None
    if not folders:
        raise UserError(f"{dataset}: there is no sub-folder in {root}; expected one per class.")
    path = default_folder() / "listings" / f"{hash_value([str(root.resolve()), times])}.json"
    with suppress(OSError, ValueError):
        return json.loads(path.read_text("utf-8"))
    found = {name: _pictures(root / name, dataset) for name in folders}
    with suppress(UserError):  # a cache that cannot be written costs time, never a result
        write_atomic(path, json.dumps(found))
    return found


def _pictures(folder: Path, dataset: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if Path(e.name).suffix.lower() in SUFFIXES and _is_file(e))
    except OSError as error:
        raise UserError(f"{dataset}: cannot list {folder} ({error.strerror}).") from None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle
        return False


def read_lines(path: Path, dataset: str) -> list[str]:
    """The lines of an official list that are not blank, without blanks at their ends.

    Raises UserError if it cannot be read.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{dataset}: cannot read the official list {path}; restore it.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
