import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cam_pipeline.data.images import image_size, is_turned, opened, read_image, read_picture, sample_image, sample_size
from cam_pipeline.data.masks import read_mask, sample_mask
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10  # 2 rows, 3 columns, RGB: no two values are equal

UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),  # clockwise
    7: lambda stored: np.rot90(stored.swapaxes(0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_and_image_size_agrees(tmp_path, orientation):
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)
    image = read_image(path)
    np.testing.assert_array_equal(image, UPRIGHT[orientation](PIXELS))
    assert image_size(path) == image.shape[:2]


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_a_tiff_is_applied_once(tmp_path, orientation):
    """Newer versions of Pillow turn a TIFF themselves, and give its upright size before."""
    path, exif = tmp_path / "a.tif", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)
    image = read_image(path)
    np.testing.assert_array_equal(image, UPRIGHT[orientation](PIXELS))
    assert image_size(path) == image.shape[:2]


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_unknown_exif_orientation_counts_as_upright(tmp_path, orientation):
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), PIXELS)
    assert image_size(path) == PIXELS.shape[:2]


@pytest.mark.parametrize("kept", [0, 7, 9, 14, 20, 25])
def test_damaged_exif_data_do_not_cost_an_image(tmp_path, kept):
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(path, exif=exif.tobytes()[:kept] + b"\xff" * 9)
    assert sorted(read_image(path).ravel()) == sorted(PIXELS.ravel())
    assert image_size(path) == read_image(path).shape[:2]


LATE = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'


@pytest.mark.parametrize("early", [True, False])
def test_png_that_tells_its_orientation_behind_the_pixels(tmp_path, early):
    """Pillow looks for it there unless it has seen EXIF data before them, which need not tell it."""
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x010E] = "no orientation"
    Image.fromarray(PIXELS).save(path, **({"exif": exif} if early else {}))
    content = path.read_bytes()
    late = struct.pack(">I", len(LATE)) + b"iTXt" + LATE + struct.pack(">I", zlib.crc32(b"iTXt" + LATE))
    path.write_bytes(content[:-12] + late + content[-12:])  # before the end mark
    image = read_image(path)
    np.testing.assert_array_equal(image, UPRIGHT[6](PIXELS))
    assert image_size(path) == image.shape[:2] == (3, 2)
    assert is_turned(Sample("a", path, "train"))


def test_grey_becomes_rgb(tmp_path):
    path, grey = tmp_path / "a.png", PIXELS[..., 0]
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(read_image(path), np.stack([grey] * 3, axis=-1))


def test_one_bit_becomes_black_and_white(tmp_path):
    path, bits = tmp_path / "a.png", np.array([[True, False, True], [False, False, True]])
    Image.fromarray(bits).save(path)
    assert Image.open(path).mode == "1"
    np.testing.assert_array_equal(read_image(path), np.stack([bits * np.uint8(255)] * 3, axis=-1))


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128])])
@pytest.mark.filterwarnings("error")  # a warning would be a second line on the terminal
def test_palette_becomes_rgb_and_transparent_entries_keep_their_colour(tmp_path, transparency):
    path = tmp_path / "a.png"
    palette = Image.fromarray(np.array([[0, 1, 1], [1, 0, 0]], dtype=np.uint8))
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.save(path, **({} if transparency is None else {"transparency": transparency}))
    with Image.open(path) as saved:
        assert (saved.mode, saved.info.get("transparency")) == ("P", transparency)
    one, other = [9, 8, 7], [200, 100, 50]
    assert read_image(path).tolist() == [[one, other, other], [other, one, one]]


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_left_out(tmp_path, channels):
    path, colour = tmp_path / "a.png", PIXELS[..., :channels]
    Image.fromarray(np.dstack([colour, np.zeros((2, 3), np.uint8)])).save(path)
    assert Image.open(path).mode == {1: "LA", 3: "RGBA"}[channels]
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(colour, (2, 3, 3)))


def test_colour_that_stands_for_transparent_is_left_as_it_is(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path, transparency=tuple(PIXELS[0, 1].tolist()))
    np.testing.assert_array_equal(read_image(path), PIXELS)


def test_cmyk_becomes_rgb(tmp_path):
    inks = np.array([[[0, 255, 255, 0], [255, 0, 255, 0], [0, 0, 0, 255]]], dtype=np.uint8)  # red, green, black
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 0]]]
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (24, 16), (0, 255, 255, 0)).save(path, quality=95)
    assert Image.open(path).mode == "CMYK"
    image = read_image(path)
    assert image.shape == (16, 24, 3)
    assert image[..., 0].min() > 245 and image[..., 1:].max() < 10


