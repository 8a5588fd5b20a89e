import numpy as np
import pytest
import torch
from torch.nn import functional

from cam_pipeline.ops import clicks
from cam_pipeline.ops.affinity import feature_walk
from cam_pipeline.ops.clicks import compact_features, marks_on_grid, spread_marks


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((2, 4), [[255, 3, 255, 255], [255, 255, 255, 0]]),
        ((1, 2), [[3, 0]]),
        ((1, 1), [[0]]),  # the last pixel wins
        ((4, 4), [[255, 255, 255, 255], [255, 3, 255, 255], [255] * 4, [255, 255, 255, 0]]),
    ],
)
def test_a_cell_has_the_label_of_a_marked_pixel_in_it(size, expected):
    marks = np.full((4, 8), 255, np.uint8)
    marks[1, 2], marks[3, 7] = 3, 0
    assert marks_on_grid(marks, size).tolist() == expected
    assert (marks_on_grid(np.full((4, 8), 255, np.uint8), size) == 255).all()


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(features):
    units = functional.normalize(features.flatten(2), dim=1)
    return units.transpose(1, 2) @ units


def test_compact_features_keep_the_cosines():
    features = torch.einsum("bdk,bkhw->bdhw", random(2, 9, 4), random(2, 4, 3, 5, seed=1))  # of rank 4
    found = compact_features(features, 4)
    assert found.shape == (2, 4, 3, 5)
    torch.testing.assert_close(cosines(found), cosines(features))
    wide = random(1, 9, 3, 5) - 0.5
    errors = [float((cosines(compact_features(wide, count)) - cosines(wide)).abs().mean()) for count in (2, 5, 8)]
    assert errors[0] > errors[1] > errors[2] > 0
    assert compact_features(features, 9) is features


@pytest.mark.parametrize(("shape", "count"), [((3, 4, 5), 2), ((1, 3, 0, 5), 2), ((1, 3, 4, 5), 0)])
def test_compact_features_are_checked(shape, count):
    with pytest.raises(ValueError, match=r"^features must be \(B, D, h, w\) and count at least 1"):
        compact_features(torch.ones(shape), count)


def seeds_of(*cells, grid=(3, 4)):
    """Cells (row, column, channel)."""
    seeds = torch.full(grid, -1)
    for row, column, channel in cells:
        seeds[row, column] = channel
    return seeds


def reference(probabilities, features, seeds):
    """The formula as the docstring words it, cell by cell."""
    count, height, width = probabilities.shape
    units = functional.normalize(features, dim=0)
    evidence = {}
    for row, column in seeds.ge(0).nonzero().tolist():
        around = units[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].flatten(1).mean(dim=1)
        around = around / around.norm()
        for y in range(height):
            for x in range(width):
                far = ((y - row) ** 2 + (x - column) ** 2) ** 0.5 / max(height, width)
                value = float(around @ units[:, y, x]) - 0.6 * far
                key = int(seeds[row, column]), y, x
                evidence[key] = max(evidence.get(key, -9.0), value)
    named = {channel for channel, _, _ in evidence}
    logits = (probabilities + 0.01).log()
    for y in range(height):
        for x in range(width):
            others = min(max(evidence[channel, y, x] for channel in named), 0.5)
            for channel in range(count):
                logits[channel, y, x] += 10 * evidence.get((channel, y, x), others)
    spread = logits.softmax(dim=0)
    walks = 0 in named and len(named) > 1
    return feature_walk(spread[None], features[None], steps=2, power=5.0)[0] if walks else spread


@pytest.mark.parametrize("cells", [[(0, 0, 1), (2, 3, 0)], [(1, 1, 2), (1, 2, 2), (0, 3, 0)], [(2, 0, 0)]])
def test_spread_marks_equals_the_formula(cells):
    probabilities = random(3, 3, 4).softmax(dim=0)
    features = random(5, 3, 4, seed=1) - 0.4
    found = spread_marks(probabilities, features, seeds_of(*cells))
    torch.testing.assert_close(found, reference(probabilities, features, seeds_of(*cells)))
    torch.testing.assert_close(found.sum(dim=0), torch.ones(3, 4, dtype=torch.float64))


def two_things(height=6, width=8):
    """Features of an image whose left half differs from its right half."""
    features = torch.zeros(2, height, width)
    features[0, :, : width // 2] = features[1, :, width // 2 :] = 1
    return features


def test_a_class_flows_to_what_is_alike_and_other_clicks_hold_it_back():
    unsure = torch.full((2, 6, 8), 0.5)
    found = spread_marks(unsure, two_things(), seeds_of((3, 1, 1), (3, 6, 0), grid=(6, 8)))
    assert (found[1, :, :3] > 0.8).all() and (found[1, :, 5:] < 0.2).all()
    denied = torch.stack([torch.full((6, 8), 0.05), torch.full((6, 8), 0.95)])
    held = spread_marks(denied, two_things(), seeds_of((3, 6, 0), grid=(6, 8)))
    torch.testing.assert_close(held, reference(denied, two_things(), seeds_of((3, 6, 0), grid=(6, 8))))
    both = spread_marks(denied, two_things(), seeds_of((3, 1, 1), (3, 6, 0), grid=(6, 8)))
    assert (both[1, :, :3] > 0.9).all() and (both[1, :, 5:] < 0.4).all()


def test_one_click_changes_only_what_is_very_like_it():
    probabilities = torch.stack([torch.full((6, 8), 0.55), torch.full((6, 8), 0.45)])
    found = spread_marks(probabilities, two_things(), seeds_of((3, 1, 1), grid=(6, 8)))
    assert (found[1, :, :3] > 0.6).all()
    torch.testing.assert_close(found[:, :, 5:], (probabilities[:, :, 5:] + 0.01) / 1.02)


def test_without_seeds_nothing_changes_and_many_seeds_are_thinned(monkeypatch):
    probabilities = random(2, 6, 8).softmax(dim=0)
    assert spread_marks(probabilities, two_things(), seeds_of(grid=(6, 8))) is probabilities
    everywhere = torch.ones(6, 8, dtype=torch.long)
    full = spread_marks(probabilities, two_things(), everywhere)
    monkeypatch.setattr(clicks, "MOST_SEEDS", 3)
    assert spread_marks(probabilities, two_things(), everywhere).shape == full.shape


@pytest.mark.parametrize(("features", "seeds"), [((2, 6, 7), (6, 8)), ((2, 6, 8), (8, 6)), ((1, 2, 6, 8), (6, 8))])
def test_spread_marks_checks_shapes(features, seeds):
    with pytest.raises(ValueError, match=r"do not fit: \(2, 6, 8\), "):
        spread_marks(torch.ones(2, 6, 8), torch.ones(features), torch.zeros(seeds, dtype=torch.long))


def test_prototypes_of_marks_are_the_mean_direction_of_their_cells():
    features = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 3.0, -1.0]], [[0.0, 5.0, 1.0], [1.0, 3.0, 0.0]]])  # (2, 2, 3)
    seeds = torch.tensor([[0, 0, -1], [2, -1, -1]])
    found = clicks.prototypes_of_marks(features, seeds, 4)
    half = 0.5**0.5
    expected = torch.zeros(4, 2, 3)
    expected[0] = torch.tensor([[half, half, 1], [half, 1, 0]])  # the mean of (1, 0) and (0, 1), whatever their length
    expected[2] = torch.tensor([[0, 1, half], [1, half, 0]])
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="do not fit"):
        clicks.prototypes_of_marks(features, seeds.T, 4)
