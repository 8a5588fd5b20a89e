import math

import pytest
import torch
from torch import tensor

from cam_pipeline.ops.cam import (
    cam_agreement,
    cam_scores,
    classifier_cam,
    mean_cam,
    normalize_cam,
    place_view,
    to_probabilities,
    with_background,
)


def test_classifier_cam_is_the_weighted_sum_of_features():
    features = torch.arange(2 * 2 * 1 * 3, dtype=torch.float32).view(2, 2, 1, 3)  # (B, D, h, w), not square
    weight = tensor([[1.0, 0.0], [0.0, -1.0], [2.0, 1.0]])
    cam = classifier_cam(features, weight)
    assert cam.shape == (2, 3, 1, 3)
    assert cam[0].flatten(1).tolist() == [[0, 1, 2], [-3, -4, -5], [3, 6, 9]]
    assert cam[1].flatten(1).tolist() == [[6, 7, 8], [-9, -10, -11], [21, 24, 27]]


def test_mean_of_the_cam_is_the_logit():
    generator = torch.Generator().manual_seed(0)
    features, weight = torch.randn(2, 5, 3, 4, generator=generator), torch.randn(3, 5, generator=generator)
    logits = torch.nn.functional.linear(features.mean(dim=(-2, -1)), weight)
    torch.testing.assert_close(classifier_cam(features, weight).mean(dim=(-2, -1)), logits)


def test_classifier_cam_computes_half_precision_in_float32():
    features = torch.full((1, 4, 1, 1), 300.0, dtype=torch.float16)
    cam = classifier_cam(features, torch.full((1, 4), 300.0, dtype=torch.float16))
    assert cam.dtype == torch.float32
    assert cam.item() == 360000  # more than half precision can hold
    assert classifier_cam(features.double(), torch.ones(1, 4)).dtype == torch.float64


@pytest.mark.parametrize(
    ("features", "weight"),
    [((2, 3, 4), (5, 3)), ((2, 3, 4, 5), (5, 4)), ((2, 3, 4, 5), (5, 3, 1, 1))],
)
def test_classifier_cam_refuses_other_shapes(features, weight):
    with pytest.raises(ValueError, match="features and weight"):
        classifier_cam(torch.zeros(features), torch.zeros(weight))


def test_place_view_clips_and_then_resizes():
    coarse = tensor([[[1.0, -4.0]], [[2.0, 2.0]]])  # (C=2, 1, 2)
    # Bilinear without aligned corners, 2 -> 4: weights 1, 3/4, 1/4, 0; clipped before, so -4 counts as 0.
    expected = tensor([[[1.0, 0.75, 0.25, 0.0]], [[2.0, 2.0, 2.0, 2.0]]])
    torch.testing.assert_close(place_view(coarse, (1, 4)), expected)
    assert coarse.min() == -4  # the argument is unchanged


def test_place_view_mirrors_a_flipped_view_back_along_the_width():
    flipped = tensor([[[5.0, 0.0, 1.0], [6.0, -5.0, 4.0]]])
    assert place_view(flipped, (2, 3), flipped=True).tolist() == [[[1.0, 0.0, 5.0], [4.0, 0.0, 6.0]]]


