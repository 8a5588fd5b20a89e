import math

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from cam_pipeline.ops.losses import (
    clipped_losses,
    collision_cross_entropy,
    neighbours,
    pixel_losses,
    potts_loss,
    segmentation_loss,
    weighted_mean,
)

# (B=2, K=2, H=1, W=2): the second channel leads by 0, log 3, log 3, -log 7.
LOGITS = torch.zeros(2, 2, 1, 2)
LOGITS[:, 1] = tensor([[[0.0, math.log(3)]], [[math.log(3), -math.log(7)]]])


def test_mean_over_the_labelled_pixels_of_the_whole_batch():
    labels = tensor([[[0, 1]], [[255, 0]]])
    expected = (math.log(2) - math.log(3 / 4) - math.log(7 / 8)) / 3
    assert segmentation_loss(LOGITS, labels).item() == pytest.approx(expected, rel=1e-6)
    assert segmentation_loss(LOGITS, labels.to(torch.uint8)).item() == pytest.approx(expected, rel=1e-6)
    assert segmentation_loss(LOGITS, tensor([[[7, 1]], [[7, 7]]]), ignore_index=7).item() == pytest.approx(
        -math.log(3 / 4), rel=1e-6
    )


def test_nothing_labelled_gives_zero_with_a_graph():
    logits = LOGITS.clone().requires_grad_()
    loss = segmentation_loss(logits, torch.full((2, 1, 2), 255))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_pixels_get_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    segmentation_loss(logits, tensor([[[0, 255]], [[255, 255]]])).backward()
    assert logits.grad[0, :, 0, 0].tolist() == pytest.approx([-0.5, 0.5])
    assert logits.grad.abs().sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision(given, computed):
    logits, labels = LOGITS.to(given), tensor([[[0, 1]], [[255, 0]]])
    loss = segmentation_loss(logits, labels)
    assert loss.dtype == computed
    assert torch.equal(loss, segmentation_loss(logits.to(computed), labels))
    assert logits.dtype == given and labels.tolist() == [[[0, 1]], [[255, 0]]]  # the arguments are unchanged


def test_float64_is_not_lowered():
    logits = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    logits[0, 1] = 1e-12
    gain = math.log(2) - segmentation_loss(logits, torch.ones(1, 1, 1, dtype=torch.long)).item()
    assert gain == pytest.approx(5e-13, rel=1e-2)


