import numpy as np
import pytest
from PIL import Image

from cam_pipeline.data.marks import (
    CLICK,
    MASK,
    PSEUDO,
    SCRIBBLE,
    Click,
    Stroke,
    Strokes,
    clicks_off,
    has_marks,
    sample_marks,
)
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError

HEIGHT, WIDTH = 6, 9


@pytest.fixture
def sample(tmp_path):
    """Makes a sample of an image with the given marks."""

    def make(**marks):
        path = tmp_path / "a.png"
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
        return Sample("a", path, "train", source="data.csv, line 2", **marks)

    return make


@pytest.fixture
def scribble(tmp_path):
    """Writes an indexed PNG and returns its path."""

    def write(numbers):
        path = tmp_path / "scribble.png"
        image = Image.fromarray(numbers.astype(np.uint8), "P")
        image.putpalette([90, 90, 90] * 256)  # the colours say nothing
        image.save(path)
        return path

    return write


def test_an_image_about_which_nobody_says_anything(sample):
    marks = sample_marks(sample(), 2)
    assert not has_marks(sample())
    assert marks.labels.shape == marks.origin.shape == (HEIGHT, WIDTH)
    assert marks.labels.dtype == marks.origin.dtype == np.uint8
    assert (marks.labels == 255).all() and (marks.origin == PSEUDO).all()


def test_clicks_win_over_a_scribble_of_an_indexed_png(sample, scribble):
    numbers = np.full((HEIGHT, WIDTH), 255)
    numbers[:, 2], numbers[:, 6] = 1, 0
    found = sample(scribble=scribble(numbers), clicks=(Click(2, 3, 2),))
    assert has_marks(found)
    marks = sample_marks(found, 2)
    assert (marks.labels[0] == [255, 255, 1, 255, 255, 255, 0, 255, 255]).all()
    assert (marks.origin[0] == [0, 0, SCRIBBLE, 0, 0, 0, SCRIBBLE, 0, 0]).all()
    assert marks.labels[3, 2] == 2 and marks.origin[3, 2] == CLICK
    assert marks.labels[3, 6] == 0


def test_strokes_and_regions(sample):
    region = Stroke(1, ((0, 0), (2, 0), (2, 2)), filled=True)
    found = sample(scribble=Strokes((region, Stroke(2, ((7, 4),))), (HEIGHT, WIDTH)))
    marks = sample_marks(found, 2)
    assert (marks.labels[0, 1], marks.origin[0, 1]) == (1, MASK)
    assert (marks.labels[4, 7], marks.origin[4, 7]) == (2, SCRIBBLE)


def test_the_size_is_that_of_the_upright_image(sample):
    found = sample(clicks=(Click(HEIGHT - 1, WIDTH - 1, 1),))
    Image.new("RGB", (WIDTH, HEIGHT)).save(
        found.image, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    )
    marks = sample_marks(found, 1)
    assert marks.labels.shape == (WIDTH, HEIGHT) and marks.labels[-1, -1] == 1


@pytest.mark.parametrize(
    ("shape", "value", "words"),
    [
        (
            (HEIGHT, WIDTH + 1),
            1,
            [r"scribble.png: the scribble is for an image of \(6, 10\)", r"is \(6, 9\)", "line 2"],
        ),
        ((HEIGHT, WIDTH), 3, ["scribble.png: value 3 is neither 0..2 nor 255", "line 2"]),
    ],
)
def test_a_scribble_that_does_not_fit_is_named(sample, scribble, shape, value, words):
    with pytest.raises(DataError) as error:
        sample_marks(sample(scribble=scribble(np.full(shape, value))), 2)
    for word in words:
        assert error.match(word)


def test_strokes_of_an_image_of_another_size_are_named(sample):
    with pytest.raises(DataError, match=r"^s.xml: the scribble is for an image of \(7, 9\)"):
        sample_marks(sample(scribble=Strokes((), (7, 9), "s.xml")), 2)


def test_clicks_off_the_image_are_left_out_with_one_warning(sample, caplog):
    found = sample(clicks=(Click(50, 2, 1, "clicks.csv, line 3"), Click(1, 50, 1), Click(1, 1, 2)))
    assert clicks_off(found, HEIGHT, WIDTH).startswith(
        "clicks.csv, line 3: the click at x 50, y 2 (and 1 more) is off the image a of 9 x 6 pixels"
    )
    assert not clicks_off(sample(clicks=(Click(8, 5, 1),)), HEIGHT, WIDTH)
    for _ in range(2):
        assert {*np.unique(sample_marks(found, 2).labels)} == {2, 255}
    assert len(caplog.records) == 1


def test_a_scribble_that_is_not_there_is_named(sample, tmp_path):
    (tmp_path / "scribbl.png").touch()
    with pytest.raises(
        DataError, match=r"^image a: there is no scribble .*scribble.png.* \(data.csv, line 2\); add it"
    ):
        sample_marks(sample(scribble=tmp_path / "scribble.png"), 2)
