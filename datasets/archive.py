"""Pictures and ``split.json`` in one zip file or in a folder."""

import zipfile
import zlib
from functools import partial
from pathlib import Path

from promptbench.cards import Card
from promptbench.data import Found, read_file, read_splits
from promptbench.errors import UserError
from promptbench.files import hash_file, hash_value


def load(card: Card, folder: Path) -> Found:
    """The splits and pictures under ``folder / card.source``. Raises UserError if they are not there."""
    source = folder / card.source
    if source.is_dir():
        return _folder(source)
    if not zipfile.is_zipfile(source):
        raise UserError(f"{card.name}: expected a zip file or a folder with split.json at {source}.")
    try:
        with zipfile.ZipFile(source) as archive:
            # Read whole: embedded archives are a few MB, and worker processes then share no file handle.
            files = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        raise UserError(f"{source} cannot be unpacked ({error}); get the file again.") from None
    if "split.json" not in files:
        raise UserError(f"{card.name}: there is no split.json in {source}.")
    splits, _ = read_splits(files["split.json"], f"split.json in {source}")
    return Found(splits, files.__getitem__, hash_file(source))


def _folder(root: Path) -> Found:
    split = root / "split.json"
    if not split.is_file():
        raise UserError(f"There is no split.json in {root}; put the split file there.")
    splits, fingerprint = read_splits(split.read_bytes(), str(split))
    inside = root.resolve()
    sizes: dict[str, int] = {}
    for item in (item for items in splits.values() for item in items):
        path = (root / item.path).resolve()
        if not path.is_relative_to(inside):  # a link may lead out too
            raise UserError(f"{split} names {item.path!r}, which lies outside {root}; correct the path.")
        if not path.is_file():
            raise UserError(f"{split} names {item.path!r}, which is not in {root}; restore the picture.")
        sizes[item.path] = path.stat().st_size

    # Sizes stand for the contents, which would take minutes to hash in a large dataset; times would make
    # a copy of a dataset another one.
    return Found(splits, partial(read_file, root), hash_value([fingerprint, sizes]))
