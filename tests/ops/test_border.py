import pytest
import torch
from torch import tensor

from cam_pipeline.ops.affinity import random_walk
from cam_pipeline.ops.border import border_cells, border_likeness, without_background


def close(found, expected):
    torch.testing.assert_close(found, tensor(expected, dtype=found.dtype), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("size", "share", "expected"),
    [
        ((3, 4), 0.1, ["1111", "1001", "1111"]),
        ((5, 7), 0.4, ["1111111", "1111111", "1100011", "1111111", "1111111"]),
        ((4, 3), 0.5, ["111"] * 4),
        ((1, 3), 0.1, ["111"]),
    ],
)
def test_border_cells(size, share, expected):
    assert ["".join(str(int(cell)) for cell in row) for row in border_cells(*size, share)] == expected


@pytest.mark.parametrize("share", [0, -0.1, 0.6, float("nan")])
def test_a_border_has_a_width(share):
    with pytest.raises(ValueError, match=r"share must lie in 0\.\.1/2"):
        border_cells(3, 4, share)


def directions(rows):
    """Features (1, 2, h, w): cells `a` look one way, `b` across, `c` between them (cosines .6 and .8)."""
    way = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.6, 0.8)}
    return tensor([[way[cell] for cell in row] for row in rows]).permute(2, 0, 1)[None]


def test_what_is_like_the_border_alone_is_background_and_what_is_like_nothing_there_is_not():
    features = directions(["bbbb", "baab", "bbbb"])
    close(border_likeness(features, steps=1)[0, 0], [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]])


def test_an_object_that_touches_the_border_is_background_by_that_share():
    features = directions(["bbab", "baab", "bbbb"])
    third = 1 / 3
    close(border_likeness(features)[0, 0], [[1, 1, third, 1], [1, third, third, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize("power", [1.0, 2.0, 5.0])
def test_power_by_hand(power):
    """The middle gathers four cells of each kind and itself; a border cell four of its own kind and the middle."""
    found = border_likeness(directions(["aba", "bcb", "aba"]), steps=1, power=power)[0, 0]
    a, b = 0.6**power, 0.8**power
    middle, of_a, of_b = (4 * a + 4 * b) / (4 * a + 4 * b + 1), 4 / (4 + a), 4 / (4 + b)
    close(found, [[1, of_b / of_a, 1], [of_b / of_a, middle / of_a, of_b / of_a], [1, of_b / of_a, 1]])


def test_it_is_the_walk_of_the_border_of_every_image_by_itself():
    features = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = border_likeness(features, share=0.1, steps=3, power=2.0)
    unit = torch.nn.functional.normalize(features.flatten(2), dim=1)
    cells = border_cells(3, 4, 0.1).double().expand(2, 1, 3, 4)
    walked = random_walk(cells, (unit.mT @ unit).relu(), steps=3, power=2.0)
    torch.testing.assert_close(found, walked / walked.amax(dim=(2, 3), keepdim=True))
    assert found.shape == (2, 1, 3, 4) and found.dtype == torch.float64
    torch.testing.assert_close(found[1:], border_likeness(features[1:], share=0.1, steps=3, power=2.0))


def test_what_classes_claim_of_the_border_counts_less():
    """Of three cells alike one lies in the border; claimed by half it makes them all like the border by a sixth."""
    features, claimed = directions(["bbab", "baab", "bbbb"]), torch.zeros(1, 1, 3, 4)
    claimed[0, 0, 0, 2], claimed[0, 0, 1, 1] = 0.5, 1.0  # what is inside never counts
    sixth = 1 / 6
    close(border_likeness(features, claimed=claimed)[0, 0], [[1, 1, sixth, 1], [1, sixth, sixth, 1], [1, 1, 1, 1]])
    half = torch.full((1, 1, 3, 4), 0.5)
    torch.testing.assert_close(border_likeness(features, claimed=half), border_likeness(features) / 2)
    close(border_likeness(features, claimed=torch.ones(1, 1, 3, 4))[0, 0], [[0.0] * 4] * 3)
    with pytest.raises(ValueError, match="claimed must be"):
        border_likeness(features, claimed=torch.ones(1, 2, 3, 4))


def test_features_of_nothing_are_like_no_border():
    assert torch.equal(border_likeness(torch.zeros(2, 3, 2, 3)), torch.zeros(2, 1, 2, 3))


def test_the_background_takes_its_part_of_every_map():
    cam = tensor(
        [[[[4.0, 2, -1], [0, 1, 3]], [[0.0, 0, 0], [0, 0, 0]]], [[[1.0, 1, 1], [1, 1, 1]], [[-2.0, 0, 2], [0, 1, 0]]]]
    )
    background = tensor([[[[0.0, 0.25, 0.5], [1, 0.25, 1]]], [[[0.5, 0.25, 0.5], [0, 1, 0.25]]]])
    before = cam.clone()
    found = without_background(cam, background)
    close(found[0], [[[4, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    close(found[1], [[[0.5, 0.75, 0.5], [1, 0, 0.75]], [[0, 0, 1], [0, 0, 0]]])
    assert torch.equal(cam, before)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"features must be \(B, D, h, w\)"):
        border_likeness(torch.rand(3, 4, 5))
    for background in (torch.rand(1, 1, 2, 3), torch.rand(2, 2, 2, 3), torch.rand(2, 1, 3, 2)):
        with pytest.raises(ValueError, match="do not fit"):
            without_background(torch.rand(2, 2, 2, 3), background)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    assert border_likeness(torch.rand(1, 3, 2, 3, dtype=dtype)).dtype == torch.float32
    assert without_background(torch.rand(1, 2, 2, 3, dtype=dtype), torch.rand(1, 1, 2, 3)).dtype == torch.float32
