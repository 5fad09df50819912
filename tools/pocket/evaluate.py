"""Tables and pictures of the pocket suite's card: what the backbone sees in it, and what its pictures show.

Zero-shot accuracy comes from the one evaluator; linear probes, on the same frozen features, say how much
the features hold beyond what class names reach. `figures` measures one dataset with any backbone.

    python -m tools.pocket.evaluate                                        # print the tables
    python -m tools.pocket.evaluate --card datasets/pocket/README.md --sheets docs/pocket
    python -m tools.pocket.evaluate --backbone build/seed2 --seeds 1 2 3   # a folder, files as shipped
"""

import argparse
import io
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from sklearn.linear_model import LogisticRegression

from promptbench.clip import backbones, weight_files, weights
from promptbench.clip.arithmetic import Arithmetic, suitable_threads
from promptbench.clip.cache import FeatureCache
from promptbench.clip.features import frozen_features
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.data.cards import Half
from promptbench.data.dataset import Dataset
from promptbench.data.splits import Item
from promptbench.data.views import Views
from promptbench.errors import UserError
from promptbench.methods._registry import get_method
from promptbench.storage import default_folder, hash_file, hash_value, write_atomic
from promptbench.training.counts import Counts, Evaluation
from promptbench.training.device import default_device
from promptbench.training.evaluate import evaluate
from promptbench.training.loop import create

SUITE = "pocket"
CURVE = Path(__file__).with_name("curve.csv")  # of the training that made the shipped weights
SEEDS = (1, 2, 3)
SHOTS = 16
GRID = np.logspace(-1, 3, 9)  # C of the linear probes, smallest first: ties go to the stronger penalty
BEGIN, END = "<!-- tables: make pocket-eval -->", "<!-- end of tables -->"

# A contact sheet: blocks of a class name above a row of pictures, 3 blocks to a page of about 1600 px.
COLUMNS, PER_SPLIT = 3, 4
PICTURE, GAP, MARGIN, LABEL = 64, 2, 14, 30  # px


@dataclass(frozen=True)
class Figures:
    """What is measured on one dataset: numbers of classes and pictures, accuracies on test in percent.

    ``base`` and ``novel`` are scored among the classes of their own half. ``probe_shots`` is the mean of
    the few-shot probes of the base half over the seeds, ``probe_shots_std`` their standard deviation
    (ddof 1, NaN with one seed), ``probe_all`` the probe of all classes on the whole train split.
    """

    dataset: str
    classes: int
    train: int
    val: int
    test: int
    fewest_train: int
    chance: float
    zeroshot: float
    zeroshot_base: float
    zeroshot_novel: float
    probe_shots: float
    probe_shots_std: float
    probe_all: float


def load_backbone(folder: Path | None = None, file: Path | None = None) -> FrozenCLIP:
    """The shipped backbone, or that of a folder with ``pocket.json`` and ``pocket.safetensors``.

    ``file``: other weights for it. Raises UserError as `weights.build_model`, or for files not there.
    """
    device, cache = default_device(), FeatureCache(default_folder())
    if folder is None:
        return FrozenCLIP.load(cards.POCKET, str(file) if file else None, device, cache)
    file = file or folder / "pocket.safetensors"
    try:
        config = json.loads((folder / "pocket.json").read_text())["model_cfg"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"There is no backbone in {folder}; it needs a pocket.json with model_cfg.") from None
    if not file.is_file():
        raise UserError(f"There is no weights file {file}; give one with --weights.")
    model = weights.build_model(config, weight_files.read_weights(file), file.name)
    shape = backbones.shape_of(config)
    return FrozenCLIP(model, shape, None, hash_file(file), hash_value(config), device, cache)


# ---------------------------------------------------------------------- figures


def figures(clip: FrozenCLIP, dataset: Dataset, seeds: Sequence[int] = SEEDS) -> Figures:
    """All figures of one dataset. Raises UserError if a class has fewer training pictures than shots."""
    with suitable_threads(clip.device, clip.shape):
        few = [probe(clip, dataset, dataset.few_shot(SHOTS, seed, "base"), "base") for seed in seeds]
        return Figures(
            dataset=dataset.name,
            classes=len(dataset.classnames),
            **{split: len(items) for split, items in dataset.splits.items()},
            fewest_train=min(Counter(item.label for item in dataset.splits["train"]).values()),
            chance=100 / len(dataset.classnames),
            zeroshot=zero_shot(clip, dataset).accuracy,
            zeroshot_base=zero_shot(clip, dataset, "base").accuracy,
            zeroshot_novel=zero_shot(clip, dataset, "novel").accuracy,
            probe_shots=pd.Series(few).mean(),
            probe_shots_std=pd.Series(few).std(ddof=1),
            probe_all=probe(clip, dataset, dataset.items("train")),
        )


