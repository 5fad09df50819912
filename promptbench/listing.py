"""Pictures in folders: one sub-folder per class, listed once and kept in the user's cache directory; and
the lines of official lists."""

import json
import os
from contextlib import suppress
from pathlib import Path

from promptbench.errors import UserError
from promptbench.files import default_folder, hash_value, write_atomic

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm"),
}
UNREADABLE = {".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw"}


def list_folders(root: Path, dataset: str) -> dict[str, list[str]]:
    """Sub-folders of ``root`` and the sorted names of the pictures in each; other files are skipped.

    Kept under a key of the folders' own times of change, so that a million names are listed once.
    Raises UserError if ``root`` is no folder, holds no sub-folder, if one cannot be read or holds pictures in
    a format that cannot, or a name is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(f"{dataset}: expected a folder with one sub-folder per class at {root}.")
    folders, times = [], []
    for entry in _entries(root, dataset):
        try:
            if entry.is_dir() and entry.name[0] != "." and entry.name != "__MACOSX":
                folders.append(entry.name)
                times.append((entry.name, entry.stat().st_mtime_ns))
        except OSError as error:
            raise UserError(
                f"{dataset}: {entry.path} cannot be read ({error.strerror}); repair or remove it."
            ) from None
    if not folders:
        raise UserError(f"{dataset}: there is no sub-folder in {root}; expected one per class.")
    path = default_folder() / "listings" / f"{hash_value([str(root.resolve()), times])}.json"
    with suppress(OSError, ValueError):
        return json.loads(path.read_text("utf-8"))
    found = {name: _pictures(root / name, dataset) for name in folders}
    with suppress(UserError):  # a cache that cannot be written costs time, never a result
        write_atomic(path, json.dumps(found))
    return found


def _entries(folder: Path, dataset: str) -> list[os.DirEntry[str]]:
    """What is in a folder, by name. Raises UserError if it cannot be listed or a name is not UTF-8."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{dataset}: cannot list {folder} ({error.strerror}).") from None
    for entry in found:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{dataset}: the name {os.fsencode(entry.name)!r} in {folder} is not UTF-8; rename it."
            ) from None
    return found


def _pictures(folder: Path, dataset: str) -> list[str]:
    found = []
    for entry in _entries(folder, dataset):
        suffix = Path(entry.name).suffix.lower()
        if suffix in UNREADABLE:
            raise UserError(
                f"{dataset}: {entry.path} is of a kind that cannot be read; convert it to JPEG or PNG."
            )
        if suffix in SUFFIXES and _is_file(entry):
            found.append(entry.name)
    return found


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