@pytest.mark.parametrize(
    ("logits", "labels", "complaint"),
    [
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 5, 4).long(), "must be"),
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5).long(), "must be"),
        (torch.zeros(3, 4, 5), torch.zeros(4, 5).long(), "must be"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(2, 4, 5).long(), "must be"),
        (torch.zeros(1, 3, 1, 2), tensor([[[0, 3]]]), r"labels must be 0\.\.2 or 255"),
        (torch.zeros(1, 3, 1, 2), tensor([[[-1, 2]]]), r"labels must be 0\.\.2 or 255"),
        (torch.zeros(1, 3, 1, 2), tensor([[[0.0, 1.0]]]), "labels must be integers"),
        (torch.zeros(1, 3, 1, 2).long(), tensor([[[0, 1]]]), "logits must be a floating point"),
    ],
)
def test_wrong_shapes_types_and_labels_are_refused(logits, labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        segmentation_loss(logits, labels)


def test_losses_of_pixels_and_their_weighted_mean():
    labels = tensor([[[0, 1]], [[255, 0]]])
    losses = pixel_losses(LOGITS, labels)
    expected = [math.log(2), math.log(4 / 3), 0.0, math.log(8 / 7)]
    assert losses.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(weighted_mean(losses, (labels != 255).float()), segmentation_loss(LOGITS, labels))
    weights = tensor([[[0.5, 2.0]], [[9.0, 0.0]]])
    assert weighted_mean(losses, weights).item() == pytest.approx((expected[0] / 2 + 2 * expected[1]) / 11.5)
    few = weights / 1000  # whose sum is below 1
    torch.testing.assert_close(weighted_mean(losses, few), weighted_mean(losses, weights))


def test_weights_of_zero_give_zero_with_a_graph():
    logits = LOGITS.clone().requires_grad_()
    loss = weighted_mean(pixel_losses(logits, torch.zeros(2, 1, 2).long()), torch.zeros(2, 1, 2))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


# (B=2, H=3, W=5) with patches of 2: rows 0-1 and 2, columns 0-1, 2-3 and 4. A loss of NO: not labelled.
NO = 9.0
LOSSES = tensor(
    [
        [[0.5, 1.5, 0.0, 0.0, 3.0], [NO, NO, 0.0, 4.0, 1.0], [2.0, 0.0, NO, NO, NO]],
        [[1.0, 1.0, NO, NO, 0.0], [1.0, 1.0, NO, NO, 0.0], [1.5, 1.0, 1.5, 0.8, 0.7]],
    ]
)
LABELLED = LOSSES != NO
# 21 labelled pixels with a sum of 12 + 9.5; the batch's mean is below 1.2
MEAN = 21.5 / 21
CLIPPED = tensor(
    [
        # means of the patches: 1, 1, 2 / 1, none, none
        [[0.5, MEAN, 0.0, 0.0, 2.0], [MEAN, MEAN, 0.0, MEAN, 1.0], [MEAN, 0.0, MEAN, MEAN, MEAN]],
        # means of the patches: 1, none, 0 / 1.25, 1.15, 0.7
        [[1.0, 1.0, MEAN, MEAN, 0.0], [1.0, 1.0, MEAN, MEAN, 0.0], [1.25, 1.0, 1.15, 0.8, 0.7]],
    ]
)


def test_losses_are_clipped_at_the_larger_of_two_means():
    assert LOSSES[LABELLED].mean().item() == pytest.approx(MEAN) and LABELLED.sum() == 21
    losses = LOSSES.clone().requires_grad_()
    clipped = clipped_losses(losses, LABELLED, patch=2)
    torch.testing.assert_close(clipped.detach(), CLIPPED)
    clipped.sum().backward()
    assert torch.equal(losses.grad, (LOSSES <= CLIPPED).float()), "all or nothing: limits have no gradient"


def test_no_loss_is_clipped_before_the_mean_is_low():
    assert torch.equal(clipped_losses(LOSSES, LABELLED, patch=2, below=1.0), LOSSES)
    assert torch.equal(clipped_losses(LOSSES, LABELLED, mean=tensor(1.2)), LOSSES)  # that of all processes


def test_the_mean_of_the_batch_may_be_given():
    expected = torch.where(LABELLED, LOSSES, tensor(1.1)).clamp(max=tensor(1.1))
    expected[0, 0, 4], expected[1, 2, 0], expected[1, 2, 2] = 2.0, 1.25, 1.15  # whose patches have a larger mean
    torch.testing.assert_close(clipped_losses(LOSSES, LABELLED, mean=tensor(1.1), patch=2), expected)


def test_equal_losses_keep_their_gradient_and_nothing_labelled_is_no_fault():
    losses = torch.full((1, 3, 200), 0.5, requires_grad=True)
    clipped_losses(losses, torch.ones(1, 3, 200, dtype=torch.bool)).sum().backward()
    assert (losses.grad == 1).all()
    assert not clipped_losses(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.bool)).any()


def test_patches_have_sides_of_120_pixels():
    losses = torch.full((1, 130, 250), 0.1)
    losses[0, 119, 239] = 10_000.0  # the last pixel of its patch
    losses[0, 119, 119] = losses[0, 120, 239] = 5.0  # in the patches beside it and below it
    clipped = clipped_losses(losses, torch.ones(1, 130, 250, dtype=torch.bool))
    assert clipped[0, 119, 239].item() == pytest.approx((10_000 + 14_399 * 0.1) / 14_400, rel=1e-4)
    mean = (10_000 + 2 * 5 + (130 * 250 - 3) * 0.1) / (130 * 250)
    assert clipped[0, 119, 119].item() == pytest.approx(mean, rel=1e-4)
    assert clipped[0, 120, 239].item() == pytest.approx(mean, rel=1e-4)


def maps(*pixels):
    """(1, K, 1, N) from the rows of N pixels."""
    return tensor(pixels).t()[None, :, None]


def test_collision_by_hand():
    logits = maps([0.0, math.log(3)], [math.log(3), 0.0])  # answers (1/4, 3/4) and (3/4, 1/4)
    targets = maps([0.0, 1.0], [0.5, 0.5])
    expected = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    assert collision_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-6)
    left = collision_cross_entropy(logits, targets, tensor([[[False, True]]]))
    assert left.item() == pytest.approx(-math.log(3 / 4), rel=1e-6)


def test_a_target_that_is_sure_of_nothing_teaches_nothing():
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = collision_cross_entropy(logits, torch.full((2, 5, 3, 4), 0.2))
    assert loss.item() == pytest.approx(math.log(5), rel=1e-5)
    loss.backward()
    assert logits.grad.abs().max() < 1e-7


