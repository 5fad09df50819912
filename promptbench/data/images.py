"""Image files as images in RGB: which formats are read, and how an image is decoded.

JPEG, JPEG 2000, PNG, WebP, AVIF (where Pillow supports it), BMP, TIFF, GIF and PPM/PGM are read, whatever the
file name. Nothing else is tried, since Pillow passes some formats (PostScript) to other programs.

- Standard datasets are read as their official loaders do: ``convert("RGB")`` and nothing more.
- Any other image is rotated by its EXIF orientation, and transparent parts become white.
- The first of several frames (GIF, WebP, AVIF, TIFF) is used; a dataset's notes say so.
- Images with more pixels than Pillow accepts (179 million by default, twice `PIL.Image.MAX_IMAGE_PIXELS`) are
refused.
"""

import io
import warnings
from contextlib import suppress
from functools import cache
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm"),
}
#: kinds of images that users have and that cannot be read
UNREADABLE = {".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw"}
FORMATS = ("JPEG", "JPEG2000", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")


def quiet() -> None:
    """Silence Pillow's warnings: it prints lines of its own source for damaged metadata and large images.
    This module reports what matters."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


quiet()


@cache
def formats() -> tuple[str, ...]:
    """The `FORMATS` that this Pillow can read."""
    Image.init()
    return tuple(one for one in FORMATS if one in Image.OPEN)


def decode(found: bytes | Image.Image, official: bool) -> Image.Image:
    """The image in RGB; ``official``: as the loaders of the standard datasets read it.

    Raises ValueError with the cause, or whatever Pillow raises for a damaged file.
    """
    image = _open(io.BytesIO(found)) if isinstance(found, bytes) else found
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        raise ValueError("more than 8 bits per channel; convert it")
    if official:
        return image.convert("RGB")
    image.load()
    with suppress(Exception):  # damaged EXIF data do not make an image unreadable
        image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def several_frames(file: BinaryIO) -> bool:
    """Whether an image file holds more than one frame; False if it cannot be read at all."""
    jpeg = file.read(2) == b"\xff\xd8"  # a second image in it is a preview or a depth map
    file.seek(0)
    if jpeg:
        return False
    try:
        return getattr(_open(file), "n_frames", 1) > 1
    except Exception:  # decoding it will say what is wrong
        return False


def _open(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=formats())
    except UnidentifiedImageError:
        raise ValueError("not an image of a known format") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(
            f"more than the limit of {limit:,} pixels; make it smaller, a backbone sees a few "
            "hundred pixels a side"
        ) from None
