"""Images and ``split.json`` in one zip file or in a folder."""

import os
import zipfile
import zlib
from functools import partial
from pathlib import Path

from promptbench.data.cards import Card
from promptbench.data.contents import contents, frames_note
from promptbench.data.dataset import Found, read_file
from promptbench.data.folders import outside_note
from promptbench.data.splits import Item, Splits, normal, read_splits
from promptbench.errors import UserError
from promptbench.storage import hash_file, hash_value


def load(card: Card, folder: Path) -> Found:
    """The splits and images under ``folder / card.source``. Raises UserError if they are not there."""
    source = folder / card.source
    if source.is_dir():
        return _folder(source)
    if not zipfile.is_zipfile(source):
        raise UserError(f"{card.name}: expected a zip file or a folder with split.json at {source}.")
    try:
        with zipfile.ZipFile(source) as archive:
            # Read whole: embedded archives are a few MB, and worker processes then share no file handle.
            files = {normal(name): archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        raise UserError(f"{source} cannot be unpacked ({error}); get the file again.") from None
    if "split.json" not in files:
        raise UserError(f"{card.name}: there is no split.json in {source}.")
    splits, _ = read_splits(files["split.json"], f"split.json in {source}")
    for item in _items(splits):
        if item.path not in files:
            raise UserError(
                f"split.json in {source} names {item.path!r}, which is not in it; restore the image."
            )
    return Found(splits, files.__getitem__, hash_file(source))


def _folder(root: Path) -> Found:
    split = root / "split.json"
    if not split.is_file():
        raise UserError(f"There is no split.json in {root}; put the split file there.")
    splits, fingerprint = read_splits(split.read_bytes(), str(split))
    inside, outside = f"{root.resolve()}{os.sep}", []
    paths = list(dict.fromkeys(item.path for item in _items(splits)))
    for path in paths:
        real = os.path.realpath(root / path)
        if not Path(real).is_file():
            what = f"a link to {real}, which is not there" if real != inside + path else f"not in {root}"
            raise UserError(f"{split} names {path!r}, which is {what}; restore the image.")
        if not real.startswith(inside):
            outside.append(path)
    found = contents(root, paths)
    notes = (*outside_note(outside), *frames_note(paths, found))
    prints = [fingerprint, [one.sha256 for one in found]]
    return Found(splits, partial(read_file, root), hash_value(prints), notes=notes)


def _items(splits: Splits) -> list[Item]:
    return [item for items in splits.values() for item in items]
