"""Hashes of the contents of image files, each file read once.

Names, sizes and times do not tell one image from another: archives and `rsync -a` set all of them. So a file
is hashed, and the hash is kept in the user's cache under what the system says of the file: size, times of
change of contents and of status, and inode. The system alone sets the time of change of status.
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
from promptbench.data.images import formats, several_frames
from promptbench.data.listing import note
from promptbench.storage import default_folder, hash_value

MANY = 5000  # files: above this reading them is announced
SEVERAL = "of several frames only the first is used"
_Stamp = tuple[int, int, int, int]


class Content(NamedTuple):
    """SHA-256 (hex) of a file's bytes, empty if it cannot be read; whether it is an image of several
    frames."""

    sha256: str
    several: bool = False


_tables: dict[Path, dict[str, tuple[_Stamp, Content]]] = {}  # by kept file: what this process knows


def contents(root: Path, paths: Iterable[str]) -> list[Content]:
    """What is in the files ``root / path``, in their order; files that changed since are read again.

    Reads in threads. One file per dataset folder keeps what was found; one that is damaged is made anew, and
    of two commands that write it at once the later wins: what is missing then is read again.
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
        print(f"Reading {len(missing):,} images in {root} once, to know them again ...", file=sys.stderr)
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
    """The note on images of several frames."""
    several = [path for path, one in zip(paths, found, strict=True) if one.several]
    return note(SEVERAL, several)


def _look(path: str) -> tuple[_Stamp | None, Content]:
    """A file's content, and its stamp if it can be known again by that."""
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
