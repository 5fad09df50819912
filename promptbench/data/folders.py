"""Folders of images, listed once and cached for the user; and the lines of official lists."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from promptbench.data import kept
from promptbench.data.images import SUFFIXES, UNREADABLE
from promptbench.errors import UserError
from promptbench.storage import default_folder, hash_value

#: folders and files that systems and archives create
_IGNORED = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"}


class Tree(NamedTuple):
    """What a folder contains, without hidden files and folders (".x", and "._x" on Macs).

    ``images``: the sorted names of the images directly in each folder, by its path from the root, "" for the
    root; every folder is listed. ``others``: paths of files that are not images, and of broken links.
    ``outside``: paths of links that point outside the root; ``broken``: of links that point nowhere.
    """

    images: dict[str, list[str]]
    others: list[str]
    outside: list[str]
    broken: list[str]


def note(what: str, paths: Sequence[str]) -> list[str]:
    """A dataset's note on some of its files, with an example; empty if there are no such files."""
    number = f"{len(paths):,} file{'s' if len(paths) != 1 else ''}"
    return [f"{what}: {number}, such as {paths[0]!r}"] if paths else []


def outside_note(paths: Sequence[str]) -> list[str]:
    """The note on links that point outside a dataset's folder: reports show their targets too."""
    return note("read through links that point outside the folder", paths)


def list_folders(root: Path, dataset: str) -> dict[str, list[str]]:
    """Sub-folders of ``root`` and the sorted names of the images directly in each, as official loaders read
    class folders. Raises UserError as `list_tree`, or if there is no sub-folder."""
    images = list_tree(root, dataset, depth=1).images
    found = {folder: names for folder, names in images.items() if folder}
    if not found:
        raise UserError(f"{dataset}: there is no sub-folder in {root}; expected one per class.")
    return found


def list_tree(root: Path, dataset: str, depth: int | None = None) -> Tree:
    """What ``root`` contains, down to ``depth`` levels of folders (None: all).

    The list is cached with the mtime, ctime and inode of every folder and made again when one of them
    differs, so that a million names are listed once.
    Raises UserError if ``root`` is not a folder, a folder cannot be read, an image has a format that cannot
    be read, or a name is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(f"{dataset}: expected a folder with one sub-folder per class at {root}.")
    path = default_folder() / "listings" / f"{hash_value([str(root.resolve()), depth])}.json"
    known = kept.read(path)
    if known and all(_stamp(root / folder) == tuple(stamp) for folder, stamp in known["stamps"].items()):
        newest = max(stamp[1] for stamp in known["stamps"].values())
        if known["listed"] - newest > kept.TICK * 1e9:
            return Tree(*known["tree"])
    listed = time.time_ns()
    stamps: dict[str, tuple[int, int, int]] = {}
    tree = Tree({}, [], [], [])
    _walk(root, "", depth, dataset, tree, stamps, frozenset())
    if not tree.broken:  # their targets may appear without a change of any folder
        kept.write(path, {"listed": listed, "stamps": stamps, "tree": tree})
    return tree


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    try:
        seen = folder.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino


def _walk(
    root: Path,
    within: str,
    depth: int | None,
    dataset: str,
    tree: Tree,
    stamps: dict[str, tuple[int, int, int]],
    above: frozenset[tuple[int, int]],
) -> None:
    """Add the folder ``root / within`` and everything below it. ``above``: device and inode of its parents,
    so that circular links end."""
    folder = root / within
    try:
        seen = folder.stat()
    except OSError as error:
        raise UserError(
            f"{dataset}: {folder} cannot be read ({error.strerror}); repair or remove it."
        ) from None
    if (seen.st_dev, seen.st_ino) in above:
        return
    above |= {(seen.st_dev, seen.st_ino)}
    stamps[within] = seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino
    mine = tree.images[within] = []
    for entry in _entries(folder, dataset):
        if entry.name.startswith(".") or entry.name in _IGNORED:
            continue
        path = f"{within}/{entry.name}" if within else entry.name
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - of a million names
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself
            is_folder = is_file = False
        linked = entry.is_symlink() and (is_folder or is_file)
        if linked and not Path(os.path.realpath(entry.path)).is_relative_to(root.resolve()):
            tree.outside.append(path)
        if is_folder:
            if depth is None or within.count("/") + bool(within) < depth:
                _walk(root, path, depth, dataset, tree, stamps, above)
        elif suffix in UNREADABLE and within:
            raise UserError(
                f"{dataset}: {entry.path} has a format that cannot be read; convert it to JPEG or PNG."
            )
        elif suffix in SUFFIXES and is_file:
            mine.append(entry.name)
        else:
            tree.others.append(path)
            if entry.is_symlink() and not is_file:
                tree.broken.append(path)


def _entries(folder: Path, dataset: str) -> list[os.DirEntry[str]]:
    """Entries of a folder, by name. Raises UserError if it cannot be listed or a name is not UTF-8."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{dataset}: cannot list {folder} ({error.strerror}); repair or remove it.") from None
    for entry in found:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{dataset}: the name {os.fsencode(entry.name)!r} in {folder} is not UTF-8; rename it."
            ) from None
    return found


def read_lines(path: Path, dataset: str) -> list[str]:
    """The non-blank lines of an official list, stripped.

    Raises UserError if it cannot be read.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{dataset}: cannot read the official list {path}; restore it.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