def zero_shot(clip: FrozenCLIP, dataset: Dataset, half: Half = "all") -> Counts:
    """Zero-shot answers on the test pictures of a half, among its own classes."""
    kind = get_method("zeroshot")
    method = create(kind, clip, kind.Settings(), dataset.classes(half), seed=0)
    return evaluate(
        method,
        dataset,
        Evaluation(dataset=dataset.name, classes=half),
        arithmetic=Arithmetic(method.clip.device),
    ).counts


def by_style(clip: FrozenCLIP, dataset: Dataset) -> dict[str, Counts]:
    """Zero-shot answers on the test pictures of each drawing style, among all classes; {} without styles."""
    if not dataset.card.style:
        return {}
    groups: dict[str, list[Item]] = {}
    for item in dataset.splits["test"]:
        groups.setdefault(dataset.style(item), []).append(item)
    with suitable_threads(clip.device, clip.shape):
        return {
            style: zero_shot(clip, replace(dataset, splits={"test": items}))
            for style, items in sorted(groups.items())
        }


def probe(clip: FrozenCLIP, dataset: Dataset, train: Sequence[Item], half: Half = "all") -> float:
    """Test accuracy in percent of a logistic regression fitted to ``train``, all in one half's classes.

    C is the one of `GRID` that does best on the whole val split; val pictures are not trained on.
    """
    x, y = _features(clip, dataset, train)
    val, test = (_features(clip, dataset, dataset.items(split, half)) for split in ("val", "test"))
    fitted = (LogisticRegression(C=c, max_iter=5000).fit(x, y) for c in GRID)
    return 100 * max(fitted, key=lambda model: model.score(*val)).score(*test)


def _features(clip: FrozenCLIP, dataset: Dataset, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm frozen features [N, e] of the items' test views, and their labels [N]."""
    frozen = frozen_features(clip, dataset, items, Views(**clip.preprocess), None)
    return F.normalize(frozen, dim=-1).cpu().numpy(), np.array([item.label for item in items])


# ---------------------------------------------------------------------- tables


def tables(found: Sequence[Figures], styles: dict[str, dict[str, Counts]], seeds: Sequence[int]) -> str:
    """The tables of the card in Markdown, with what a reader must know to read them right."""
    sizes = [
        {
            "dataset": f.dataset,
            "classes": f"{f.classes}",
            "train pictures": f"{f.train:,}",
            "val": f"{f.val:,}",
            "test": f"{f.test:,}",
            "train pictures of the smallest class": f"{f.fewest_train}",
        }
        for f in found
    ]
    zero = [
        {
            "dataset": f.dataset,
            "all classes": f"{f.zeroshot:.1f}",
            "chance": f"{f.chance:.1f}",
            "times chance": f"{f.zeroshot / f.chance:.1f}",
            "base": f"{f.zeroshot_base:.1f}",
            "novel": f"{f.zeroshot_novel:.1f}",
        }
        for f in found
    ]
    probes = [
        {
            "dataset": f.dataset,
            f"base, {SHOTS} shots": f"{f.probe_shots:.1f}"
            + ("" if np.isnan(f.probe_shots_std) else f" ± {f.probe_shots_std:.1f}"),
            "above zero-shot base": f"{f.probe_shots - f.zeroshot_base:+.1f}",
            "all, whole train split": f"{f.probe_all:.1f}",
            "above zero-shot all": f"{f.probe_all - f.zeroshot:+.1f}",
        }
        for f in found
    ]
    drawn = [
        {
            "dataset": dataset,
            "style": style,
            "test pictures": f"{c.total:,}",
            "zero-shot": f"{c.accuracy:.1f}",
        }
        for dataset, counts in styles.items()
        for style, c in counts.items()
    ]
    over = f"mean ± standard deviation (ddof 1) over seeds {', '.join(map(str, seeds))}"
    parts = [
        _markdown(sizes),
        "Zero-shot accuracy on test, in percent, with each card's template. Base (the first half of the "
        "classes) and novel are each scored among their own classes; chance is that of all classes.",
        _markdown(zero),
        "Linear probes: logistic regression on the frozen image features, its penalty chosen on val; test "
        f"accuracy in percent. {SHOTS} shots: the harness's draw, {over if len(seeds) > 1 else 'one seed'}. "
        "Differences are to zero-shot accuracy of the same classes, in points.",
        _markdown(probes),
    ]
    if drawn:
        parts += [
            "Zero-shot accuracy by drawing style: all classes compete, only the test pictures of one style "
            "are scored; styles differ in the classes they draw.",
            _markdown(drawn, left=2),
        ]
    return "\n\n".join(parts) + "\n"


def _markdown(rows: Iterable[dict[str, str]], left: int = 1) -> str:
    frame = pd.DataFrame(rows)
    align = ["left"] * left + ["right"] * (frame.shape[1] - left)
    return frame.to_markdown(index=False, colalign=align, disable_numparse=True)


def read_around(card: Path) -> tuple[str, str]:
    """What stands in a card before and after its tables, markers included. Raises UserError without them."""
    try:
        text = card.read_text()
    except OSError as error:
        raise UserError(f"Cannot read {card}: {error.strerror}; give an existing file to --card.") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"{card} has no place for the tables; add the lines {BEGIN!r} and {END!r} to it.")
    return before + begin, end + after