def test_a_target_that_is_sure_is_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 5, 3, 4, generator=generator), torch.randint(0, 5, (2, 3, 4), generator=generator)
    sure = F.one_hot(labels, 5).movedim(-1, 1).float()
    torch.testing.assert_close(collision_cross_entropy(logits, sure), F.cross_entropy(logits, labels))


def test_all_ignored_is_zero_with_a_graph():
    logits = torch.randn(1, 3, 2, 2).requires_grad_()
    loss = collision_cross_entropy(logits, torch.full((1, 3, 2, 2), 1 / 3), torch.ones(1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_collision_of_answers_that_are_sure_and_wrong_is_finite():
    logits = maps([200.0, 0.0]).requires_grad_()
    loss = collision_cross_entropy(logits, maps([0.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8), rel=1e-4)
    assert logits.grad.isfinite().all()


def test_potts_by_hand():
    """Two pixels, (1/4, 3/4) and (3/4, 1/4): their product is 3/8, each has the length sqrt(10)/4."""
    logits = maps([0.0, math.log(3)], [math.log(3), 0.0])
    expected = -math.log((3 / 8) / (10 / 16))
    assert potts_loss(logits).item() == pytest.approx(expected, rel=1e-5)
    assert potts_loss(logits.transpose(2, 3)).item() == pytest.approx(expected, rel=1e-5)
    # 2 x 3 pixels have four pairs side by side and three one above the other
    rows = torch.stack(
        [maps([0.0, 0], [5.0, 0], [0.0, 1])[0, :, 0], maps([2.0, 0], [0.0, 0], [0.0, 3])[0, :, 0]], dim=1
    )
    s = rows.softmax(0)
    pairs = [((0, 0), (0, 1)), ((0, 1), (0, 2)), ((1, 0), (1, 1)), ((1, 1), (1, 2))]
    pairs += [((0, column), (1, column)) for column in range(3)]
    each = [-F.cosine_similarity(s[:, i[0], i[1]], s[:, j[0], j[1]], dim=0).log() for i, j in pairs]
    assert potts_loss(rows[None]).item() == pytest.approx(float(sum(each)) / 7, rel=1e-5)


def test_ignored_pixels_have_no_neighbours():
    """Of 2 x 3 pixels the last column of the first image and the whole second image are ignored."""
    logits = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ignore = torch.tensor([[[False, False, True]] * 2, [[True] * 3] * 2])
    assert [both.sum().item() for both in neighbours(ignore)] == [2, 2]
    loss = potts_loss(logits, ignore)
    torch.testing.assert_close(loss, potts_loss(logits[:1, ..., :2]))
    loss.backward()
    assert not logits.grad[0, ..., 2].any() and not logits.grad[1].any() and logits.grad[0, ..., :2].any()
    assert potts_loss(logits, torch.ones_like(ignore)).item() == 0
    torch.testing.assert_close(potts_loss(logits, torch.zeros_like(ignore)), potts_loss(logits))


def test_equal_neighbours_cost_nothing_however_unsure():
    logits = torch.randn(2, 4, 1, 1, generator=torch.Generator().manual_seed(0)).expand(2, 4, 3, 5)
    assert potts_loss(logits).item() == pytest.approx(0, abs=1e-6)


def test_neighbours_that_are_sure_of_different_classes_cost_much_but_not_everything():
    logits = maps([300.0, 0.0], [0.0, 300.0]).requires_grad_()
    loss = potts_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(300 - math.log(2), rel=1e-5)
    assert logits.grad.isfinite().all()


def test_one_pixel_has_no_neighbours():
    logits = torch.zeros(1, 3, 1, 1).requires_grad_()
    loss = potts_loss(logits)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: collision_cross_entropy(torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 3, 4)), "logits and targets"),
        (lambda: collision_cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)), "logits and targets"),
        (lambda: collision_cross_entropy(*torch.zeros(2, 1, 2, 3, 4), torch.zeros(1, 3, 4)), "ignore must be"),
        (lambda: collision_cross_entropy(torch.zeros(1, 2, 3, 4).long(), torch.zeros(1, 2, 3, 4)), "floating"),
        (lambda: potts_loss(torch.zeros(2, 3, 4)), "logits must be"),
        (lambda: potts_loss(torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 4)), "ignore must be"),
    ],
)
def test_bad_input_of_soft_losses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
