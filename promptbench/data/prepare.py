"""Prepare data on disk: unpack what the user downloaded, sort ImageNet's val images into class folders.

Nothing is downloaded. No other code writes into a data folder.
"""

import csv
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from promptbench.data import dataset as data
from promptbench.data.cards import Card, cards
from promptbench.errors import UserError, unknown

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


def prepare(names: list[str], root: Path) -> Iterator[str]:
    """Prepare datasets by name (none: all standard ones); yields one line per action.

    Archives are searched in the data root and in the dataset's folder, under their published names. Raises
    UserError for an archive that is damaged or would write outside its folder, and at the end if no dataset
    can be used.
    """
    standard = [name for name, (card, _) in cards().items() if card.folder]
    for name in names:
        if name not in standard:
            raise unknown("dataset", name, standard)
    if not root.is_dir():
        raise UserError(f"There is no data root {root}; give an existing folder with --data-root.")
    ready = 0
    for name in names or standard:
        card = cards()[name][0]
        done = list(_unpack_all(card, root))
        if name == "imagenet":
            done += _sort_val(root / card.folder)
        for line in done:
            yield f"{name}: {line}"
        try:
            data.load(name, root)  # lists folders, which is kept
            ready += 1
            yield f"{name}: ready"
        except UserError as error:
            yield f"{name}: not ready. {error}"
    if not ready:
        raise UserError(
            "No dataset is ready; `promptbench data check` lists what is missing and where to get it."
        )


def _unpack_all(card: Card, root: Path) -> Iterator[str]:
    folder = root / card.folder
    for archive in card.archives:
        path = next((p for p in (root / archive.file, folder / archive.file) if p.is_file()), None)
        target = folder / archive.to
        if path is None or (folder / archive.makes).exists():
            continue
        unpack(path, target, archive.strip)
        if not (folder / archive.makes).exists():
            raise UserError(
                f"{path} did not contain {archive.makes}, so it is not {card.name}; download the right one."
            )
        yield f"unpacked {path.name} into {target}"


def unpack(archive: Path, target: Path, strip: str = "") -> None:
    """Unpack a zip or tar archive into ``target``; if ``strip`` is given, only what is under that folder.

    All or nothing: unpacked into a temporary folder first. Raises UserError for a damaged archive, or
    one with a member that is a link or would be written outside the target.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".unpacking-") as name:
            place = Path(name)
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, place, strip)
            else:
                _unpack_tar(archive, place, strip)
            for entry in sorted(place.iterdir()):
                if (target / entry.name).exists():
                    raise UserError(
                        f"{target / entry.name} exists already; remove it to unpack {archive} again."
                    )
            for entry in sorted(place.iterdir()):
                entry.rename(target / entry.name)
    except (*_DAMAGED, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{archive} cannot be unpacked ({' '.join(str(error).split())}); download it again."
        ) from None
    except OSError as error:
        raise UserError(f"Cannot unpack {archive} into {target}: {error.strerror or error}.") from None


def _inside(name: str, archive: Path, strip: str) -> PurePosixPath | None:
    """Where a member goes, None if it is not under ``strip``."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\x00" in name:
        raise UserError(
            f"{archive} contains the path {name!r}, which leads outside its folder; do not use it."
        )
    prefix = PurePosixPath(strip).parts
    return PurePosixPath(*path.parts[len(prefix) :]) if path.parts[: len(prefix)] == prefix else None


def _unpack_zip(archive: Path, place: Path, strip: str) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            inside = _inside(member.filename, archive, strip)
            if inside is None or member.is_dir():
                continue
            if (member.external_attr >> 16) & 0o170000 == 0o120000:
                raise UserError(f"{archive} contains the link {member.filename!r}; do not use this file.")
            (place / inside).parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, (place / inside).open("wb") as out:
                shutil.copyfileobj(source, out)


def _unpack_tar(archive: Path, place: Path, strip: str) -> None:
    with tarfile.open(archive) as file:
        for member in file:
            inside = _inside(member.name, archive, strip)
            if inside is None or member.isdir():
                continue
            if not member.isfile():
                raise UserError(
                    f"{archive} contains the link or device {member.name!r}; do not use this file."
                )
            (place / inside).parent.mkdir(parents=True, exist_ok=True)
            source = file.extractfile(member)
            assert source is not None
            with source, (place / inside).open("wb") as out:
                shutil.copyfileobj(source, out)
        while file.fileobj and file.fileobj.read(1 << 20):
            pass  # to the end, where gzip has its checksum


def _sort_val(folder: Path) -> Iterator[str]:
    """Move ``images/val/ILSVRC2012_val_*.JPEG`` into folders of their classes, if a list says which.

    The list is Kaggle's ``LOC_val_solution.csv`` or a text file ``val.txt`` of lines ``<file> <wnid>``.
    """
    val = folder / "images" / "val"
    loose = (
        sorted(e.name for e in os.scandir(val) if e.is_file() and e.name.endswith(".JPEG"))
        if val.is_dir()
        else []
    )
    if not loose:
        return
    classes: dict[str, str] = {}
    if (folder / "LOC_val_solution.csv").is_file():
        with (folder / "LOC_val_solution.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                classes[f"{row['ImageId']}.JPEG"] = row["PredictionString"].split()[0]
    elif (folder / "val.txt").is_file():
        for line in (folder / "val.txt").read_text().splitlines():
            name, _, wnid = line.strip().partition(" ")
            classes[name] = wnid.strip()
    else:
        yield (
            f"{len(loose):,} images in {val} are not sorted; put LOC_val_solution.csv (Kaggle) or val.txt "
            f"(lines '<file> <wnid>') into {folder}"
        )
        return
    unknown_ = [name for name in loose if not classes.get(name, "").startswith("n")]
    if unknown_:
        raise UserError(f"The list in {folder} has no class for {unknown_[0]}; complete it.")
    for name in loose:
        (val / classes[name]).mkdir(exist_ok=True)
        (val / name).rename(val / classes[name] / name)
    yield f"sorted {len(loose):,} images of val into {len({classes[name] for name in loose})} folders"
