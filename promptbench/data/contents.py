"""Hashes of the contents of image files, each file read once.

Names, sizes and modification times do not identify an image: archives and `rsync -a` set all of them. So each
file is hashed, and the hash is cached for the user together with the file's size, mtime, ctime and inode.
Only the system sets ctime.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from promptbench.data import kept
from promptbench.data.folders import note
from promptbench.data.images import formats, several_frames
from promptbench.storage import default_folder, hash_value

MANY = 5000  # files; reading more than this prints a message
SEVERAL = "only the first of several frames is used"
_Stamp = tuple[int, int, int, int]


class Content(NamedTuple):
    """SHA-256 (hex) of a file's bytes, empty if it cannot be read; whether it is an image of several
    frames."""

    sha256: str
    several: bool = False


_tables: dict[Path, dict[str, tuple[_Stamp, Content]]] = {}  # by kept file: what this process knows


def contents(root: Path, paths: Iterable[str]) -> list[Content]:
    """Contents of the files ``root / path``, in order; files that changed since the last call are read again.

    Reads in threads. One cache file per dataset folder holds the results. A damaged cache file is replaced;
    if two commands write it at once, the later one wins and missing entries are read again.
    """
    wanted, resolved = list(paths), root.resolve()
    path = default_folder() / "contents" / f"{hash_value(str(resolved))}.json"
    table = _tables.get(path)
    if table is None:
        table = _tables[path] = _read(path)
    stamps = {one: _stamp(f"{resolved}/{one}") for one in wanted}
    found = {}
    for one, stamp in stamps.items():
        if stamp is None:
            found[one] = Content("")  # reading it as an image will say what is wrong
        elif one in table and table[one][0] == stamp:
            found[one] = table[one][1]
    missing = [one for one in stamps if one not in found]
    if len(missing) > MANY:
        print(f"Reading {len(missing):,} images in {root} once, to detect later changes ...", file=sys.stderr)
    if missing:
        formats()  # here: Pillow loads its plugins, which threads must not do at once
        with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
            read = dict(zip(missing, pool.map(lambda one: _look(f"{resolved}/{one}"), missing), strict=True))
        found |= {one: content for one, (_, content) in read.items()}
        new = {one: (stamp, content) for one, (stamp, content) in read.items() if stamp is not None}
        if new:
            table |= new
            kept.write(path, _read(path) | table)
    return [found[one] for one in wanted]


def frames_note(paths: Sequence[str], found: Sequence[Content]) -> list[str]:
    """The note on images with several frames."""
    several = [path for path, one in zip(paths, found, strict=True) if one.several]
    return note(SEVERAL, several)


def _look(path: str) -> tuple[_Stamp | None, Content]:
    """A file's content, and its stamp if the stamp identifies that content."""
    try:
        before = _stamp(path)
        with open(path, "rb") as file:  # noqa: PTH123 - a million Path objects take longer than the hashes
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            known = Content(digest, several_frames(file))
        after = _stamp(path)
    except OSError:
        return None, Content("")
    settled = before is not None and before == after and time.time_ns() - before[2] > kept.TICK * 1e9
    return (before if settled else None), known


def _stamp(path: str) -> _Stamp | None:
    try:
        seen = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino


def _read(path: Path) -> dict[str, tuple[_Stamp, Content]]:
    found = kept.read(path) or {}
    return {one: (tuple(stamp), Content(*content)) for one, (stamp, content) in found.items()}
