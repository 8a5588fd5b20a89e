import pytest
import torch

from cam_pipeline.ops.image_classes import best_threshold, with_image_classes

PIXELS = torch.tensor([[[0.5, 0.1]], [[0.3, 0.3]], [[0.2, 0.6]]])  # background and two classes, 1 x 2 pixels


def test_probabilities_are_multiplied_and_divided_by_their_sum():
    found = with_image_classes(PIXELS, torch.tensor([1.0, 0.5]))
    expected = torch.tensor([[[0.5 / 0.9, 0.1 / 0.7]], [[0.3 / 0.9, 0.3 / 0.7]], [[0.1 / 0.9, 0.3 / 0.7]]])
    torch.testing.assert_close(found, expected)
    assert PIXELS[2, 0, 1] == 0.6, "the argument stays as it was"


def test_a_class_of_presence_0_is_taken_out():
    found = with_image_classes(PIXELS, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([[[0.625, 0.25]], [[0.375, 0.75]], [[0.0, 0.0]]]))
    assert (with_image_classes(PIXELS, torch.zeros(2))[0] == 1).all()


def test_all_classes_present_change_nothing():
    torch.testing.assert_close(with_image_classes(PIXELS, torch.ones(2)), PIXELS)


def test_where_nothing_is_left_there_is_background():
    certain = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    assert with_image_classes(certain, torch.zeros(1)).flatten().tolist() == [1, 0]


def test_each_image_of_a_batch_has_its_own_classes():
    both = torch.stack([PIXELS, PIXELS])
    found = with_image_classes(both.double(), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert found.shape == both.shape and found.dtype == torch.float64
    torch.testing.assert_close(found[0].float(), PIXELS)
    assert not found[1, 1].any()


@pytest.mark.parametrize(
    ("shape", "presence"),
    [((3, 2, 2), torch.ones(3)), ((2, 2), torch.ones(1)), ((2, 3, 2, 2), torch.ones(1, 2)), ((3, 2, 2), torch.ones(1))],
)
def test_shapes_must_fit(shape, presence):
    with pytest.raises(ValueError, match=r"must be \(..., 1 \+ C, H, W\) and presence \(..., C\)"):
        with_image_classes(torch.rand(shape), presence)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_presence_lies_in_0_to_1(wrong):
    with pytest.raises(ValueError, match="presence must lie in"):
        with_image_classes(PIXELS, torch.tensor([0.5, wrong]))


# Two classes in three images: shown are .9, .6, .2; not shown .4, .3, .1.
PROBABILITIES = torch.tensor([[0.9, 0.4], [0.6, 0.3], [0.2, 0.1]])
SHOWN = torch.tensor([[True, False], [True, False], [True, False]])


@pytest.mark.parametrize(
    ("beta", "expected"),
    # F of .9, .6, .2: 1 hit of 1 kept, 2 of 2, 3 of 5.
    [
        (1.0, 0.6),  # 2/4, 4/5, 6/8
        (2.0, 0.2),  # 5/13, 10/14, 15/17
        (0.0, 0.6),  # precision: 1, 1, 3/5; the lower of equals
    ],
)
def test_the_best_threshold_by_hand(beta, expected):
    assert best_threshold(PROBABILITIES, SHOWN, beta) == pytest.approx(expected)


def test_a_perfect_classifier_keeps_exactly_what_is_shown():
    shown = torch.tensor([[True, False, True], [False, False, True]])
    probabilities = torch.where(shown, 0.8, 0.3)
    threshold = best_threshold(probabilities, shown)
    assert torch.equal(probabilities >= threshold, shown)


def test_equal_probabilities_are_kept_together():
    shown = torch.tensor([[True, True, False, False]])
    assert best_threshold(torch.full((1, 4), 0.7), shown) == pytest.approx(0.7)


def test_the_threshold_is_a_probability_to_the_last_digit():
    torch.manual_seed(0)
    probabilities, shown = torch.rand(40, 5), torch.rand(40, 5) > 0.7
    threshold = best_threshold(probabilities, shown)
    kept = probabilities >= threshold
    assert (kept & shown).any() and (probabilities == threshold).sum() == 1
    measures = []
    for one in probabilities[shown].sort().values:
        hits, all_kept = ((probabilities >= one) & shown).sum(), (probabilities >= one).sum()
        measures.append(float(5 * hits / (4 * shown.sum() + all_kept)))
    assert max(measures) == pytest.approx(float(5 * (kept & shown).sum() / (4 * shown.sum() + kept.sum())))


def test_without_shown_classes_there_is_no_threshold():
    with pytest.raises(ValueError, match="no image shows a class"):
        best_threshold(PROBABILITIES, torch.zeros_like(SHOWN))
    with pytest.raises(ValueError, match=r"must be \(N, C\)"):
        best_threshold(PROBABILITIES, SHOWN[:2])
