"""Small JSON files in the user's cache with a digest: a damaged file counts as missing."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from promptbench.errors import UserError
from promptbench.storage import write_atomic

#: Seconds. Two changes within one tick of a file system's clock leave the same times, and FAT has ticks of
#: two seconds: a file read this soon after its last change is read again.
TICK = 2.0


def read(path: Path) -> Any:
    """What `write` stored; None if it is missing or damaged. The first line is the digest of the rest."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
        return json.loads(content) if digest.decode() == hashlib.sha256(content).hexdigest() else None
    except (OSError, ValueError, RecursionError):
        return None


def write(path: Path, value: Any) -> None:
    """Store a JSON value. A cache that cannot be written costs time, never a result."""
    content = json.dumps(value, indent=0).encode()
    with suppress(UserError):
        write_atomic(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
