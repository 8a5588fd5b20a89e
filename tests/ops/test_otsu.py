import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cam_pipeline.ops.otsu import explained_variance

LEVELS = torch.arange(10) / 10


def by_hand(image, foreground):
    """The share of variance between two regions, region by region."""
    pixels, inside = image.double().flatten(1), foreground.flatten()
    if inside.all() or not inside.any():
        return 0.0
    mean = pixels.mean(dim=1, keepdim=True)
    total = (pixels - mean).square().sum()
    between = 0.0
    for region in (inside, ~inside):
        between += region.sum() * (pixels[:, region].mean(dim=1, keepdim=True) - mean).square().sum()
    return float(between / total) if total > 0 else 0.0


def test_worked_numbers():
    """A 2 x 3 image, black and white but for one grey pixel; the map finds white, then grey, then a black pixel."""
    image = torch.tensor([[1.0, 1.0, 0.5], [0.0, 0.0, 0.0]]).expand(3, 2, 3)
    score = torch.tensor([[0.9, 0.8, 0.5], [0.3, 0.1, 0.1]])
    found = explained_variance(image, score, torch.tensor([0.0, 0.2, 0.4, 0.6, 0.85]))
    # Mean 2.5 / 6, sum of squares 2.25 - 6.25 / 6 = 1.208333 in each channel.
    # > 0: everything. > .2: 4 pixels of mean .625 and 2 of 0: 4/3 .625^2 = .520833. > .4: 3 of 2.5/3 and 3 of 0:
    # 3/2 (2.5/3)^2 = 1.041667. > .6: 2 of 1, 4 of .125: 4/3 .875^2 = 1.020833. > .85: 1 of 1, 5 of .3: 5/6 .49.
    expected = torch.tensor([0, 0.520833, 1.041667, 1.020833, 0.408333], dtype=torch.float64) / 1.208333
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_factor_of_sizes_is_raised_to_its_power():
    """The image above: 4, 3, 2 and 1 of 6 pixels have factors of 8, 9, 8 and 5 / 36."""
    image = torch.tensor([[1.0, 1.0, 0.5], [0.0, 0.0, 0.0]]).expand(3, 2, 3)
    score = torch.tensor([[0.9, 0.8, 0.5], [0.3, 0.1, 0.1]])
    found = explained_variance(image, score, torch.tensor([0.0, 0.2, 0.4, 0.6, 0.85]), size_power=0.5)
    sizes = torch.tensor([1, 8, 9, 8, 5], dtype=torch.float64) / 36
    expected = torch.tensor([0, 0.520833, 1.041667, 1.020833, 0.408333], dtype=torch.float64) / 1.208333 / sizes.sqrt()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 7))
def test_it_is_the_share_of_variance_between_the_regions(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    image, score = torch.rand(3, height, width, generator=generator), torch.rand(height, width, generator=generator)
    found = explained_variance(image, score, LEVELS)
    for value, level in zip(found.tolist(), LEVELS, strict=True):
        assert value == pytest.approx(by_hand(image, score > level), abs=1e-9)


def test_the_true_region_explains_everything():
    image = torch.zeros(3, 6, 8)
    image[0, 1:4, 2:5] = 0.7
    score = torch.full((6, 8), 0.2)
    score[0:5, 1:6], score[1:4, 2:5] = 0.4, 0.6
    found = explained_variance(image, score, torch.tensor([0.1, 0.3, 0.5, 0.7]))
    assert found[2] == pytest.approx(1) and found.argmax() == 2 and found[0] == found[3] == 0


def test_a_pixel_at_the_threshold_is_not_above_it():
    image, score = torch.tensor([[[0.0, 1.0]]]).expand(3, 1, 2), torch.tensor([[0.3, 0.5]])
    assert explained_variance(image, score, torch.tensor([0.3, 0.5])).tolist() == [1, 0]


def test_monotone_transforms_of_the_scores_change_nothing():
    generator = torch.Generator().manual_seed(1)
    image, score = torch.rand(3, 9, 7, generator=generator), torch.rand(9, 7, generator=generator, dtype=torch.float64)
    levels = torch.linspace(0.05, 0.95, 12, dtype=torch.float64)
    torch.testing.assert_close(
        explained_variance(image, score, levels), explained_variance(image, score**3, levels**3), atol=0, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_of_one_color_is_explained_by_nothing(dtype):
    image = torch.full((3, 40, 30), 0.1, dtype=dtype)
    assert explained_variance(image, torch.rand(40, 30), LEVELS).tolist() == [0] * 10


def test_bad_arguments_are_refused():
    image, score = torch.zeros(3, 2, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"one size and not empty, not \(3, 2, 3\) and \(3, 2\)"):
        explained_variance(image, torch.zeros(3, 2), LEVELS)
    with pytest.raises(ValueError, match="must be one rising row"):
        explained_variance(image, score, LEVELS.flip(0))
    with pytest.raises(ValueError, match="must be finite"):
        explained_variance(image, score.fill_(float("nan")), LEVELS)
