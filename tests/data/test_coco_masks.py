import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as tools

from cam_pipeline.data.coco_masks import CocoMask, Region, draw, packed_polygon, packed_runs
from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError, LibraryMissing

SIZE = (6, 9)  # height, width


def box(label, top, left, bottom, right, crowd=False):
    """A region of the pixels [top, bottom) x [left, right)."""
    corners = [left, top, right, top, right, bottom, left, bottom]
    return Region(label, crowd, (packed_polygon([float(value) for value in corners], *SIZE),))


def mask_of(*regions):
    return CocoMask(*SIZE, regions, "x.json, image 7")


def expected(*boxes):
    labels = np.zeros(SIZE, np.uint8)
    for label, top, left, bottom, right in boxes:
        labels[top:bottom, left:right] = label
    return labels.tolist()


def test_polygons_cover_their_pixels():
    assert draw(mask_of(box(3, 1, 2, 4, 8))).tolist() == expected((3, 1, 2, 4, 8))
    two_parts = Region(2, False, (*box(2, 0, 0, 2, 2).polygons, *box(2, 3, 4, 6, 9).polygons))
    assert draw(mask_of(two_parts)).tolist() == expected((2, 0, 0, 2, 2), (2, 3, 4, 6, 9))
    assert not draw(mask_of()).any() and draw(mask_of()).shape == SIZE


def test_the_smaller_object_lies_on_top_whatever_the_order():
    small, large = box(1, 2, 2, 4, 4), box(2, 1, 1, 5, 7)
    for regions in ((small, large), (large, small)):
        assert draw(mask_of(*regions)).tolist() == expected((2, 1, 1, 5, 7), (1, 2, 2, 4, 4))


def test_of_two_objects_of_one_size_the_later_lies_on_top():
    first, later = box(1, 0, 0, 3, 3), box(2, 1, 1, 4, 4)
    assert draw(mask_of(first, later)).tolist() == expected((1, 0, 0, 3, 3), (2, 1, 1, 4, 4))
    assert draw(mask_of(later, first)).tolist() == expected((2, 1, 1, 4, 4), (1, 0, 0, 3, 3))


def test_crowds_are_ignored_but_not_the_objects_in_them():
    crowd, within, around = box(1, 1, 1, 4, 4, crowd=True), box(2, 2, 2, 3, 3), box(3, 0, 0, 6, 9)
    assert draw(mask_of(within, crowd)).tolist() == expected((255, 1, 1, 4, 4), (2, 2, 2, 3, 3))
    assert draw(mask_of(around, crowd)).tolist() == expected((3, 0, 0, 6, 9))  # an object, though larger, is known


def random_masks():
    rng = np.random.default_rng(0)
    yield from (rng.random(SIZE) < share for share in (0.1, 0.5, 0.9))
    yield from (np.zeros(SIZE, bool), np.ones(SIZE, bool), np.indices(SIZE).sum(axis=0) % 2 == 1)


@pytest.mark.parametrize("inside", list(random_masks()))
def test_run_lengths_are_those_of_pycocotools(inside):
    compressed = tools.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"].decode()
    flat = inside.T.ravel()  # down the columns
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    numbers = np.diff([0, *changes, flat.size]).tolist()
    for counts in (compressed, numbers):
        region = Region(5, False, runs=packed_runs(counts, *SIZE))
        assert draw(mask_of(region)).tolist() == np.where(inside, 5, 0).tolist()


def test_long_runs_of_a_large_image_are_those_of_pycocotools():
    inside = np.zeros((700, 900), bool)
    inside[100:650, 300:310], inside[5, 3], inside[:, 850:] = True, True, True
    counts = tools.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"].decode()
    region = Region(1, False, runs=packed_runs(counts, 700, 900))
    assert (draw(CocoMask(700, 900, (region,), "")) == inside).all()


@pytest.mark.parametrize(
    "counts", ["", "04", "05L5", "zzzz", "0ooooooooooo", "é", "0o", [], [54, 1], [-1, 55], [53], [2**40]]
)
def test_run_lengths_that_do_not_fill_the_image_are_refused(counts):
    """pycocotools takes most of these, and shows what lies in memory."""
    with pytest.raises(ValueError, match="run lengths"):
        packed_runs(counts, *SIZE)


@pytest.mark.parametrize(
    ("coordinates", "complaint"),
    [([0, 0, 4, 4], "three points or more, .* it has 4 numbers"), ([0, 0, 1, 1, 2, 2, 3], "it has 7 numbers"),
     ([], "it has 0 numbers"), ([0, 0, 1e9, 0, 5, 5], "far outside its image of 9 x 6 pixels")],
)  # fmt: skip
def test_polygons_that_can_not_be_drawn_are_refused(coordinates, complaint):
    with pytest.raises(ValueError, match=complaint):
        packed_polygon(coordinates, *SIZE)


def test_polygons_a_little_outside_are_cut_at_the_edge():
    assert draw(mask_of(box(1, -2, -3, 3, 4))).tolist() == expected((1, 0, 0, 3, 4))


def test_the_digest_notices_what_changes_a_pixel(tmp_path):
    regions = [box(1, 0, 0, 3, 3), box(2, 1, 1, 4, 4)]
    others = [
        mask_of(*regions), mask_of(*regions[::-1]), mask_of(regions[0]), mask_of(box(1, 0, 0, 3, 4), regions[1]),
        mask_of(box(3, 0, 0, 3, 3), regions[1]), mask_of(box(1, 0, 0, 3, 3, crowd=True), regions[1]),
        CocoMask(9, 6, tuple(regions), ""), mask_of(Region(1, False, runs=packed_runs([0, 54], *SIZE))),
    ]  # fmt: skip
    assert len({mask.digest() for mask in others}) == len(others)
    assert CocoMask(*SIZE, tuple(regions), "elsewhere").digest() == others[0].digest()
    (tmp_path / "a.jpg").touch()
    digests = FileDigests(tmp_path / "memory.json")
    samples = [Sample("a", tmp_path / "a.jpg", "train", (1,), mask) for mask in others[:2]]
    assert len({data_digest(("c",), [sample], digests, masks=True) for sample in samples}) == 2
    assert len({data_digest(("c",), [sample], digests) for sample in samples}) == 1


def test_the_mask_of_a_sample_is_drawn_at_the_size_of_its_image(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", SIZE[::-1]).save(path)
    region = box(1, 0, 0, 2, 3)
    assert sample_mask(Sample("a", path, "train", (1,), mask_of(region)), 1).tolist() == expected((1, 0, 0, 2, 3))
    turned = Sample("a", path, "train", (1,), CocoMask(9, 6, (region,), "x.json, image 7"))
    with pytest.raises(DataError, match=r"^x\.json, image 7: the mask is \(9, 6\), its image is \(6, 9\)"):
        sample_mask(turned, 1)


def test_outlines_for_another_resolution_are_told(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (18, 12)).save(path)
    with pytest.raises(DataError, match=r"its image is \(12, 18\) .*; scale its outlines, or correct height"):
        sample_mask(Sample("a", path, "train", (1,), mask_of(box(1, 0, 0, 2, 3))), 1)


def test_without_pycocotools_there_is_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(LibraryMissing, match="Install it: pip install pycocotools"):
        draw(mask_of(box(1, 0, 0, 2, 3)))
    runs = Region(1, False, runs=packed_runs([0, 54], *SIZE))
    assert (draw(mask_of(runs)) == 1).all()
