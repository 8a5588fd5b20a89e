import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from cam_pipeline.data.masks import read_mask, sample_mask
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10  # 2 rows, 3 columns, RGB: no two values are equal


def test_masks_are_indexed_or_grey(tmp_path):
    path = tmp_path / "m.png"
    labels = np.array([[0, 2, 255], [1, 0, 2]], dtype=np.uint8)
    Image.fromarray(labels).save(path)
    np.testing.assert_array_equal(read_mask(path, 2), labels)
    indexed = Image.fromarray(labels)
    indexed.putpalette([*range(256)] * 3)
    indexed.save(path)
    assert Image.open(path).mode == "P"
    np.testing.assert_array_equal(read_mask(path, 2), labels)
    assert read_mask(path, 2).dtype == np.uint8


def test_masks_with_other_values_or_modes_are_refused(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(np.array([[0, 3, 7]], dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match=r"m\.png: value 3 is neither 0\.\.2 nor 255 \(ignore\); write class numbers"):
        read_mask(path, 2)
    for mode in ("RGB", "RGBA"):
        Image.new(mode, (3, 2)).save(path)
        with pytest.raises(
            DataError,
            match=rf"m\.png: a mask must be .* mode {mode}; save class numbers .* in data\.colors \(here #000000\)$",
        ):
            read_mask(path, 2)
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    with pytest.raises(DataError, match=r"name the colours in data\.colors$"):  # they are too many for a mask
        read_mask(path, 2)
    Image.new("CMYK", (3, 2)).save(tmp_path / "m.tif")
    with pytest.raises(DataError, match=r"m\.tif: a mask must be an indexed or greyscale PNG, this one has mode CMYK$"):
        read_mask(tmp_path / "m.tif", 2)
    path.write_text("no image")
    with pytest.raises(DataError, match=r"m\.png cannot be read as a mask"):
        read_mask(path, 2)
    with pytest.raises(DataError, match=r"no mask file .*gone\.png"):
        read_mask(tmp_path / "gone.png", 2)


def test_the_mask_of_a_sample_has_the_size_of_its_image(tmp_path):
    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    Image.fromarray(PIXELS).save(image)
    Image.fromarray(np.ones((2, 3), np.uint8)).save(mask)
    assert sample_mask(Sample("a", image, "train", (1,), mask), 1).tolist() == [[1, 1, 1]] * 2
    Image.fromarray(np.ones((3, 2), np.uint8)).save(mask)
    with pytest.raises(
        DataError,
        match=r"m\.png: the mask is \(3, 2\), its image is \(2, 3\) \(height, width\); make the mask again, or",
    ):
        sample_mask(Sample("a", image, "train", (1,), mask), 1)
    with pytest.raises(DataError, match=r"image a has no mask \(t.csv, line 2\); add one, or take the image out"):
        sample_mask(Sample("a", image, "train", (1,), source="t.csv, line 2"), 1)


def test_the_mask_of_a_turned_image_is_upright_and_the_message_says_so(tmp_path):
    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(PIXELS).save(image, exif=exif)
    Image.fromarray(np.ones((2, 3), np.uint8)).save(mask)
    turned = Sample("a", image, "train", (1,), mask)
    with pytest.raises(DataError, match=r"its image is \(3, 2\) .*; EXIF turns the image upright, so its mask must"):
        sample_mask(turned, 1)
    Image.fromarray(np.ones((3, 2), np.uint8)).save(mask)
    assert sample_mask(turned, 1).shape == (3, 2)


def save_png(path, depth, kind, row, width):
    """A PNG of one row; `kind` 0 is grey, 3 indexed, 4 grey with alpha."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    palette = chunk(b"PLTE", bytes(range(3 * 2**depth))) if kind == 3 else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + palette + rest)


@pytest.mark.parametrize(
    ("depth", "kind", "row", "numbers"),
    [
        (1, 0, b"\x60", [0, 1, 1]), (2, 0, b"\x1b", [0, 1, 2, 3]), (4, 0, b"\x01\x2f", [0, 1, 2, 15]),
        (1, 3, b"\x60", [0, 1, 1]), (2, 3, b"\x1b", [0, 1, 2, 3]), (4, 3, b"\x01\x2f", [0, 1, 2, 15]),
        (16, 0, b"\0\1\0\2\0\xff", [1, 2, 255]), (8, 4, b"\1\xff\2\0\xff\xff", [1, 2, 255]),
    ],
)  # fmt: skip
def test_numbers_of_any_depth_are_read_as_they_are_stored(tmp_path, depth, kind, row, numbers):
    save_png(tmp_path / "m.png", depth, kind, row, len(numbers))
    mask = read_mask(tmp_path / "m.png", 15)
    assert mask.tolist() == [numbers] and mask.dtype == np.uint8


def test_numbers_that_do_not_fit_are_told_as_they_are_stored(tmp_path):
    for depth, kind, row, number in (
        (2, 0, b"\x1b", 2), (4, 0, b"\x0f", 15), (16, 0, b"\1\1\1\1", 257), (16, 0, b"\xff\xff\0\0", 65535)
    ):  # fmt: skip
        save_png(tmp_path / "m.png", depth, kind, row, 2 if depth > 2 else 4)
        with pytest.raises(DataError, match=rf"value {number} is neither 0\.\.1 nor 255"):
            read_mask(tmp_path / "m.png", 1)
    save_png(tmp_path / "m.png", 16, 4, b"\0\1\0\0", 1)
    with pytest.raises(DataError, match=r"16 bits with transparency cannot be read; save it in 8 bits without"):
        read_mask(tmp_path / "m.png", 1, colors=[(0, 0, 0)])


@pytest.mark.parametrize("kind", [np.int32, np.uint16, np.float32])
def test_wide_numbers_in_a_tiff_are_labels_if_they_fit(tmp_path, kind):
    path = tmp_path / "m.tif"
    Image.fromarray(np.array([[0, 2, 255]], kind)).save(path)
    assert read_mask(path, 2).tolist() == [[0, 2, 255]]
    for wrong in {np.int32: [-1, 300], np.uint16: [300], np.float32: [1.5, np.nan, -1.0]}[kind]:
        Image.fromarray(np.array([[0, 2, wrong]], kind)).save(path)
        with pytest.raises(DataError, match=rf"value {wrong} is neither"):
            read_mask(path, 2)


@pytest.mark.parametrize(("head", "row"), [(b"P5 3 1 2\n", b"\0\1\2"), (b"P5 3 1 300\n", b"\0\0\0\1\0\2")])
def test_a_greyscale_pgm_is_not_stretched_to_white(tmp_path, head, row):
    (tmp_path / "m.pgm").write_bytes(head + row)
    assert read_mask(tmp_path / "m.pgm", 2).tolist() == [[0, 1, 2]]


LOSSY = [
    ("m.png", {"format": "JPEG", "quality": 100}, "JPEG"),
    ("m.jpg", {}, "JPEG"),
    ("m.webp", {"lossless": False}, "lossy WebP"),
    ("m.tif", {"compression": "jpeg"}, "a TIFF with JPEG compression"),
    ("m.jp2", {"irreversible": True}, "lossy JPEG 2000"),
]


@pytest.mark.parametrize(("name", "how", "called"), LOSSY)
def test_masks_saved_with_loss_are_refused_whatever_their_ending(tmp_path, name, how, called):
    path = tmp_path / name
    Image.new("L", (16, 16), 1).save(path, **how)
    with pytest.raises(DataError, match=rf"{name}: a mask in {called} has wrong numbers at every edge; make it again"):
        read_mask(path, 1, colors=[(0, 0, 0), (1, 1, 1)])


def test_masks_saved_without_loss_are_read_whatever_their_format(tmp_path):
    labels = np.array([[0, 1, 2, 255]] * 4, np.uint8)
    for name, how in (("m.tif", {"compression": "tiff_lzw"}), ("m.jp2", {}), ("m.bmp", {})):
        Image.fromarray(labels).save(tmp_path / name, **how)
        assert read_mask(tmp_path / name, 2).tolist() == labels.tolist(), name
    colours = [(0, 0, 0), (9, 8, 7), (1, 2, 3), (255, 255, 255)]
    pixels = np.array(colours, np.uint8)[np.minimum(labels, 3)]
    exif = Image.Exif()
    exif[0x010E] = "a part before the pixels"
    Image.fromarray(pixels).save(tmp_path / "m.webp", lossless=True, exif=exif)
    assert read_mask(tmp_path / "m.webp", 2, colors=colours).tolist() == labels.tolist()


COLOURS = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (224, 224, 192))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_mean_what_the_settings_say_and_further_ones_are_ignored(tmp_path, mode):
    path = tmp_path / "m.png"
    indices = np.array([[0, 1, 2], [3, 2, 0]], np.uint8)
    image = Image.fromarray(np.array(COLOURS, np.uint8)[indices])
    if mode == "P":  # its own numbers differ
        image = Image.fromarray(3 - indices)
        image.putpalette([number for colour in COLOURS[::-1] for number in colour])
    image.convert(mode).save(path)
    assert Image.open(path).mode == mode
    assert read_mask(path, 2, colors=COLOURS).tolist() == [[0, 1, 2], [255, 2, 0]]
    assert read_mask(path, 3, colors=COLOURS).tolist() == [[0, 1, 2], [3, 2, 0]]
    with pytest.raises(
        DataError,
        match=r"m\.png: the colour #008000 at row 0, column 2 \(and at 2 other pixels\) is not in data",
    ):
        read_mask(path, 2, colors=COLOURS[:2])


def test_a_greyscale_mask_holds_numbers_although_there_are_colours(tmp_path):
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", 2, colors=COLOURS).tolist() == [[0, 1, 255]]
