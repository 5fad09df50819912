"""Files that are either whole or not there, locks, YAML of strangers, and hashes of values and files."""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import platformdirs
import yaml

from promptbench.errors import UserError

YAML_BOUND = 1 << 18  # characters of a YAML text, and of what its aliases stand for
_DIGITS = 1000  # of a number
ABANDONED = 3600  # seconds: nobody is still writing a temporary file that has not changed for so long
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `write_atomic` calls them


def write_atomic(path: Path, write: Callable[[BinaryIO], object] | bytes | str) -> None:
    """Write ``path`` so that a reader, a crash or a loss of power sees the old file or the new one, never a
    part. What was written before is on the disk before: files appear there in the order of the calls.

    Raises UserError if the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}; choose another folder or free it.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write.encode() if isinstance(write, str) else write)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; records are meant to be shared like any other output
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}; choose another folder or free it.") from None
    finally:
        remove(Path(name))


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> bool:
    """Delete a file; False if it was gone, or is not ours to delete."""
    try:
        path.unlink()
    except OSError:
        return False
    return True


def temporary(name: str) -> bool:
    """Whether a file is called as what `write_atomic` has not finished: a killed writer leaves it behind."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Delete what killed writers left in a folder, an hour ago or more."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if temporary(entry.name) and entry.stat().st_mtime < time.time() - ABANDONED:
                remove(Path(entry.path))


@contextmanager
def lock(path: Path, block: bool = True) -> Iterator[bool]:
    """Holds the kernel's lock ``path``, which a killed owner gives back: False if another process has it;
    with ``block`` its end is waited for.

    Where a file system knows no locks, or the file cannot be opened, it is granted to all: a marker file
    in its place would outlive its owner, and nobody could know.
    """
    own = filelock.FileLock(path, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own.acquire(blocking=block, poll_interval=0.1)
    except filelock.Timeout:
        yield False
        return
    except (OSError, NotImplementedError):
        yield True
        return
    try:
        yield True
    finally:
        with suppress(OSError):  # its folder was deleted meanwhile
            own.release()


def require_writable(folder: Path) -> None:
    """Raise UserError before any work is done if ``folder`` could not hold results."""
    probe = folder / ".writable"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


def parse_yaml(text: str | bytes) -> Any:
    """The plain values of a YAML text. Takes bounded time and memory: a text whose aliases stand for more
    than a text may hold is refused before it is built.

    Raises ValueError, in one line, for anything that is no YAML or too large.
    """
    if len(text) > YAML_BOUND:
        raise ValueError(f"it is larger than {YAML_BOUND >> 10} kB")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > YAML_BOUND:
            raise ValueError("its aliases (*name) stand for too much; write the values out")
        return loader.construct_document(node)
    except Exception as error:  # PyYAML fails in many ways: bytes, a date of no day, `!!bool perhaps`
        what = "" if isinstance(error, yaml.YAMLError | ValueError) else f"{type(error).__name__}: "
        raise ValueError(what + " ".join(str(error).split())) from None


def _written_out(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Characters of a node if every alias in it were written out; without end if it holds itself. Raises
    ValueError for a number of very many digits: reading 1:1:1 ... to the base of 60 takes their square."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        if own > _DIGITS and node.tag.endswith((":int", ":float")):
            raise ValueError(f"it has a number of {own} characters")
        sizes[id(node)] = 1 + own + sum(_written_out(part, sizes) for part in parts)
    return sizes[id(node)]


def read_yaml(path: Path, what: str) -> Any:
    """The plain values in a YAML file, which is ``what`` ("sweep"). Raises UserError if it cannot be read, or
    as `parse_yaml`."""
    try:
        with path.open("rb") as file:
            return parse_yaml(file.read(YAML_BOUND + 1))
    except OSError as error:
        raise UserError(f"Cannot read the {what} {path}: {error.strerror}; give a YAML file.") from None
    except ValueError as error:
        raise UserError(f"The {what} {path} is not valid YAML: {error}.") from None


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def hash_value(value: Any) -> str:
    """SHA-256 (hex) of a JSON-like value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_folder() -> Path:
    """``PROMPTBENCH_CACHE``, or promptbench's folder in the user's cache directory.

    Raises UserError for a user without a home (a container's, a service's) who names none.
    """
    if given := os.environ.get("PROMPTBENCH_CACHE"):
        return Path(given)
    with suppress(RuntimeError):  # what newer platformdirs raises; older ones answer with a relative path
        found = platformdirs.user_cache_path("promptbench")
        if found.is_absolute():
            return found
    raise UserError("There is no home folder for the cache; name a folder in PROMPTBENCH_CACHE.")
