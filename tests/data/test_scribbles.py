"""Scribbles and clicks made from masks."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from skimage.measure import label

from cam_pipeline.data.scribbles import (
    clicks_from_mask,
    s4_scribble_from_mask,
    scribble_from_mask,
    scribble_shrink,
)

STYLES = [scribble_from_mask, s4_scribble_from_mask]


def scene() -> np.ndarray:
    """64 x 96: a rectangle of 40 x 32 (label 1), a disc of radius 18 (2) and a speck of 2 x 2 (3)."""
    mask = np.zeros((64, 96), np.uint8)
    mask[16:56, 10:42] = 1
    rows, columns = np.ogrid[:64, :96]
    mask[(rows - 30) ** 2 + (columns - 70) ** 2 <= 18**2] = 2
    mask[2:4, 2:4] = 3
    return mask


def blobs(seed: int) -> np.ndarray:
    """Random regions of four labels and 255, thin ones and ones with holes among them."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 1, 2, 7, 255], np.uint8), (9, 13))
    mask = np.kron(coarse, np.ones((7, 6), np.uint8))
    mask[::5, 10:60] = rng.integers(0, 2)
    mask[20:50:2, 30:70] = 2  # a comb with gaps of one pixel
    mask[20:50, 30] = 2
    return mask


MASKS = [scene(), *map(blobs, range(3)), np.zeros((30, 5), np.uint8), np.ones((1, 40), np.uint8)]


def kept_regions(mask: np.ndarray, min_area: int) -> list[np.ndarray]:
    regions = [
        parts == number
        for one in np.unique(mask[mask != 255])
        for parts in [label(mask == one, connectivity=1)]
        for number in range(1, parts.max() + 1)
    ]
    return [region for region in regions if region.sum() >= min_area]


def counts(scribble: np.ndarray) -> dict[int, int]:
    return {int(one): int((scribble == one).sum()) for one in np.unique(scribble) if one != 255}


@pytest.mark.parametrize(
    ("width", "expected"),
    [(1, {0: 119, 1: 28, 2: 17}), (3, {0: 359, 1: 86, 2: 53}), (5, {0: 602, 1: 148, 2: 93})],
)
def test_strokes_have_the_sizes_of_the_specification(width: int, expected: dict[int, int]) -> None:
    assert counts(scribble_from_mask(scene(), width=width)) == expected


@pytest.mark.parametrize("draw", STYLES)
@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
@pytest.mark.parametrize("width", [1, 3, 7])
def test_every_region_has_one_stroke_that_stays_inside(draw, mask: np.ndarray, width: int) -> None:
    before = mask.copy()
    scribble = draw(mask, width=width, min_area=20)
    assert scribble.dtype == np.uint8 and scribble.shape == mask.shape
    drawn = scribble != 255
    assert (scribble[drawn] == mask[drawn]).all()
    regions = kept_regions(mask, 20)
    assert regions and [label(drawn & region, connectivity=2).max() for region in regions] == [1] * len(regions)
    assert set(counts(scribble)) == {int(mask[region][0]) for region in regions}
    assert (draw(mask, width=width, min_area=20) == scribble).all() and (mask == before).all()


@pytest.mark.parametrize("draw", STYLES)
@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
def test_wider_and_longer_strokes_cover_the_others(draw, mask: np.ndarray) -> None:
    by_width = [draw(mask, width=width, min_area=20) != 255 for width in (1, 2, 3, 4, 5, 9)]
    assert all((narrow <= wide).all() for narrow, wide in pairwise(by_width))
    shares = [int((draw(mask, width=1, keep=keep, min_area=20) != 255).sum()) for keep in (0, 0.3, 0.7, 1)]
    assert shares == sorted(shares)


def test_without_length_a_stroke_is_a_dot() -> None:
    assert counts(scribble_from_mask(scene(), width=1, keep=0)) in ({0: 1, 1: 2, 2: 1}, {0: 1, 1: 1, 2: 1})
    assert counts(s4_scribble_from_mask(scene(), width=1, keep=0))[2] == 1


