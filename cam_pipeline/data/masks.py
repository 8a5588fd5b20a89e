"""Masks: pixel labels from files and from COCO outlines."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cam_pipeline.config import Colour, shown_colour
from cam_pipeline.data.coco_masks import CocoMask, draw, of_size
from cam_pipeline.data.images import UInt8, errors_named_for, highest_number, is_turned, opened, sample_size, stored_as
from cam_pipeline.data.table import MAX_PIXELS, Sample
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

COLOURED = ("RGB", "RGBA", "RGBX")
MOST_COLOURS = 8
"""Colours of a mask that a message names."""
SCALED = {"L;2": 85, "L;4": 17}
"""By how much Pillow multiplies greyscale numbers of 2 and 4 bits, by its name of how they are stored."""


@dataclass(frozen=True)
class Mask:
    """A decoded mask: `labels` (height, width) uint8; `palette`: colours of the numbers in use, of indexed files."""

    labels: UInt8
    palette: dict[int, Colour] = field(default_factory=dict)


def read_mask(path: Path, num_classes: int, max_pixels: int = MAX_PIXELS, colors: Sequence[Colour] = ()) -> UInt8:
    """Decode a mask file to (height, width) uint8 labels: 0 background, 1..num_classes, 255 ignore.

    An indexed or greyscale file of any depth holds the labels as numbers. With `colors`, indexed files and those in
    RGB(A) hold colours: the first is background, the next are 1..num_classes, and any further ones are ignored.

    Raises DataError if the file cannot be read, is stored with loss (JPEG), is a colour image without `colors`, or
    holds another number or colour.
    """
    return mask_of_file(path, num_classes, max_pixels, colors).labels


def mask_of_file(path: Path, num_classes: int, max_pixels: int, colors: Sequence[Colour] = ()) -> Mask:
    """As `read_mask`, with what the check of a data set asks beside the labels."""
    with opened(path, max_pixels, "mask") as image:
        if lossy := stored_with_loss(image, path):
            raise DataError(
                f"{path}: a mask in {lossy} has wrong numbers at every edge; make it again from its source, as PNG"
            )
        stored, highest = stored_as(image), highest_number(image)
        if stored.startswith("LA;16"):  # Pillow drops the lower 8 bits
            raise DataError(f"{path}: a mask of 16 bits with transparency cannot be read; save it in 8 bits without")
        image.load()
        if image.mode in COLOURED or (colors and image.mode == "P"):
            return Mask(_labels_of_colours(path, image, num_classes, colors))
        numbers = _numbers(path, image)
        if stored in SCALED:
            numbers = numbers // SCALED[stored]
        elif highest:  # Pillow stretches the numbers to 255 or 65535
            numbers = np.rint(numbers * (highest / (255 if image.mode == "L" else 65535)))
        labels, counts = _checked(path, numbers, num_classes)
        return Mask(labels, _palette(image, counts) if image.mode == "P" else {})


def _numbers(path: Path, image: Image.Image) -> NDArray[Any]:
    """The numbers (height, width) in an image without colours. Raises DataError for other modes."""
    if image.mode == "LA":
        image = image.getchannel(0)
    if image.mode not in ("P", "L", "1", "I", "F") and not image.mode.startswith("I;16"):
        raise DataError(f"{path}: a mask must be an indexed or greyscale PNG, this one has mode {image.mode}")
    return np.asarray(image)


def _checked(path: Path, numbers: NDArray[Any], num_classes: int) -> tuple[UInt8, NDArray[Any]]:
    """The numbers as labels, and how often each of 0..255 is there. Raises DataError for a number that is no label."""
    with np.errstate(invalid="ignore"):  # NaN; it is found below
        labels: UInt8 = numbers.astype(np.uint8, copy=False)
    counts = np.bincount(labels.ravel(), minlength=256)
    wrong = set(np.flatnonzero(counts).tolist()) - {*range(num_classes + 1), IGNORE_INDEX}
    if numbers.dtype != np.uint8 and not np.array_equal(labels, numbers):
        wrong = set(np.unique(numbers[labels != numbers]).tolist())
    if wrong:
        raise DataError(
            f"{path}: value {min(wrong)} is neither 0..{num_classes} nor {IGNORE_INDEX} (ignore); "
            "write class numbers into it, or add the class to data.classes"
        )
    return labels, counts


def _palette(image: Image.Image, counts: NDArray[Any]) -> dict[int, Colour]:
    flat = image.getpalette("RGB") or []
    colours = list(zip(flat[::3], flat[1::3], flat[2::3], strict=False))
    return {int(number): colours[number] for number in np.flatnonzero(counts) if number < len(colours)}


def _labels_of_colours(path: Path, image: Image.Image, num_classes: int, colors: Sequence[Colour]) -> UInt8:
    """The labels that the colours of an image mean. Raises DataError without `colors`, and for a colour not in them."""
    if not colors:
        raise DataError(
            f"{path}: a mask must be an indexed or greyscale PNG, this one has mode {image.mode}; "
            f"save class numbers in place of colours, or name the colours in data.colors{_some_colours(image)}"
        )
    pixels = np.asarray(image.convert("RGB")).astype(np.int32)
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    known = np.array([(red << 16) | (green << 8) | blue for red, green, blue in colors])
    meant = np.where(np.arange(len(known)) <= num_classes, np.arange(len(known)), IGNORE_INDEX).astype(np.uint8)
    order = np.argsort(known)
    places = order[np.searchsorted(known[order], packed).clip(max=len(known) - 1)]
    wrong = known[places] != packed
    if wrong.any():
        row, column = (int(place) for place in np.argwhere(wrong)[0])
        red, green, blue = pixels[row, column].tolist()
        raise DataError(
            f"{path}: the colour {shown_colour((red, green, blue))} at row {row}, column {column} (and at "
            f"{int(wrong.sum()) - 1} other pixels) is not in data.colors; add it there, or correct the mask"
        )
    labels: UInt8 = meant[places]
    return labels


def _some_colours(image: Image.Image) -> str:
    """The colours of an image in brackets, the most frequent first; empty if these are too many for a mask."""
    counted: Any = image.convert("RGB").getcolors(MOST_COLOURS) or []
    shown = [shown_colour(colour) for _, colour in sorted(counted, reverse=True)]
    return f" (here {', '.join(shown)})" if shown else ""


def stored_with_loss(image: Image.Image, path: Path) -> str:
    """Name of the lossy compression of an opened file; "" if its pixels are as they were saved."""
    if image.format in ("JPEG", "MPO"):
        return "JPEG"
    if image.format == "TIFF" and "jpeg" in str(image.info.get("compression")):
        return "a TIFF with JPEG compression"
    if image.format == "WEBP" and _is_lossy_webp(path):
        return "lossy WebP"
    if image.format == "JPEG2000" and _is_irreversible(path):
        return "lossy JPEG 2000"
    return ""


def _is_lossy_webp(path: Path) -> bool:
    """Whether the first picture in a WebP file is of the lossy kind."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            name, size = head[:4], int.from_bytes(head[4:], "little")
            if name in (b"VP8 ", b"VP8L"):
                return name == b"VP8 "
            file.seek(16 if name == b"ANMF" else size + size % 2, 1)  # a frame holds further parts
    return False