# ---------------------------------------------------------------------- pictures


def contact_sheet(dataset: Dataset) -> Image.Image:
    """Every class with some train and then some test pictures: the same ones every time."""
    font = ImageFont.load_default(20)
    width = 2 * PER_SPLIT * (PICTURE + GAP) - GAP + 2 * MARGIN
    height = LABEL + PICTURE + MARGIN
    columns = min(COLUMNS, len(dataset.classnames))
    rows = -(-len(dataset.classnames) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for label, name in enumerate(dataset.classnames):
        column, row = divmod(label, rows)  # down the columns, like a list
        left, top = column * width + MARGIN, row * height + MARGIN
        pen.text((left, top), name, "black", font)
        stream = random.Random(f"sheet {dataset.name} {name}")
        for i, item in enumerate(_some(dataset, label, stream)):
            picture = ImageOps.pad(dataset.image(item.path), (PICTURE, PICTURE), color="white")
            sheet.paste(picture, (left + i * (PICTURE + GAP), top + LABEL))
    return sheet


def _some(dataset: Dataset, label: int, stream: random.Random) -> list[Item]:
    chosen = []
    for split in ("train", "test"):
        items = [item for item in dataset.splits[split] if item.label == label]
        chosen += stream.sample(items, min(PER_SPLIT, len(items)))
    return chosen


def write_sheet(dataset: Dataset, folder: Path) -> None:
    """Write ``folder / <dataset>.png``, in 256 colours: a third of the size, and hard to tell apart."""
    file = io.BytesIO()
    contact_sheet(dataset).quantize(256).save(file, "PNG", optimize=True)
    write_atomic(folder / f"{dataset.name}.png", file.getvalue())


def write_curve(source: Path, folder: Path) -> None:
    """Draw validation accuracy against pictures seen, over the stages of the training (``curve.csv``)."""
    import matplotlib.pyplot as plt

    curve = pd.read_csv(source).drop_duplicates(["stage", "step"], keep="last")
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    start = 0
    for number, (stage, rows) in enumerate(curve.groupby("stage", sort=False)):
        seen = (start + rows["pictures"]) / 1000
        for column, colour, label in (
            ("val_emoji", "#0072B2", "emoji, among all emoji names"),
            ("val_icons", "#D55E00", "icons, among the names of held-back icons"),
        ):
            axes.plot(seen, rows[column], "o-", color=colour, label=None if number else label, markersize=3)
        axes.axvline(start / 1000, color="0.8", linewidth=0.8)
        axes.annotate(str(stage), (start / 1000, 1), xycoords=("data", "axes fraction"), rotation=90,
                      va="top", fontsize=7, xytext=(2, -2), textcoords="offset points")  # fmt: skip
        start += int(rows["pictures"].max())
    axes.set(xlabel="thousands of pictures or captions seen", ylabel="accuracy on held-back drawings, %")
    axes.legend(fontsize=8, loc="lower right")
    file = io.BytesIO()
    figure.savefig(file, dpi=130)
    plt.close(figure)
    write_atomic(folder / "curve.png", file.getvalue())


# ---------------------------------------------------------------------- command line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", type=Path, help="file that takes the tables, between its two markers")
    parser.add_argument("--sheets", type=Path, help="folder that takes a contact sheet per dataset")
    parser.add_argument("--backbone", type=Path, help="folder with pocket.json and pocket.safetensors")
    parser.add_argument("--weights", type=Path, help="safetensors file instead of the backbone's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the few-shot draws")
    given = parser.parse_args()
    around = read_around(given.card) if given.card else None
    clip = load_backbone(given.backbone, given.weights)
    datasets = [data.load(name) for name in cards.suite(SUITE)]
    found = [figures(clip, dataset, given.seeds) for dataset in datasets]
    text = tables(found, {dataset.name: by_style(clip, dataset) for dataset in datasets}, given.seeds)
    print(text)
    if around:
        write_atomic(given.card, f"{around[0]}\n\n{text}\n{around[1]}")
    for dataset in datasets if given.sheets else ():
        write_sheet(dataset, given.sheets)
    if given.sheets:
        write_curve(CURVE, given.sheets)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
