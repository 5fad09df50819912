"""A finished trial as a classifier of images: backbone, method and learned prompts put together again."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from promptbench.clip.arithmetic import autocast
from promptbench.clip.features import in_chunks
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.weights import weights_identity
from promptbench.data import dataset as data
from promptbench.data.classnames import Classes
from promptbench.data.images import decode
from promptbench.data.views import Views
from promptbench.errors import UserError, invalid
from promptbench.methods._base import Batch, Method
from promptbench.methods._registry import get_method
from promptbench.training.device import default_device
from promptbench.training.files import PROMPTS
from promptbench.training.loop import create
from promptbench.trials.record import Fault, Record, examine

Images = Image.Image | Sequence[Image.Image] | Tensor


class Classifier:
    """A trained method that tells the classes ``classnames`` apart, in the precision it was trained in.

    Images are one PIL image, a list of them (of any size; resized and cropped as test images are), or a
    tensor [B, 3, H, W] that is already what the backbone takes: H = W = its image size, normalised.
    """

    def __init__(self, method: Method, record: Record, classes: Classes, official: bool = False) -> None:
        """``official``: PIL images are converted as the loaders of the standard datasets do."""
        self.method, self.record, self.classes = method.eval(), record, classes
        self._official = official
        self._views = Views(**method.clip.preprocess)
        with torch.no_grad(), autocast(method.clip.device, record.trial.precision):
            self._classifier = method.classifier(classes)

    @property
    def classnames(self) -> tuple[str, ...]:
        """The names of the C classes, in the order of the logits."""
        return self.classes.names

    @torch.no_grad()
    def __call__(self, images: Images) -> Tensor:
        """Logits [B, C] in fp32 on the backbone's device, on the scale of the backbone's softmax.

        Raises UserError for a tensor of another shape and for an image that cannot be converted to RGB.
        """
        clip, method = self.method.clip, self.method
        found = []
        with autocast(clip.device, self.record.trial.precision):
            for batch in in_chunks(self._pixels(images)):
                labels = torch.zeros(len(batch), dtype=torch.long, device=clip.device)
                if method.needs_images:
                    given = Batch(labels, images=batch)
                else:
                    given = Batch(labels, frozen=clip.image_features(batch).float())
                found.append(method.logits(given, self._classifier).float())
        return torch.cat(found) if found else torch.zeros(0, len(self.classes), device=clip.device)

    def probabilities(self, images: Images) -> Tensor:
        """Softmax of the logits [B, C]: every row sums to 1."""
        return self(images).softmax(dim=-1)

    def predict(self, images: Images) -> list[str]:
        """The name of the most probable class of each image."""
        return [self.classnames[label] for label in self(images).argmax(dim=-1).tolist()]

    def _pixels(self, images: Images) -> Tensor:
        """What the backbone takes: [B, 3, H, W] on its device."""
        size, device = self._views.size, self.method.clip.device
        if isinstance(images, Tensor):
            if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
                raise UserError(
                    f"Images must be a tensor [B, 3, {size}, {size}], not {list(images.shape)}; or give PIL "
                    "images, which are resized."
                )
            return images.to(device, torch.float32)
        several = [images] if isinstance(images, Image.Image) else list(images)
        if not all(isinstance(image, Image.Image) for image in several):
            raise UserError(
                "Images must be PIL images or a tensor [B, 3, H, W]; open files with PIL.Image.open."
            )
        try:
            views = [self._views.test(decode(image, self._official)) for image in several]
        except ValueError as error:
            raise UserError(f"An image cannot be read: {error}.") from None
        if not views:
            return torch.zeros(0, 3, size, size, device=device)
        return self._views.normalise(torch.stack(views).to(device))


def load_classifier(
    path: Path,
    dataset: str | Path | data.Dataset | None = None,
    classes: Sequence[str] | None = None,
    pretrained: str | None = None,
    data_root: Path | None = None,
    device: str | None = None,
) -> Classifier:
    """See `promptbench.load`."""
    folder = path if path.is_dir() else path.parent
    record = examine(folder)
    if record is None:
        raise UserError(f"There is no record in {folder}; give the folder of a finished trial.")
    if isinstance(record, Fault):
        raise record.error
    if damage := record.damage(folder):
        raise UserError(f"{folder}: {damage}; run the trial again.")
    trial = record.trial
    where = pretrained or trial.pretrained
    if weights_identity(trial.backbone, where) != trial.weights:
        raise UserError(
            f"The weights of {trial.backbone} are not those that the trial was trained with; give their file "
            "with pretrained=..."
        )
    known = _dataset(record, dataset, data_root)
    trained = known.classes(trial.train_classes)
    kind = get_method(trial.method)
    clip = FrozenCLIP.load(trial.backbone, where, default_device(device))
    try:
        settings = kind.Settings(**trial.settings)
    except ValidationError as error:
        raise invalid(error, f"The record in {folder}") from None
    method = create(kind, clip, settings, trained, trial.seed)
    if method.state_dict():
        try:
            state = load_file(folder / PROMPTS)
            method.load_state_dict(state)
        except (OSError, RuntimeError, SafetensorError) as error:
            cause = str(error).split("\n")[0]
            raise UserError(f"{folder / PROMPTS} does not fit the method ({cause}); run it again.") from None
    asked = trained if classes is None else Classes(tuple(classes), trained.template, trained.dataset)
    if not asked.names:
        raise UserError("There are no classes to tell apart; name some in classes=[...].")
    return Classifier(method, record, asked, known.official)


def _dataset(record: Record, given: str | Path | data.Dataset | None, data_root: Path | None) -> data.Dataset:
    """The dataset that the trial was trained on: its class names and template are part of the classifier."""
    name = record.trial.dataset
    if isinstance(given, data.Dataset):
        found = given
    else:
        labelled = any(label.startswith(f"{name}:") for label in record.labels)
        try:
            found = data.load(str(given or name), data_root, labelled, None)
        except UserError as error:
            if given is not None:
                raise
            raise UserError(f"{error} Give the dataset with dataset=..., a card or a folder.") from None
    if found.fingerprint != record.hashes.get("data"):
        raise UserError(
            f"The dataset {found.name} has changed since the trial was trained: its class names, splits or "
            "images differ; give the right one with dataset=..."
        )
    return found
