"""Class names: what a prompt says of them, and label spaces."""

from dataclasses import dataclass


def readable(classname: str) -> str:
    """The class name as it goes into a prompt: underscores become blanks."""
    return classname.replace("_", " ")


@dataclass(frozen=True)
class Classes:
    """A label space: class names in label order, the dataset's zero-shot template and its name."""

    names: tuple[str, ...]
    template: str = "a photo of a {}."
    dataset: str = ""

    def __len__(self) -> int:
        return len(self.names)
