"""What an evaluation is asked for and what it counts: plain values, without torch."""

from typing import Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from promptbench.data.cards import Half, Split


class Evaluation(BaseModel):
    """Top-1 accuracy on one split of one dataset, among the classes of one half."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    classes: Half


class Confused(BaseModel):
    """``count`` test images of class ``true`` predicted as ``predicted``; paths of up to three."""

    model_config = ConfigDict(extra="forbid")

    true: str
    predicted: str
    count: int
    pictures: list[str]


class Counts(BaseModel):
    """One evaluation: images answered correctly and in all, also by class name; ``confused``: the ten
    most frequent mistakes; ``order``: hash of the images (path and label) in the order they were tested,
    which is that of the stored predictions (empty in schema 1)."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    classes: Half
    split: Split
    correct: NonNegativeInt
    total: PositiveInt
    per_class: dict[str, tuple[NonNegativeInt, NonNegativeInt]]
    confused: list[Confused] = []
    order: str = ""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if any(correct > total for correct, total in [(self.correct, self.total), *self.per_class.values()]):
            raise ValueError("more images answered correctly than there are")
        sums = tuple(map(sum, zip(*self.per_class.values(), strict=True)))
        if sums and sums != (self.correct, self.total):  # none where classes are not read
            raise ValueError("the counts by class do not add up to the total")
        return self

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.correct / self.total
