import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.data.images import (
    grid_size,
    image_size,
    read_image,
    read_mask,
    resize_to_grid,
    sample_mask,
    to_tensor,
)
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


def test_grey_palette_and_alpha_become_rgb(tmp_path):
    path = tmp_path / "a.png"
    grey = PIXELS[..., 0]
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(read_image(path), np.stack([grey] * 3, axis=-1))
    palette = Image.fromarray(np.array([[0, 1, 1], [1, 0, 0]], dtype=np.uint8))
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.save(path)
    assert Image.open(path).mode == "P"
    assert read_image(path)[:, :2].tolist() == [[[9, 8, 7], [200, 100, 50]], [[200, 100, 50], [9, 8, 7]]]
    Image.fromarray(np.dstack([PIXELS, np.zeros((2, 3), np.uint8)])).save(path)
    assert Image.open(path).mode == "RGBA"
    np.testing.assert_array_equal(read_image(path), PIXELS)


def test_cmyk_becomes_rgb(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (24, 16), (0, 255, 255, 0)).save(path, quality=95)  # no cyan: red
    assert Image.open(path).mode == "CMYK"
    image = read_image(path)
    assert image.shape == (16, 24, 3)
    assert image[..., 0].min() > 245 and image[..., 1:].max() < 10


def test_sixteen_bits_are_refused_not_clipped(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 1000, 60000]], dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=r"a\.png: channels of more than 8 bits"):
        read_image(path)


def test_images_that_can_not_be_read_are_named(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(whole)
    truncated, text = tmp_path / "truncated.jpg", tmp_path / "text.jpg"
    truncated.write_bytes(whole.read_bytes()[:-500])
    text.write_text("this is no image\n")
    with pytest.raises(DataError, match=r"no image file .*gone\.jpg"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=r"truncated\.jpg can not be read as an image"):
        read_image(truncated)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"text\.jpg can not be read as an image"):
            read(text)
        with pytest.raises(DataError, match="can not be read as an image"):
            read(tmp_path)  # a folder
    with pytest.raises(DataError, match=r"no image file .*gone\.jpg"):
        image_size(tmp_path / "gone.jpg")


def test_an_image_of_absurd_size_is_refused_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"a\.png can not be read as an image"):
            read(path)


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
    with pytest.raises(DataError, match=r"m\.png: mask value 3 is neither 0\.\.2 nor 255"):
        read_mask(path, 2)
    for mode in ("RGB", "1", "LA"):
        Image.new(mode, (3, 2)).save(path)
        with pytest.raises(DataError, match=rf"m\.png: a mask must be .* mode {mode}$"):
            read_mask(path, 2)
    path.write_text("no image")
    with pytest.raises(DataError, match=r"m\.png can not be read as a mask"):
        read_mask(path, 2)
    with pytest.raises(DataError, match=r"no mask file .*gone\.png"):
        read_mask(tmp_path / "gone.png", 2)


def test_the_mask_of_a_sample_has_the_size_of_its_image(tmp_path):
    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    Image.fromarray(PIXELS).save(image)
    Image.fromarray(np.ones((2, 3), np.uint8)).save(mask)
    assert sample_mask(Sample("a", image, "train", (1,), mask), 1).tolist() == [[1, 1, 1]] * 2
    Image.fromarray(np.ones((3, 2), np.uint8)).save(mask)
    with pytest.raises(DataError, match=r"m\.png: the mask is \(3, 2\), its image is \(2, 3\)"):
        sample_mask(Sample("a", image, "train", (1,), mask), 1)
    with pytest.raises(DataError, match="image a has no mask"):
        sample_mask(Sample("a", image, "train", (1,)), 1)


def test_to_tensor_puts_channels_first_and_copies():
    tensor = to_tensor(PIXELS)
    assert tensor.shape == (3, 2, 3) and tensor.dtype == torch.uint8
    assert tensor[1].tolist() == PIXELS[..., 1].tolist()
    tensor.zero_()
    assert PIXELS.any()


@pytest.mark.parametrize(
    ("height", "width", "stride", "max_side", "scale", "grid"),
    [
        (100, 260, 16, 1024, 1.0, (6, 16)),  # 6.25 and 16.25 cells
        (100, 260, 16, 130, 1.0, (3, 8)),  # halved first: 3.125 and 8.125
        (260, 100, 16, 130, 1.0, (8, 3)),
        (100, 260, 16, 1024, 0.5, (3, 8)),
        (100, 260, 16, 520, 1.0, (6, 16)),  # never enlarged
        (1, 1, 32, 1024, 1.0, (1, 1)),
        (1, 4000, 32, 1000, 1.0, (1, 31)),
    ],
)
def test_grid_size(height, width, stride, max_side, scale, grid):
    assert grid_size(height, width, stride, max_side, scale) == grid


def test_resize_to_grid_covers_the_image_and_keeps_its_sides():
    image = torch.zeros(3, 20, 50, dtype=torch.uint8)
    image[0, :, 25:], image[1, 10:], image[2] = 255, 255, 51
    small = resize_to_grid(image, (2, 3), 4)
    assert small.shape == (3, 8, 12) and small.dtype == torch.float32
    torch.testing.assert_close(small[2], torch.full((8, 12), 0.2))
    assert (small[0, :, :4] < 0.01).all() and (small[0, :, 8:] > 0.99).all()  # red is the right half
    assert (small[1, :2] < 0.01).all() and (small[1, 6:] > 0.99).all()  # green is the lower half
    assert torch.equal(resize_to_grid(image, (5, 10), 5)[0, 0, :26], torch.arange(26).ge(25).float())
