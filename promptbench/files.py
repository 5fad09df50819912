"""Files that are either whole or not there, and hashes of values and files."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from promptbench.errors import UserError


def write_atomic(path: Path, write: Callable[[BinaryIO], object] | bytes | str) -> None:
    """Write ``path`` so that a reader or a crash sees the old file or the new one, never a part.

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
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}; choose another folder or free it.") from None
    finally:
        Path(name).unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Raise UserError before any work is done if ``folder`` could not hold results."""
    probe = folder / ".writable"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


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
    """``PROMPTBENCH_CACHE``, or promptbench's folder in the user's cache directory."""
    return Path(os.environ.get("PROMPTBENCH_CACHE") or platformdirs.user_cache_path("promptbench"))
