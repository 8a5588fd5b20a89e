import numpy as np
import pytest
import torch

from cam_pipeline.ops import permutohedral as module
from cam_pipeline.ops.permutohedral import permutohedral_lattice


def places(height, width, sigma):
    """Column and row (2, N) of every pixel in standard deviations."""
    rows, columns = np.mgrid[:height, :width]
    return torch.from_numpy(np.stack([columns.ravel(), rows.ravel()]) / sigma)


def like_an_image(height, width, srgb, sxy=50):
    """Features (5, N) of an image 37 y + 23 x + 61 c, modulo 256."""
    rows, columns, channels = np.mgrid[:height, :width, :3]
    colors = (37 * rows + 23 * columns + 61 * channels) % 256
    return torch.cat([places(height, width, sxy), torch.from_numpy(colors.reshape(-1, 3).T / srgb)])


def test_worked_numbers_of_a_grid():
    lattice = permutohedral_lattice(places(5, 7, 3))
    found = lattice(torch.ones(35, 1)).view(5, 7)
    assert lattice.points == 12
    np.testing.assert_allclose([found[0, 0], found[2, 3], found[4, 6]], [12.709448, 21.724218, 13.555252], rtol=1e-6)


@pytest.mark.parametrize(("srgb", "points"), [(5, 200), (60, 62)])
def test_worked_numbers_of_points(srgb, points):
    assert permutohedral_lattice(like_an_image(5, 7, srgb)).points == points


def filtered_point_by_point(features, values):
    """The specification's words, with a dictionary of lattice points, in float64."""
    dimensions = len(features)
    size = dimensions + 1
    points, corners, weights = {}, [], []
    for feature in features.T:
        scaled = [f * np.sqrt(2 / 3) * size / np.sqrt((i + 1) * (i + 2)) for i, f in enumerate(feature)]
        elevated = np.array([sum(scaled), *(sum(scaled[j:]) - j * scaled[j - 1] for j in range(1, size))])
        nearest = size * np.round(elevated / size)
        away = elevated - nearest
        rank = np.array([(away > own).sum() + (away[:j] == own).sum() for j, own in enumerate(away)])
        rank = rank + int(nearest.sum() / size)
        low, high = rank < 0, rank > dimensions
        nearest, rank = nearest + size * low - size * high, rank + size * low - size * high
        share = np.zeros(size + 1)
        for own, place in zip((elevated - nearest) / size, rank, strict=True):
            share[dimensions - place] += own
            share[dimensions + 1 - place] -= own
        share[0] += 1 + share[size]
        keys = [tuple((nearest + np.where(rank <= dimensions - q, q, q - size)).astype(int)) for q in range(size)]
        corners.append([points.setdefault(key, len(points)) for key in keys])
        weights.append(share[:size])
    at_points = np.zeros((len(points), values.shape[1]))
    for places, shares, value in zip(corners, weights, values, strict=True):
        for place, share in zip(places, shares, strict=True):
            at_points[place] += share * value
    for axis in range(size):
        added = np.zeros_like(at_points)
        for key, place in points.items():
            for sign in (1, -1):
                neighbour = tuple(k + sign * (dimensions if j == axis else -1) for j, k in enumerate(key))
                if neighbour in points:
                    added[place] += at_points[points[neighbour]] / 2
        at_points = at_points + added
    found = [np.array(shares) @ at_points[places] for places, shares in zip(corners, weights, strict=True)]
    return np.array(found) / (1 + 2.0**-dimensions), len(points)


CASES = {
    "places": places(11, 13, 3),
    "narrow places": places(11, 13, 0.3),
    "an image": like_an_image(11, 13, 20),
    "an image of few colours": like_an_image(11, 13, 90),
    "one feature": torch.linspace(0, 9, 40)[None] ** 2,
    "random": 4 * torch.randn(4, 90, generator=torch.Generator().manual_seed(1)),
    "one pixel": torch.tensor([[3.0], [1.0]]),
    "equal pixels": torch.full((3, 7), 2.5),
}


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_against_a_lattice_point_by_point(name, hashed, monkeypatch):
    if hashed:
        monkeypatch.setattr(module, "LONGEST_NUMBER", 0)
    features = CASES[name].double()
    values = torch.rand(features.shape[1], 3, generator=torch.Generator().manual_seed(0))
    expected, points = filtered_point_by_point(features.numpy(), values.numpy())
    with torch.device("meta"):  # nothing is made on the default device
        lattice = permutohedral_lattice(features)
    assert lattice.points == points
    np.testing.assert_allclose(lattice(values), expected, rtol=1e-4, atol=1e-6)


def test_far_features_are_placed_as_finely_as_near_ones():
    near = 4 * torch.rand(3, 60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    far = near.clone()
    far[:, 30:] += 1e6
    values = torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    found = permutohedral_lattice(far)(values)
    expected, _ = filtered_point_by_point(far.numpy(), values.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("hashed", [False, True])
def test_pixels_of_different_groups_never_meet(hashed, monkeypatch):
    if hashed:
        monkeypatch.setattr(module, "LONGEST_NUMBER", 0)
    features = [like_an_image(7, 9, 20), like_an_image(7, 9, 60)]
    values = torch.rand(126, 2, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(2).repeat_interleave(63)
    together = permutohedral_lattice(torch.cat(features, dim=1), groups)(values)
    alone = [permutohedral_lattice(one)(part) for one, part in zip(features, values.split(63), strict=True)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_factors_before_and_after():
    lattice = permutohedral_lattice(like_an_image(7, 9, 20))
    values, before, after = torch.rand(3, 63, 1, generator=torch.Generator().manual_seed(0))
    expected = after * lattice(before * values)
    torch.testing.assert_close(lattice.scaled(before[:, 0], after[:, 0])(values), expected)
