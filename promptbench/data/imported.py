"""Few-shot samples of the official code, converted to our JSON: `promptbench data import-draw`."""

import re
from pathlib import Path

from promptbench.data.dataset import load
from promptbench.data.draws import draw_few_shot, draw_file, write_draw
from promptbench.data.official_draws import import_draw
from promptbench.errors import UserError


def convert_draw(file: Path, dataset: str, data_root: Path | None, draws: Path) -> str:
    """Write the sample in the pickle ``file`` (shot_<K>-seed_<S>.pkl) under the folder ``draws``.

    Returns a sentence with the path, the number of images, and whether the sample equals our own.
    Raises UserError for another file name, and for a file or dataset that cannot be read.
    """
    found = re.fullmatch(r"shot_(\d+)-seed_(\d+)\.pkl", file.name)
    if not found:
        raise UserError(f"{file.name} does not say its shots and seed; name it shot_<K>-seed_<S>.pkl.")
    shots, seed = int(found[1]), int(found[2])
    known = load(dataset, data_root, allow_nonstandard=True)
    train, val = import_draw(file, known)
    own, _ = draw_few_shot(known.splits["train"], known.splits["val"], shots, seed)
    path = draw_file(draws, known.name, shots, seed)
    write_draw(path, train, val)
    same = "equal to our own draw" if train == own else "not our own draw; use it with --draws"
    return f"wrote {path}: {len(train)} training images, {same}"