DEEP = np.array([[[0, 255, 256], [1000, 40000, 65535], [257, 511, 512]]], dtype=np.uint16)  # 1 x 3, RGB


def save_deep_png(path, pixels):
    """A PNG with 16 bits a channel, in grey, with alpha or in colour, which Pillow cannot write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = pixels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_keep_their_upper_eight_in_grey_as_in_colour(tmp_path, channels):
    path = tmp_path / "a.png"
    deep = np.dstack([DEEP, DEEP[..., :1]])[..., :channels]
    save_deep_png(path, deep)
    colour = deep[..., : 1 if channels < 3 else 3]
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(colour // 256, (1, 3, 3)))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_tiff_in_either_byte_order(tmp_path, order):
    path = tmp_path / "a.tif"
    Image.fromarray(DEEP[..., 1].astype(order)).save(path)
    assert Image.open(path).mode == {"<u2": "I;16", ">u2": "I;16B"}[order]
    np.testing.assert_array_equal(read_image(path), np.stack([DEEP[..., 1] // 256] * 3, axis=-1))
    assert image_size(path) == (1, 3)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_no_known_range_are_refused(tmp_path, kind):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 1000, 60000]], dtype=kind)).save(path)
    with pytest.raises(DataError, match=r"a\.tif: pixel values of unknown range \(mode [IF]\); convert it to 8 bits"):
        read_image(path)


def test_images_that_can_not_be_read_are_named(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(whole)
    truncated, text = tmp_path / "truncated.jpg", tmp_path / "text.jpg"
    truncated.write_bytes(whole.read_bytes()[:-500])
    text.write_text("this is no image\n")
    with pytest.raises(DataError, match=r"no image file .*gone\.jpg"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=r"truncated\.jpg cannot be read as an image"):
        read_image(truncated)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"text\.jpg cannot be read as an image"):
            read(text)
        with pytest.raises(DataError, match="cannot be read as an image"):
            read(tmp_path)  # a folder
    with pytest.raises(DataError, match=r"no image file .*gone\.jpg"):
        image_size(tmp_path / "gone.jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM"])
def test_whatever_is_cut_off_the_answer_is_one_line(tmp_path, kind):
    path = tmp_path / "a"
    noise = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format=kind)
    whole = path.read_bytes()
    refused = 0
    for kept in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:kept])
        try:
            assert read_image(path).shape == (9, 12, 3)
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path} cannot be read as an image (")
            assert "\n" not in str(error)
    assert refused >= 20


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "a.jpg").touch()
    for read in (read_image, image_size, lambda path: read_mask(path, 2)):
        with pytest.raises(DataError, match=r"a\.jpg cannot be read as an? (image|mask) \(cannot identify"):
            read(tmp_path / "a.jpg")


def test_a_picture_that_is_a_program_is_not_run(tmp_path):
    """Pillow gives PostScript to Ghostscript."""
    path = tmp_path / "a.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert Image.open(path).format == "EPS"
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_image(path)


def test_an_image_of_absurd_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS[..., 0]).save(path)
    assert read_image(path, max_pixels=6).shape == (2, 3, 3)
    monkeypatch.setattr(Image.core, "new", None)
    sample = Sample("a", path, "train", (1,), path, max_pixels=5)
    readers = [sample_image, sample_size, lambda sample: sample_mask(sample, 255)]
    for read in readers:
        with pytest.raises(DataError, match=r"a\.png: 3 x 2 pixels are more than data\.max_pixels \(5\); raise that"):
            read(sample)


def test_a_decompression_bomb_is_refused_by_default(tmp_path):
    """A few kilobytes that would fill the memory."""
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"bomb\.png: 60000 x 60000 pixels are more than data\.max_pixels"):
            read(path)


def test_the_settings_of_pillow_are_those_of_the_host_program(tmp_path, monkeypatch):
    """Its limit and what is done with warnings, also when an image is refused."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    before = list(warnings.filters)
    assert read_image(path).shape == PIXELS.shape and image_size(path) == (2, 3)
    with pytest.raises(DataError, match=r"are more than data\.max_pixels \(5\)"):
        read_image(path, max_pixels=5)
    assert Image.MAX_IMAGE_PIXELS == 2 and list(warnings.filters) == before
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)


