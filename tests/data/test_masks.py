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
    with pytest.raises(
        DataError, match=r"m\.png: mask value 3 is neither 0\.\.2 nor 255 \(ignore\); write class numbers"
    ):
        read_mask(path, 2)
    for mode in ("RGB", "1", "LA"):
        Image.new(mode, (3, 2)).save(path)
        with pytest.raises(
            DataError, match=rf"m\.png: a mask must be .* mode {mode}; save class numbers in place of colours$"
        ):
            read_mask(path, 2)
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