def _is_irreversible(path: Path) -> bool:
    """Whether the coding style of a JPEG 2000 file names the wavelets that round."""
    with path.open("rb") as file:
        start = file.read(2**16)
    codestream = max(start.find(b"\xff\x4f\xff\x51"), 0)  # behind boxes that may hold anything
    place = start.find(b"\xff\x52\x00", codestream)  # the mark, and the upper half of a length below 256
    return place >= 0 and start[place + 13 : place + 14] == b"\0"


def sample_mask(sample: Sample, num_classes: int) -> UInt8:
    """The mask of a sample, see `read_mask`. Raises DataError also if there is none, or its size is not the image's."""
    return mask_of_sample(sample, num_classes).labels


def mask_of_sample(sample: Sample, num_classes: int) -> Mask:
    """As `sample_mask`, with what the check of a data set asks beside the labels."""
    if sample.mask is None:
        raise DataError(f"image {sample.id} has no mask{sample.named_in}; add one, or take the image out of the split")
    if isinstance(sample.mask, CocoMask):
        if not sample.mask.height:
            return Mask(draw(_at_size_of_image(sample, sample.mask)))
        _check_size(sample, (sample.mask.height, sample.mask.width))  # first: a wrong size could fill the memory
        return Mask(draw(sample.mask))
    with errors_named_for(sample):
        mask = mask_of_file(sample.mask, num_classes, sample.max_pixels, sample.colors)
        _check_size(sample, mask.labels.shape)
    return mask


def _at_size_of_image(sample: Sample, mask: CocoMask) -> CocoMask:
    """Outlines without a size, at that of the image file. Raises DataError if they do not fit it."""
    try:
        return of_size(mask, *sample_size(sample))
    except ValueError as error:
        raise DataError(f"{mask}: {error}; correct the outline, or replace the image") from error


def _check_size(sample: Sample, shape: tuple[int, ...]) -> None:
    """Raise DataError unless the mask has the size of its image."""
    size = sample_size(sample)
    if shape != size:
        remedy = "make the mask again"
        if isinstance(sample.mask, CocoMask):
            other = abs(shape[0] * size[1] - shape[1] * size[0]) <= max(size)  # the same shape, another resolution
            remedy = "scale its outlines, or correct" if other else "correct"
            remedy += " height and width of the entry"
        turned = "; EXIF turns the image upright, so its mask must be upright, too" * is_turned(sample)
        raise DataError(
            f"{sample.mask}: the mask is {shape}, its image is {size} (height, width){turned}; "
            f"{remedy}, or replace the image"
        )