def test_small_regions_and_ignored_pixels_say_nothing() -> None:
    assert 3 not in counts(scribble_from_mask(scene())) and counts(scribble_from_mask(scene(), min_area=4))[3] == 4
    assert (scribble_from_mask(np.full((20, 30), 255, np.uint8)) == 255).all()
    assert counts(s4_scribble_from_mask(scene())).keys() == {0, 1, 2}


@pytest.mark.parametrize("draw", STYLES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_tensor_gives_a_tensor(draw, dtype: torch.dtype) -> None:
    scribble = draw(torch.from_numpy(scene()).to(dtype))
    assert isinstance(scribble, torch.Tensor) and scribble.dtype == torch.uint8
    assert (scribble.numpy() == draw(scene())).all()


@pytest.mark.parametrize(
    ("mask", "more", "message"),
    [
        (np.zeros((3, 4, 5), np.uint8), {}, "whole numbers"),
        (np.zeros((3, 4)), {}, "whole numbers"),
        (np.full((3, 4), 256), {}, "labels 0..254"),
        (np.full((3, 4), -1), {}, "labels 0..254"),
        (np.zeros((3, 4), np.uint8), {"width": 0}, "width"),
        (np.zeros((3, 4), np.uint8), {"keep": 1.1}, "keep"),
    ],
)
def test_wrong_arguments(mask: np.ndarray, more: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scribble_from_mask(mask, **more)


def test_clicks_are_at_the_deepest_places() -> None:
    clicks = clicks_from_mask(scene())
    assert [one for *_, one in clicks] == [0, 1, 2]
    assert clicks[2] == (70, 30, 2)  # x, y
    x, y, _ = clicks[1]
    assert 16 + 15 <= y <= 55 - 15 and x in (10 + 15, 10 + 16)
    assert clicks == clicks_from_mask(scene().astype(int)) == clicks_from_mask(torch.from_numpy(scene()))
    assert len(clicks_from_mask(scene(), min_area=4)) == 4


@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
@pytest.mark.parametrize("seed", [None, 0, [3, 1]])
def test_every_region_has_one_click(mask: np.ndarray, seed) -> None:
    clicks = clicks_from_mask(mask, seed=seed)
    assert all(mask[y, x] == one for x, y, one in clicks)
    for region in kept_regions(mask, 20):
        assert sum(region[y, x] for x, y, _ in clicks) == 1
    assert clicks == clicks_from_mask(mask, seed=seed)


def test_another_seed_clicks_elsewhere() -> None:
    assert clicks_from_mask(scene(), seed=0) != clicks_from_mask(scene(), seed=1)


@pytest.mark.parametrize(
    ("points", "ratio", "expected"),
    [
        ([(0, 0), (10, 0)], 0.5, [(2.5, 0), (7.5, 0)]),  # both cuts in one segment
        ([(0, 0), (4, 0), (4, 4), (8, 4)], 0.5, [(3, 0), (4, 0), (4, 4), (5, 4)]),
        ([(0, 0), (4, 0), (4, 4), (8, 4)], 1, [(0, 0), (4, 0), (4, 4), (8, 4)]),
        ([(0, 0), (1, 0), (11, 0), (12, 0)], 10 / 12, [(1, 0), (11, 0)]),  # a cut at a point
        ([(0, 0), (4, 0), (4, 4)], 0, [(4, 0)]),
        ([(3, 5)], 0.3, [(3, 5)]),
        ([(3, 5), (3, 5)], 0.3, [(3, 5)]),
        ([(0, 0), (0, 0), (10, 0), (10, 0)], 0.5, [(2.5, 0), (7.5, 0)]),
    ],
)
def test_a_stroke_keeps_its_central_share(points, ratio: float, expected) -> None:
    assert np.allclose(scribble_shrink(points, ratio), expected)


@pytest.mark.parametrize(("points", "ratio"), [([], 0.5), ([(1, 2, 3)], 0.5), ([(0, 0), (1, 1)], 1.5)])
def test_wrong_strokes(points, ratio: float) -> None:
    with pytest.raises(ValueError):
        scribble_shrink(points, ratio)
