"""Views whose pixels hold their own coordinates: whatever moves the image must move the mask."""

import numpy as np
import pytest
import torch

from cam_pipeline.data.augment import Colors, PixelMap, random_view, recolored
from cam_pipeline.ops.ignore import IGNORE_INDEX

FILL = (201, 202, 203)


def coordinates(height, width, factor=1):
    """Image (3, H, W) of row, column and 0, each times `factor`."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([rows, columns, torch.zeros_like(rows)]) * factor).to(torch.uint8)


def view_of(image, mask, *arguments):
    """View, mask and box; the mask is None without one."""
    view, maps, box = random_view(image, {} if mask is None else {"mask": PixelMap(mask)}, *arguments)
    assert maps.keys() == ({"mask"} if mask is not None else set())
    return view, maps.get("mask"), box


def views(image, mask, crop, scale, count=40):
    return [view_of(image, mask, crop, (scale, scale), FILL, np.random.default_rng(seed)) for seed in range(count)]


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


@pytest.mark.parametrize(("crop", "scale"), [(10, 1.0), (5, 2.0), (8, 1.25), (12, 0.9)])
def test_every_map_goes_with_the_image_in_its_own_way(crop, scale):
    """A row and a column as smooth channels, and the number of the pixel by nearest neighbour."""
    image = coordinates(6, 10, factor=20)
    smooth = PixelMap(coordinates(6, 10, factor=20)[:2], smooth=True, fill=0)
    maps = {"smooth": smooth, "number": PixelMap((torch.arange(60) + 1).view(6, 10).to(torch.uint8), fill=7)}
    for seed in range(10):
        view, moved, box = random_view(image, maps, crop, (scale, scale), FILL, np.random.default_rng(seed))
        assert [(name, tuple(one.shape), one.dtype) for name, one in moved.items()] == [
            ("smooth", (2, crop, crop), torch.uint8),
            ("number", (crop, crop), torch.uint8),
        ]
        inside = torch.zeros(crop, crop, dtype=torch.bool)
        inside[box[0] : box[2], box[1] : box[3]] = True
        assert torch.equal(moved["smooth"][:, inside], view[:2, inside]), "as the image, which is smooth, too"
        assert (moved["smooth"][:, ~inside] == 0).all() and (moved["number"][~inside] == 7).all()
        number = moved["number"][inside].long() - 1
        assert ((number // 10 - view[0][inside] / 20).abs() <= 0.75).all()
        assert ((number % 10 - view[1][inside] / 20).abs() <= 0.75).all()


def test_channels_of_a_map_find_their_places_in_the_view():
    few = coordinates(6, 10, factor=20)[:2]
    many = torch.zeros(5, 6, 10, dtype=torch.uint8)
    many[0], many[3] = few
    maps = {
        "few": PixelMap(few, smooth=True, fill=0, channels=(0, 3), depth=5),
        "many": PixelMap(many, smooth=True, fill=0),
    }
    for seed in range(5):
        _, moved, _ = random_view(noise(6, 10), maps, 8, (0.7, 1.5), FILL, np.random.default_rng(seed))
        assert moved["few"].shape == (5, 8, 8) and torch.equal(moved["few"], moved["many"])


def test_maps_change_nothing_about_the_view():
    for seed in range(5):
        plain, _, _ = random_view(noise(), {}, 16, (0.9, 1.6), FILL, np.random.default_rng(seed), Colors(0.3, 0.3, 0.3))
        maps = {"a": PixelMap(noise()[0]), "b": PixelMap(noise(), smooth=True)}
        view, *_ = random_view(noise(), maps, 16, (0.9, 1.6), FILL, np.random.default_rng(seed), Colors(0.3, 0.3, 0.3))
        assert torch.equal(view, plain)


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
        view, *_ = view_of(image, None, 50, (0.4, 0.8), FILL, np.random.default_rng(seed))
        shown = (view == 0).all(dim=0)
        height, width = int(shown.any(dim=1).sum()), int(shown.any(dim=0).sum())
        assert abs(width - 2 * height) <= 1
        lengths.append(width)
    assert min(lengths) in (20, 21) and max(lengths) in (39, 40)


def test_a_view_follows_from_its_generator_and_leaves_its_arguments_alone():
    image = coordinates(6, 10)
    mask = image[0].clone()

    def make(seed):
        return view_of(image, mask, 8, (0.5, 1.5), FILL, np.random.default_rng(seed))

    first, again, other = make(3), make(3), make(4)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(image, coordinates(6, 10)) and torch.equal(mask, image[0])
    without_mask, nothing, _ = view_of(image, None, 8, (0.5, 1.5), FILL, np.random.default_rng(3))
    assert nothing is None and torch.equal(without_mask, first[0])


def test_a_line_of_pixels_does_not_vanish():
    view, *_ = view_of(torch.zeros(3, 1, 500, dtype=torch.uint8), None, 16, (1, 1), FILL, np.random.default_rng(0))
    assert int((view == 0).all(dim=0).sum()) == 16


@pytest.mark.parametrize(("crop", "scale"), [(10, 1.0), (5, 2.0), (8, 1.25), (12, 0.9)])
def test_the_box_is_where_the_image_lies(crop, scale):
    for view, _, box in views(coordinates(6, 10), None, crop, scale):
        top, left, bottom, right = box.tolist()
        shown = torch.zeros(crop, crop, dtype=torch.bool)
        shown[top:bottom, left:right] = True
        assert torch.equal(shown, view[2] != FILL[2])
        assert shown.any()


def noise(height=20, width=24):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def recolor(image, seed=0, **colors):
    return recolored(image, Colors(**colors), np.random.default_rng(seed))


def test_colours_stay_as_they_are_and_draw_nothing_by_default():
    rng = np.random.default_rng(3)
    assert torch.equal(recolored(noise(), Colors(), rng), noise())
    assert rng.random() == np.random.default_rng(3).random()
    mask = torch.zeros(20, 24, dtype=torch.uint8)
    plain = view_of(noise(), mask, 16, (0.9, 1.6), FILL, np.random.default_rng(1))
    assert all(
        map(torch.equal, plain, view_of(noise(), mask, 16, (0.9, 1.6), FILL, np.random.default_rng(1), Colors()))
    )


def test_jitter_changes_brightness_contrast_and_saturation_within_bounds():
    grey = torch.full((3, 6, 6), 100, dtype=torch.uint8)  # of one colour: only brightness shows
    means = [float(recolor(grey, seed, jitter=0.3).float().mean()) for seed in range(60)]
    assert 68 <= min(means) < 80 and 120 < max(means) <= 131  # each change rounds
    assert not torch.equal(recolor(noise(), jitter=0.3), noise())
    assert torch.equal(recolor(noise(), jitter=0.3), recolor(noise(), jitter=0.3))


def test_a_share_of_the_views_loses_its_colours():
    grey = [bool((view[0] == view[1]).all()) for view in (recolor(noise(), seed, greyscale=0.3) for seed in range(200))]
    assert 0.2 < np.mean(grey) < 0.4
    assert recolor(noise(), greyscale=1.0).shape == (3, 20, 24)


def test_a_share_of_the_views_is_blurred():
    sharp = float(noise().float().diff(dim=-1).abs().mean())
    blurred = [float(recolor(noise(), seed, blur=1.0).float().diff(dim=-1).abs().mean()) for seed in range(30)]
    assert min(blurred) < sharp / 3 and max(blurred) <= sharp
    assert np.mean([torch.equal(recolor(noise(), seed, blur=0.4), noise()) for seed in range(100)]) > 0.4


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_tiny_images_can_be_changed(size):
    for seed in range(10):
        assert recolor(noise(*size), seed, jitter=1.0, greyscale=0.5, blur=1.0).shape == (3, *size)


def test_the_padding_keeps_its_colour_and_the_mask_its_labels():
    mask = (torch.arange(20 * 24) % 7).view(20, 24).to(torch.uint8)
    colors = Colors(jitter=0.5, greyscale=0.5, blur=0.5)
    for seed in range(20):
        view, labels, box = view_of(noise(), mask, 40, (0.6, 0.6), FILL, np.random.default_rng(seed), colors)
        _, expected, _ = view_of(noise(), mask, 40, (0.6, 0.6), FILL, np.random.default_rng(seed))
        outside = torch.ones(40, 40, dtype=torch.bool)
        top, left, bottom, right = box.tolist()
        outside[top:bottom, left:right] = False
        assert outside.any() and (view[:, outside] == torch.tensor(FILL, dtype=torch.uint8)[:, None]).all()
        assert (labels == 255).sum() == (expected == 255).sum()