def test_importing_the_library_changes_nothing_of_pillow():
    program = """
import warnings, torch, PIL.Image
before = PIL.Image.MAX_IMAGE_PIXELS, [filter for filter in warnings.filters]
import cam_pipeline.data.images
assert PIL.Image.MAX_IMAGE_PIXELS == before[0] is not None
assert not [filter for filter in warnings.filters if filter not in before[1] and "PIL" in str(filter)]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_threads_that_read_at_a_time_put_back_what_the_first_found(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    before = list(warnings.filters)
    entered, go_on = threading.Event(), threading.Event()
    limits = []

    def other():
        with opened(path, 100):
            entered.set()
            go_on.wait(60)
            limits.append(Image.MAX_IMAGE_PIXELS)

    thread = threading.Thread(target=other)
    with opened(path, 100):
        thread.start()
        assert entered.wait(60)
    assert Image.MAX_IMAGE_PIXELS is None, "the other thread still reads"
    go_on.set()
    thread.join()
    assert limits == [None]
    assert Image.MAX_IMAGE_PIXELS == 2 and list(warnings.filters) == before


@pytest.mark.filterwarnings("error")
def test_a_large_image_is_no_matter_for_a_warning_of_pillow(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (10_000, 9_000)).save(path)
    assert image_size(path) == (9_000, 10_000)


def test_the_size_of_an_unchanged_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    assert image_size(path) == (2, 3)
    monkeypatch.setattr("cam_pipeline.data.images.opened", None)  # opening it would fail
    assert image_size(path) == (2, 3)
    monkeypatch.undo()
    Image.fromarray(PIXELS[:1]).save(path)
    os.utime(path, ns=(1, 1))
    assert image_size(path) == (1, 3)
    path.unlink()
    with pytest.raises(DataError, match="there is no image file"):
        image_size(path)


def png_with(chunk, size):
    """A PNG of PIXELS that has a chunk of metadata of so many bytes when unpacked."""
    packed = zlib.compress(b"x" * size, 9)
    content = {
        b"iCCP": b"profile\0\0" + packed,
        b"zTXt": b"Comment\0\0" + packed,
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + packed,
        b"tEXt": b"Comment\0" + b"x" * size,
    }[chunk]
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    whole = buffer.getvalue()
    metadata = struct.pack(">I", len(content)) + chunk + content + struct.pack(">I", zlib.crc32(chunk + content))
    return whole[:33], metadata, whole[33:]


@pytest.mark.parametrize("chunk", [b"iCCP", b"zTXt", b"iTXt", b"tEXt"])
@pytest.mark.parametrize("late", [False, True])
def test_metadata_of_more_than_a_megabyte_do_not_cost_a_png(tmp_path, chunk, late):
    head, metadata, rest = png_with(chunk, 3_000_000)
    path = tmp_path / "a.png"
    path.write_bytes(head + rest[:-12] + metadata + rest[-12:] if late else head + metadata + rest)
    np.testing.assert_array_equal(read_image(path), PIXELS)
    assert image_size(path) == (2, 3) and not is_turned(Sample("a", path, "train"))


def test_metadata_that_unpack_to_very_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("cam_pipeline.data.images.METADATA", 2**21)
    (tmp_path / "a.png").write_bytes(b"".join(png_with(b"zTXt", 2**21 + 1)))
    with pytest.raises(DataError, match=r"a\.png cannot be read .* \(its texts or its colour profile unpack to"):
        read_image(tmp_path / "a.png")
    assert PngImagePlugin.MAX_TEXT_CHUNK < 2**21


@pytest.mark.parametrize(
    ("pixels", "brightest"),
    [
        (np.array([[0, 7, 4095]], np.uint16), 4095),
        (np.array([[0, 7, 255]], np.uint16), 255),
        (np.array([[0, 7, 255]], np.uint8), None),
        (PIXELS, None),
    ],
)
def test_the_greatest_number_of_sixteen_bits_is_told(tmp_path, pixels, brightest):
    for name in ("a.png", "a.tif"):
        Image.fromarray(pixels).save(tmp_path / name)
        assert read_picture(tmp_path / name).brightest == brightest


def test_the_greatest_number_of_colours_of_sixteen_bits_is_told(tmp_path):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = struct.pack(">6H", 0, 17, 4095, 3, 900, 20)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + rest)
    assert read_picture(tmp_path / "a.png").brightest == 4095
