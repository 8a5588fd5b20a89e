"""Decode image and mask files; bring images to the sizes that networks see."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin

from cam_pipeline.data.foreign import remedy
from cam_pipeline.data.table import MAX_PIXELS, Sample
from cam_pipeline.errors import DataError

UInt8 = NDArray[np.uint8]
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
"""Kinds of files that are opened. Pillow knows more; for some it starts other programs (EPS: Ghostscript)."""
WIDE = ("RGB;16", "RGBA;16", "RGBX;16", "RGBa;16", "LA;16")
"""How Pillow calls pixels of several channels of 16 bits (`BGR;16` is something else: 16 bits a pixel)."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns an image of an EXIF orientation upright."""

METADATA = 64 * 2**20
"""Bytes that a profile or a text in a PNG may unpack to. Pillow stops at 1 MB, and real profiles are larger."""


class _PillowSettings:
    """Switches off Pillow's own pixel limit and its warnings, and raises its limit of PNG metadata to METADATA.

    This holds while any thread is inside.

    All of it belongs to the whole process and cannot be set for one call, so the last thread that leaves restores what
    the first one found. Other threads use Pillow without its limit meanwhile, too.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.found = ExitStack()
        # A process forked while another thread holds the lock would wait for it forever.
        os.register_at_fork(
            before=self.lock.acquire, after_in_parent=self.lock.release, after_in_child=self.lock.release
        )

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.found.enter_context(warnings.catch_warnings())
                # They are about EXIF data, and name no file.
                warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
                self.found.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
                Image.MAX_IMAGE_PIXELS = None  # `data.max_pixels` takes its place
                self.found.callback(setattr, PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_CHUNK)
                PngImagePlugin.MAX_TEXT_CHUNK = METADATA
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.found.close()


_our_pillow_settings = _PillowSettings()


@contextmanager
def opened(path: Path, max_pixels: int, kind: str = "image") -> Iterator[Image.Image]:
    """An image file, opened but not decoded.

    Raises DataError, naming the file, also for errors inside the block, and before anything is decoded if the image
    has more than `max_pixels` pixels.
    """
    try:
        with _our_pillow_settings, Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(
                    f"{path}: {width} x {height} pixels are more than data.max_pixels ({max_pixels}); "
                    "raise that if the file is no mistake, or take it out of the data set"
                )
            yield image
    except (DataError, MemoryError):
        raise
    except FileNotFoundError:
        raise DataError(f"there is no {kind} file {path}") from None
    except Exception as error:  # damaged bytes make Pillow raise almost anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        if isinstance(error, ValueError) and "decompressed data too large" in str(error).lower():
            reason = f"its texts or its colour profile unpack to more than {METADATA >> 20} MB"
        raise DataError(
            f"{path} cannot be read as {'an' if kind == 'image' else 'a'} {kind} ({reason or type(error).__name__}); "
            f"{remedy(path) or 'replace it, or take it out of the data set'}"
        ) from error


@dataclass(frozen=True)
class Picture:
    """A decoded image: `pixels` (height, width, 3) uint8 RGB.

    `brightest` is the greatest number in a file of 16 bits a channel, 0..65535 (of colours to the next multiple of 256,
    less 1); None for other files.
    """

    pixels: UInt8
    brightest: int | None = None


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8:
    """Decode an image file to (height, width, 3) uint8 RGB, turned upright by its EXIF tag.

    Channels of 16 bits keep their upper 8 bits: Pillow does this with colours, this function with grey. Transparency is
    dropped, and the colours beneath it are kept. Raises DataError as `opened`, and for pixel values of unknown range
    (32 bits, floats).
    """
    return read_picture(path, max_pixels).pixels


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """As `read_image`, with what the check of a data set asks beside the pixels."""
    with opened(path, max_pixels) as image:
        wide = stored_as(image).startswith(WIDE)
        image.load()  # this turns a TIFF upright, and removes its tag
        turn = UPRIGHT.get(_orientation(image))
        upright = image.transpose(turn) if turn is not None else image
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            numbers = np.asarray(upright).astype(np.int64)
            grey = (numbers >> 8).clip(0, 255).astype(np.uint8)
            return Picture(np.stack([grey] * 3, axis=-1), int(numbers.max()))
        if image.mode in ("I", "F"):
            raise DataError(
                f"{path}: pixel values of unknown range (mode {image.mode}); convert it to 8 bits per channel"
            )
        pixels = np.asarray(upright.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB"))
        return Picture(pixels, int(pixels.max()) * 256 + 255 if wide else None)


def stored_as(image: Image.Image) -> str:
    """Pillow's name of the way in which the pixels lie in the file, such as `L;4` or `RGB;16B`; "" if it tells none.

    It is known only until the image is loaded.
    """
    tiles = getattr(image, "tile", [])  # codec, place, offset, arguments of each
    arguments = tiles[0][3] if tiles else ""
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return name if isinstance(name, str) else ""


def highest_number(image: Image.Image) -> int:
    """The number that Pillow shows as white, if the head of a PPM file names another than the usual one; else 0.

    It is known only until the image is loaded.
    """
    tiles = getattr(image, "tile", [])
    return int(tiles[0][3][1]) if tiles and tiles[0][0] == "ppm" else 0


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 (upright) if there is none or it cannot be read, as in other programs."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data make Pillow raise almost anything; the pixels may be sound
        return 1
    return orientation if orientation in UPRIGHT else 1


def is_turned(sample: Sample) -> bool:
    """Whether a sample's image file has an EXIF orientation by which it is turned upright."""
    with errors_named_for(sample), opened(sample.image, sample.max_pixels) as image:
        if image.format == "PNG":
            image.load()  # see `image_size`
        return _orientation(image) != 1


@contextmanager
def errors_named_for(sample: Sample) -> Iterator[None]:
    """Add where the sample is named to a DataError raised inside, unless its message has that already."""
    try:
        yield
    except DataError as error:
        if sample.source in str(error):
            raise
        raise DataError(f"{error}{sample.named_in}") from error


def sample_image(sample: Sample) -> UInt8:
    """The image of a sample, see `read_image`; errors also say where the data set names it."""
    with errors_named_for(sample):
        return read_image(sample.image, sample.max_pixels)


def sample_picture(sample: Sample) -> Picture:
    """As `sample_image`, see `read_picture`."""
    with errors_named_for(sample):
        return read_picture(sample.image, sample.max_pixels)


def sample_size(sample: Sample) -> tuple[int, int]:
    """The size of a sample's image, see `image_size`; errors as of `sample_image`."""
    with errors_named_for(sample):
        return image_size(sample.image, sample.max_pixels)


def image_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) as `read_image` would return; a JPEG is not decoded for it. Raises DataError like it.

    The answer is kept until the file's size in bytes or its time of change differs.
    """
    try:
        state = path.stat()
    except OSError:
        return _size_in(path, max_pixels)  # this raises the error about the file
    return _known_size(path, max_pixels, state.st_size, state.st_mtime_ns)


@cache
def _known_size(path: Path, max_pixels: int, _bytes: int, _changed: int) -> tuple[int, int]:
    return _size_in(path, max_pixels)


def _size_in(path: Path, max_pixels: int) -> tuple[int, int]:
    with opened(path, max_pixels) as image:
        if image.format == "PNG" or (image.format == "TIFF" and _orientation(image) != 1):
            image.load()  # a PNG may have its orientation at its end; newer versions of Pillow turn a TIFF upright here
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)
