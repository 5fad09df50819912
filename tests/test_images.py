"""Images as people see them: upright, on white, the first frame; and no formats but those that are named."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptbench.data import dataset as data
from promptbench.data import images
from promptbench.data.images import decode, several_frames
from tests import mini
from tests.test_standard import own


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def drawing(mode: str) -> Image.Image:
    """A black stroke on a transparent ground whose hidden colour is black."""
    image = Image.new(mode, (4, 4), 0)
    image.putpixel((1, 2), (0, 255) if mode == "LA" else (0, 0, 0, 255))
    return image


def palette(transparency: int | bytes) -> bytes:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0] * 256)
    image.putpixel((1, 2), 1)
    return encoded(image, "PNG", transparency=transparency)


def keyed() -> bytes:
    """A grey image one of whose greys means transparent."""
    image = Image.new("L", (4, 4), 7)
    image.putpixel((1, 2), 0)
    return encoded(image, "PNG", transparency=7)


@pytest.mark.parametrize(
    "content",
    [
        encoded(drawing("RGBA"), "PNG"),
        encoded(drawing("LA"), "PNG"),
        encoded(drawing("RGBA"), "WEBP", lossless=True, exact=True),
        encoded(drawing("RGBA"), "TIFF"),
        palette(0),
        palette(b"\0\xff"),
        keyed(),
    ],
    ids=["RGBA", "LA", "WebP", "TIFF", "palette", "palette with bytes", "keyed grey"],
)
def test_transparency_lies_on_white(content: bytes) -> None:
    seen = decode(content, official=False)
    assert (seen.mode, seen.getpixel((0, 0)), seen.getpixel((1, 2))) == ("RGB", (255,) * 3, (0, 0, 0))
    official = decode(content, official=True)
    assert official.tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def test_half_transparent_is_half_white() -> None:
    content = encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG")
    assert decode(content, official=False).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_own_images_are_upright(orientation: int) -> None:
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, "PNG", exif=exif)
    # where the first pixel goes: rows 1 to 8 of the EXIF standard
    at = [(0, 0), (3, 0), (3, 1), (0, 1), (0, 0), (1, 0), (1, 3), (0, 3)][orientation - 1]
    assert decode(content, official=False).getpixel(at) == (255, 0, 0)
    assert decode(content, official=True).getpixel((0, 0)) == (255, 0, 0)


def test_standard_datasets_are_read_as_official_and_own_ones_are_not(tmp_path: Path) -> None:
    mini.build(tmp_path)
    for name in ("dtd", "imagenet", "imagenetv2", "fgvc_aircraft"):
        assert data.load(name, tmp_path, allow_nonstandard=True).official
    assert not data.load(str(own(tmp_path / "zoo"))).official
    assert not data.load("icons").official


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_said(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = decode(content, official=False).getpixel((0, 0))  # type: ignore[misc]
    assert (red > 200, green < 60, blue < 60) == (True, True, True)
    assert several_frames(io.BytesIO(content))
    assert not several_frames(io.BytesIO(encoded(frames[0], kind)))
    folder = own(tmp_path / "zoo")
    (folder / "yak" / f"0.{kind.lower()}").write_bytes(content)
    (note,) = data.load(str(folder)).notes
    assert note == f"only the first of several frames is used: 1 file, such as 'yak/0.{kind.lower()}'"


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        encoded(Image.new("RGB", (4, 4)), "TGA"),
        encoded(Image.new("RGB", (4, 4)), "PCX"),
        encoded(Image.new("RGB", (4, 4)), "ICO"),
        encoded(Image.new("RGB", (4, 4)), "PDF"),
        b"",
    ],
)
@pytest.mark.parametrize("official", [False, True])
def test_other_formats_are_not_tried(content: bytes, official: bool) -> None:
    with pytest.raises(ValueError, match="not an image of a known format"):
        decode(content, official)


def test_every_format_that_is_named_is_read() -> None:
    assert {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"} <= set(images.formats())
    for kind in images.formats():
        if kind in Image.SAVE:
            assert decode(encoded(Image.new("RGB", (4, 4), "red"), kind), official=False).size == (4, 4)


def test_large_images_are_read_without_a_word(monkeypatch: pytest.MonkeyPatch, recwarn: Any) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    images.quiet()
    assert decode(encoded(Image.new("L", (10, 10)), "PNG"), official=False).size == (10, 10)
    assert list(recwarn) == []
    with pytest.raises(ValueError, match="more than the limit of 120 pixels; make it smaller"):
        decode(encoded(Image.new("L", (20, 10)), "PNG"), official=False)
