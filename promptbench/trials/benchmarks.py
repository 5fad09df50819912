"""The benchmarks. To add one, add an entry: it says how datasets become trials, which columns tables have,
what transfers to what, and where published numbers are.

Nothing here needs torch: tables and figures are made of trials and records alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from promptbench.data import cards
from promptbench.data.cards import Half
from promptbench.errors import UserError, unknown


@dataclass(frozen=True)
class Transfer:
    """Of a suite: the dataset to train on, and those to test on."""

    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """Where ``results/published.csv`` has the numbers of a benchmark, under the benchmark's own name.

    ``average``: what the file calls the average over datasets; ``setting``: regular expression of the papers'
    settings, its group is the number of shots; ``ablations``: under which name the file has ablations.
    """

    average: str
    setting: str = r"^(\d+)-shot\b"
    ablations: str = ""


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark turns datasets into trials: a trial trains on the classes ``train`` of one dataset
    and is tested, without further training, among each of the label spaces ``test`` of the same dataset or,
    in a transfer benchmark, of it (the source) and of every target. ``transfers``: by suite, which these
    are; only a transfer benchmark has them."""

    name: str
    summary: str
    shots: tuple[int, ...]
    train: Half
    test: tuple[Half, ...]
    transfers: Mapping[str, Transfer] = field(default_factory=dict)
    least_classes: int = 2
    published: Published | None = None

    @property
    def transfer(self) -> bool:
        """Whether one training is tested on other datasets."""
        return bool(self.transfers)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns of its tables."""
        return metrics_for(self.test)

    def datasets(self, suite: str) -> tuple[str | None, tuple[str, ...]]:
        """The dataset to train on, in a transfer benchmark, and the datasets to average over.

        Raises UserError for a suite that does not exist or that a transfer benchmark knows nothing of.
        """
        members = tuple(cards.suite(suite))
        if not self.transfer:
            return None, members
        if suite not in self.transfers:
            raise UserError(
                f"The suite {suite!r} names no source and targets for {self.name}; "
                "give them with --source and --dataset."
            )
        return self.transfers[suite].source, self.transfers[suite].targets


def metrics_for(spaces: Iterable[str]) -> tuple[str, ...]:
    """What is reported of accuracies among these label spaces: each of them and, of base and novel, their
    harmonic mean (hm)."""
    spaces = tuple(spaces)
    return (*spaces, *(("hm",) if {"base", "novel"} <= set(spaces) else ()))


_IMAGENET = r"^ImageNet (16)-shot source"  # both transfer benchmarks of the papers train on it

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "base2novel",
            "train on the base half of the classes, 16 shots; test base and novel half apart",
            (16,),
            "base",
            ("base", "novel"),
            # one class per half would be right by definition
            least_classes=4,
            published=Published("average11", ablations="ablation"),
        ),
        Benchmark(
            "fewshot",
            "train on all classes, 1/2/4/8/16 shots; test all",
            (1, 2, 4, 8, 16),
            "all",
            ("all",),
            published=Published("average11"),
        ),
        Benchmark(
            "crossdataset",
            "train on all classes of one dataset, 16 shots; test on the other datasets",
            (16,),
            "all",
            ("all",),
            transfers={
                "pocket": Transfer("icons", ("digits", "finegrained", "kinds", "symbols")),
                # Zhou et al. 2022 (CoCoOp)
                "standard": Transfer(
                    "imagenet",
                    (
                        "caltech101",
                        "oxford_pets",
                        "stanford_cars",
                        "oxford_flowers",
                        "food101",
                        "fgvc_aircraft",
                        "sun397",
                        "dtd",
                        "eurosat",
                        "ucf101",
                    ),
                ),
            },
            published=Published("average10", _IMAGENET),
        ),
        Benchmark(
            "domain",
            "train on all classes in one domain, 16 shots; test the same kind of classes in other domains",
            (16,),
            "all",
            ("all",),
            transfers={
                # one drawing style to the others
                "pocket": Transfer(
                    "icons:outline", ("icons:solid", "icons:duotone", "icons:colour", "icons:pixel")
                ),
                "standard": Transfer(
                    "imagenet", ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
                ),
            },
            published=Published("average_ood4", _IMAGENET),
        ),
    )
}
DEFAULT = "base2novel"


def get_benchmark(name: str) -> Benchmark:
    """The benchmark called ``name``. Raises UserError with the nearest name."""
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS, "See `promptbench ls benchmarks`.")
    return BENCHMARKS[name]
