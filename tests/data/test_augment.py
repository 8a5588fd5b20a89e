"""Views whose pixels hold their own coordinates: whatever moves the image must move the mask."""

import numpy as np
import pytest
import torch

from cam_pipeline.data.augment import random_view
from cam_pipeline.ops.ignore import IGNORE_INDEX

FILL = (201, 202, 203)


def coordinates(height, width, factor=1):
    """Image (3, H, W) of row, column and 0, each times `factor`."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([rows, columns, torch.zeros_like(rows)]) * factor).to(torch.uint8)


def views(image, mask, crop, scale, count=40):
    return [random_view(image, mask, crop, (scale, scale), FILL, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize(("crop", "scale"), [(10, 1.0), (5, 2.0), (8, 1.25)])  # 6 x 10 pixels stay 6 x 10 pixels
def test_mask_moves_with_the_image_and_padding_is_marked(crop, scale):
    image = coordinates(6, 10)
    mask = image[0] * 10 + image[1]  # row and column in one number
    flips, corners = set(), set()
    for view, labels, _ in views(image, mask, crop, scale):
        assert view.shape == (3, crop, crop) and view.dtype == torch.uint8
        assert labels.shape == (crop, crop) and labels.dtype == torch.uint8
        inside = labels != IGNORE_INDEX
        assert torch.equal(view[0][inside], labels[inside] // 10)
        assert torch.equal(view[1][inside], labels[inside] % 10)
        assert (view[:, ~inside] == torch.tensor(FILL, dtype=torch.uint8)[:, None]).all()
        assert inside.sum() == min(crop, 6) * min(crop, 10)
        seen = labels[inside].view(min(crop, 6), min(crop, 10)).long()
        flips.add(int(seen[0, 1] - seen[0, 0]))
        assert (seen[1:] - seen[:-1] == 10).all(), "rows are never turned round"
        corners.add((int(seen.min()) // 10, int(inside.nonzero()[0, 0])))
    assert flips == {1, -1}
    # First row seen, and row of the view where it lies: every possible place occurs.
    assert corners == {(row, 0) for row in range(7 - crop)} if crop < 6 else {(0, row) for row in range(crop - 5)}


def test_every_place_of_the_window_occurs_in_both_directions():
    image = coordinates(6, 10)
    left = {int(view[1].min()) for view, _, _ in views(image, None, 5, 2.0)}
    top = {int(view[0].min()) for view, _, _ in views(image, None, 5, 2.0)}
    assert left == set(range(6)) and top == {0, 1}


@pytest.mark.parametrize("scale", [0.35, 0.7, 1.3])  # no pixel falls right between two
def test_resized_mask_stays_on_the_resized_image(scale):
    image = coordinates(40, 60, factor=4)
    mask = image[0] // 4
    for view, labels, _ in views(image, mask, 60, scale, count=4):
        rows = labels != IGNORE_INDEX
        assert rows.sum() == pytest.approx(40 * 60 * min(scale, 1.0) * min(scale, 1.5), rel=0.05)
        gap = view[0][rows].double() / 4 - labels[rows].double()
        assert gap.abs().max() <= 0.75, "nearest neighbour: half a pixel, and what antialiasing does at the border"
        assert abs(gap.mean()) < 0.12, "no shift between them"


def test_masks_are_resized_without_new_ids():
    mask = torch.zeros(30, 44, dtype=torch.uint8)
    mask[5:20, 10:30], mask[12:14] = 9, IGNORE_INDEX
    for _, labels, _ in views(coordinates(30, 44), mask, 32, 0.9):
        assert {0, 9, IGNORE_INDEX} == set(labels.unique().tolist())


def test_scale_is_drawn_from_the_range_of_the_longer_side():
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    lengths = []
    for seed in range(60):
        view, *_ = random_view(image, None, 50, (0.4, 0.8), FILL, np.random.default_rng(seed))
        shown = (view == 0).all(dim=0)
        height, width = int(shown.any(dim=1).sum()), int(shown.any(dim=0).sum())
        assert abs(width - 2 * height) <= 1
        lengths.append(width)
    assert min(lengths) in (20, 21) and max(lengths) in (39, 40)


def test_a_view_follows_from_its_generator_and_leaves_its_arguments_alone():
    image = coordinates(6, 10)
    mask = image[0].clone()

    def make(seed):
        return random_view(image, mask, 8, (0.5, 1.5), FILL, np.random.default_rng(seed))

    first, again, other = make(3), make(3), make(4)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(image, coordinates(6, 10)) and torch.equal(mask, image[0])
    without_mask, nothing, _ = random_view(image, None, 8, (0.5, 1.5), FILL, np.random.default_rng(3))
    assert nothing is None and torch.equal(without_mask, first[0])


def test_a_line_of_pixels_does_not_vanish():
    view, *_ = random_view(torch.zeros(3, 1, 500, dtype=torch.uint8), None, 16, (1, 1), FILL, np.random.default_rng(0))
    assert int((view == 0).all(dim=0).sum()) == 16


@pytest.mark.parametrize(("crop", "scale"), [(10, 1.0), (5, 2.0), (8, 1.25), (12, 0.9)])
def test_the_box_is_where_the_image_lies(crop, scale):
    for view, _, box in views(coordinates(6, 10), None, crop, scale):
        top, left, bottom, right = box.tolist()
        shown = torch.zeros(crop, crop, dtype=torch.bool)
        shown[top:bottom, left:right] = True
        assert torch.equal(shown, view[2] != FILL[2])
        assert shown.any()