def test_place_view_moves_cells_to_where_they_lie():
    """Centres half a cell right and below: what a cell saw lies half in it, half in the next one."""
    cam = tensor([[0.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert place_view(cam, (3, 4), 0.5).tolist() == [[0.0, 4.0, 4.0, 0.0], [0.0, 2.0, 2.0, 0.0], [0.0] * 4]
    assert place_view(cam.flip(0), (3, 4), -0.5).tolist() == [[0.0] * 4, [2.0, 2.0, 0.0, 0.0], [4.0, 4.0, 0.0, 0.0]]
    # Below it lies in the mirrored view, too; right of it became left of it.
    assert place_view(cam.flip(-1), (3, 4), 0.5, flipped=True).tolist() == [
        [4.0, 4.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0], [0.0] * 4
    ]  # fmt: skip


@pytest.mark.parametrize("size", [(2, 3), (5, 7), (1, 1), (4, 2)])
def test_place_view_resizes_as_torch_does(size):
    cam = torch.rand(2, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(cam, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(place_view(cam, size), expected)


def test_place_view_on_its_own_grid_is_the_positive_part():
    cam = tensor([[[-1.0, 2.0, 0.5]]])
    assert place_view(cam, (1, 3)).tolist() == [[[0.0, 2.0, 0.5]]]


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,), (2, 0)])
def test_place_view_takes_any_leading_dimensions(leading):
    placed = place_view(torch.ones(*leading, 2, 3), (5, 7), 0.3, flipped=True)
    torch.testing.assert_close(placed, torch.ones(*leading, 5, 7))


def test_place_view_refuses_what_is_empty():
    for shape, size in [((2, 3, 3), (0, 2)), ((2, 0, 3), (2, 2)), ((3,), (2, 2))]:
        with pytest.raises(ValueError, match="must not be empty"):
            place_view(torch.ones(shape), size)


def test_normalize_max_clips_and_divides_each_map_by_its_own_maximum():
    cam = tensor([[[[-1.0, 1.0, 4.0]], [[0.0, 0.5, 0.25]]], [[[-3.0, -2.0, -1.0]], [[0.0, 0.0, 8.0]]]])
    normalized = normalize_cam(cam)
    expected = tensor([[[[0.0, 0.25, 1.0]], [[0.0, 1.0, 0.5]]], [[[0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    torch.testing.assert_close(normalized, expected, atol=1e-4, rtol=0)
    assert normalized.max() <= 1
    assert normalized[0, 0, 0, 2] == 4 / (4 + 1e-5)
    assert cam.min() == -3  # the argument is unchanged


def test_normalize_minmax_shifts_and_does_not_clip():
    cam = tensor([[-1.0, 0.0, 3.0]])
    torch.testing.assert_close(normalize_cam(cam, "minmax"), tensor([[0.0, 0.25, 1.0]]), atol=1e-5, rtol=0)
    assert normalize_cam(torch.full((2, 2), -5.0), "minmax").tolist() == [[0, 0], [0, 0]]


def test_normalize_eps_is_an_argument_and_zero_is_safe():
    assert normalize_cam(tensor([[1.0, 2.0]]), eps=2.0).tolist() == [[0.25, 0.5]]
    assert normalize_cam(torch.zeros(1, 2), eps=0).tolist() == [[0, 0]]


def test_normalize_precision():
    assert normalize_cam(torch.ones(1, 1, dtype=torch.float16)).dtype == torch.float32
    assert normalize_cam(torch.ones(1, 1, dtype=torch.float64)).dtype == torch.float64


def test_normalize_refuses_bad_arguments():
    with pytest.raises(ValueError, match="mode"):
        normalize_cam(torch.ones(2, 2), "sum")
    with pytest.raises(ValueError, match="grid"):
        normalize_cam(torch.ones(2))
    with pytest.raises(ValueError, match="grid"):
        normalize_cam(torch.ones(2, 0, 3))
    with pytest.raises(ValueError, match="eps"):
        normalize_cam(torch.ones(2, 2), eps=-1)
    with pytest.raises(ValueError, match="floating"):
        normalize_cam(torch.ones(2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("leading", [(), (2,)])
def test_with_background_comes_first(leading):
    cam = torch.rand(*leading, 3, 4, 5)
    scores = with_background(cam, 0.25)
    assert scores.shape == (*leading, 4, 4, 5)
    assert (scores[..., 0, :, :] == 0.25).all()
    assert torch.equal(scores[..., 1:, :, :], cam)


def test_with_background_of_an_image_without_classes():
    assert with_background(torch.zeros(0, 2, 3), 0.5).tolist() == [[[0.5] * 3] * 2]


@pytest.mark.parametrize("score", [-0.1, 1.5, math.nan])
def test_with_background_refuses_scores_out_of_range(score):
    with pytest.raises(ValueError, match="background_score"):
        with_background(torch.zeros(1, 2, 3), score)
    with pytest.raises(ValueError, match="cam"):
        with_background(torch.zeros(2, 3), 0.5)


def test_cam_scores_are_resized_first_and_then_normalised():
    # Bilinear without aligned corners, 2 -> 3 columns: weights 1, 1/2, 0. Both rows are the row.
    scores = cam_scores(tensor([[[8.0, 0.0]], [[1.0, 3.0]]]), (2, 3))
    expected = tensor([[[1.0, 0.5, 0.0]] * 2, [[1 / 3, 2 / 3, 1.0]] * 2])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert float(scores.max()) == 1
    tiny = tensor([[[8.0, 0.0]], [[1.0, 3.0]]]) * 1e-12  # as gradients may be
    for mode in ("max", "minmax"):
        torch.testing.assert_close(cam_scores(tiny, (2, 3), mode)[0], scores[0])
    # 4 -> 2 columns: the peak of 4 is gone after resampling (mean 2), and the rest is scaled by what is left.
    torch.testing.assert_close(
        cam_scores(tensor([[0.0, 4.0, 1.0, 1.0]]), (1, 2)), tensor([[1.0, 0.5]]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_cam_scores_take_any_leading_dimensions(leading):
    scores = cam_scores(torch.zeros(*leading, 2, 3), (4, 7))
    assert torch.equal(scores, torch.zeros(*leading, 4, 7))


def test_cam_scores_precision_and_refusals():
    cam = torch.ones(1, 2, 3, dtype=torch.float16)
    assert cam_scores(cam, (4, 6)).dtype == torch.float32
    assert cam_scores(cam.double(), (4, 6)).dtype == torch.float64
    for wrong, size in [(torch.ones(3), (4, 6)), (torch.ones(2, 0, 3), (4, 6)), (torch.ones(2, 3), (0, 6))]:
        with pytest.raises(ValueError, match="must not be empty"):
            cam_scores(wrong, size)
    with pytest.raises(ValueError, match="floating"):
        cam_scores(torch.ones(1, 2, 3, dtype=torch.uint8), (4, 6))


def test_mean_cam_lets_no_network_outvote_another():
    """By hand: peaks 4 and .5; the second network's single row stands for both rows of the first's grid."""
    first, second = tensor([[[4.0, 0.0, 1.0], [2.0, -3.0, 0.0]]]), tensor([[[0.0, 0.5, 0.25]]])
    expected = tensor([[[0.5, 0.5, 0.375], [0.25, 0.5, 0.25]]])
    torch.testing.assert_close(mean_cam([first, second], (2, 3)), expected)
    torch.testing.assert_close(mean_cam([1000 * first, second], (2, 3)), expected)


def test_mean_cam_of_an_empty_map_counts_as_zero():
    assert mean_cam([torch.zeros(2, 1, 2), torch.ones(2, 1, 2)], (1, 2)).tolist() == [[[0.5, 0.5]]] * 2
    assert mean_cam([torch.zeros(0, 1, 2)], (3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("shapes", "size"),
    [((), (2, 3)), (((1, 2, 3), (2, 2, 3)), (2, 3)), (((1, 2, 0),), (2, 3)), (((1, 2, 3),), (0, 3))],
)
def test_mean_cam_refuses_other_shapes(shapes, size):
    with pytest.raises(ValueError, match="of the same classes"):
        mean_cam([torch.zeros(shape) for shape in shapes], size)


def test_probabilities_are_shares_of_every_pixel():
    scores = tensor([[[1.0, 0.5, 0.0]], [[3.0, 0.0, 0.0]], [[0.0, 0.5, 2.0]]])  # (3, 1, 3)
    probabilities = to_probabilities(scores)
    assert probabilities.tolist() == [[[0.25, 0.5, 0.0]], [[0.75, 0.0, 0.0]], [[0.0, 0.5, 1.0]]]
    assert torch.equal(to_probabilities(torch.stack([scores, scores * 7]))[0], probabilities)
    torch.testing.assert_close(to_probabilities(torch.stack([scores, scores * 7]))[1], probabilities)
    assert scores[1, 0, 0] == 3  # the argument is unchanged


def test_probabilities_of_a_pixel_without_any_score_are_equal():
    scores = tensor([[[0.0, 1.0]], [[0.0, 3.0]]])
    assert to_probabilities(scores).tolist() == [[[0.5, 0.25]], [[0.5, 0.75]]]
    tiny = to_probabilities(torch.full((4, 1, 1), 1e-45))  # less than a division can take
    assert tiny.flatten().tolist() == [0.25] * 4
    assert to_probabilities(torch.zeros(1, 2, 3)).tolist() == [[[1.0] * 3] * 2]


def test_probabilities_keep_their_gradient_where_there_is_none():
    scores = torch.zeros(2, 1, 2, requires_grad=True)
    to_probabilities(scores)[0].sum().backward()
    assert scores.grad.isfinite().all()


def test_probabilities_precision_and_refusals():
    half = torch.full((2, 1, 1), 40000.0, dtype=torch.float16)  # their sum is more than half precision can hold
    assert to_probabilities(half).dtype == torch.float32
    assert to_probabilities(half).flatten().tolist() == [0.5, 0.5]
    assert to_probabilities(half.double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"\(\.\.\., 1 \+ C, H, W\)"):
        to_probabilities(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"1 \+ C"):
        to_probabilities(torch.ones(0, 2, 3))
    for value in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            to_probabilities(tensor([[[1.0, value]]]))
    with pytest.raises(ValueError, match="floating"):
        to_probabilities(torch.ones(2, 2, 3, dtype=torch.uint8))


def test_networks_agree_unless_one_sees_what_another_does_not():
    one = torch.tensor([[[0.0, 1.0, 2.0], [2.0, 0.0, 0.0]], [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    other = torch.tensor([[[0.0, 3.0, 3.0], [3.0, 0.0, -9.0]], [[1.0, 0.5, 0.0], [0.0, 0.0, 0.25]]])
    expected = torch.tensor([[1.0, 0.5, 1.0], [1.0, 1.0, 0.75]])
    torch.testing.assert_close(cam_agreement([one, other], (2, 3)), expected)
    torch.testing.assert_close(cam_agreement([one, other, one], (2, 3)), expected)
    torch.testing.assert_close(cam_agreement([one], (2, 3)), torch.ones(2, 3))
    assert (cam_agreement([one[:0], other[:0]], (2, 3)) == 1).all()
    for wrong in ([], [one[0], other[0]], [one, other[:1]]):
        with pytest.raises(ValueError, match="maps must be"):
            cam_agreement(wrong, (2, 3))
