import math

import pytest
import torch
from torch import tensor

from cam_pipeline.ops.metrics import (
    average_precision,
    confusion_matrix,
    confusions_from_histogram,
    f1_score,
    false_negative_share,
    false_positive_share,
    frequency_groups,
    iou_per_class,
    mean_iou,
    mean_iou_interval,
    mean_precision_interval,
    precision_per_class,
    recall_per_class,
    threshold_histogram,
)

# Batch of 2, 2 x 3 pixels, three classes; one pixel is ignored (and predicted as something out of range).
TARGET = tensor([[[0, 0, 1], [2, 2, 255]], [[1, 1, 0], [0, 2, 0]]], dtype=torch.uint8)
PREDICTION = tensor([[[0, 1, 1], [2, 0, 99]], [[1, 2, 0], [0, 2, 0]]], dtype=torch.uint8)
CONFUSION = tensor([[4, 1, 0], [0, 2, 1], [1, 0, 2]])


def test_confusion_rows_are_the_target_and_the_batch_is_pooled():
    confusion = confusion_matrix(PREDICTION, TARGET, 3)
    assert confusion.dtype == torch.int64
    assert torch.equal(confusion, CONFUSION)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_confusion_takes_label_maps_of_any_integer_dtype(dtype):
    assert torch.equal(confusion_matrix(PREDICTION.to(dtype), TARGET, 3), CONFUSION)
    assert torch.equal(confusion_matrix(PREDICTION, TARGET.to(dtype), 3), CONFUSION)


def test_confusion_with_as_many_classes_as_uint8_can_hold():
    # 200 * 201 + 200 does not fit into uint8: products must not wrap.
    labels = tensor([[200, 0, 7]], dtype=torch.uint8)
    assert confusion_matrix(labels, labels, 201).nonzero().tolist() == [[0, 0], [7, 7], [200, 200]]


def test_a_negative_ignore_index_does_not_wrap_around():
    labels = tensor([[156, 1]], dtype=torch.uint8)  # 156 = -100 modulo 256
    assert confusion_matrix(labels, labels, 157, ignore_index=-100).sum() == 2
    target = tensor([[-100, 1]])
    assert confusion_matrix(tensor([[0, 1]]), target, 2, ignore_index=-100).tolist() == [[0, 0], [0, 1]]


def test_an_image_of_ignored_pixels_counts_nothing():
    assert confusion_matrix(tensor([[9, 9]]), tensor([[255, 255]]), 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("bad", [3, 255, -1])
def test_a_prediction_out_of_range_on_a_valid_pixel_can_not_be_scored(bad):
    with pytest.raises(ValueError, match="prediction"):
        confusion_matrix(tensor([[0, bad]]), tensor([[0, 1]]), 3)


def test_confusion_refuses_other_bad_arguments():
    with pytest.raises(ValueError, match="target"):
        confusion_matrix(tensor([[0, 1]]), tensor([[0, 3]]), 3)
    with pytest.raises(ValueError, match="unequal shapes"):
        confusion_matrix(tensor([[0, 1]]), tensor([[0], [1]]), 3)
    with pytest.raises(ValueError, match="integer"):
        confusion_matrix(tensor([[0.0, 1.0]]), tensor([[0, 1]]), 3)
    with pytest.raises(ValueError, match="num_classes"):
        confusion_matrix(tensor([[0]]), tensor([[0]]), 0)


def test_iou_by_hand():
    iou = iou_per_class(CONFUSION)
    assert iou.dtype == torch.float64
    assert iou.tolist() == [4 / 6, 2 / 4, 2 / 4]
    assert float(mean_iou(CONFUSION)) == pytest.approx(5 / 9)


def test_precision_and_recall_by_hand():
    assert precision_per_class(CONFUSION).tolist() == [4 / 5, 2 / 3, 2 / 3]
    assert recall_per_class(CONFUSION).tolist() == [4 / 5, 2 / 3, 2 / 3]
    skewed = tensor([[3, 2], [0, 0]])
    assert precision_per_class(skewed).tolist() == [1, 0]
    assert recall_per_class(skewed)[0] == 3 / 5
    assert recall_per_class(skewed)[1].isnan()


def test_classes_neither_predicted_nor_present_are_nan_and_left_out():
    confusion = tensor([[3, 0, 1], [0, 0, 0], [0, 0, 4]])
    iou = iou_per_class(confusion)
    assert iou[1].isnan()
    assert float(mean_iou(confusion)) == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert precision_per_class(confusion)[1].isnan()
    assert mean_iou(torch.zeros(2, 2)).isnan()


def test_a_class_that_is_predicted_but_absent_counts_zero():
    assert iou_per_class(tensor([[3, 1], [0, 0]])).tolist() == [3 / 4, 0]


def test_miou_and_the_two_error_shares_add_up_to_one():
    assert float(false_positive_share(CONFUSION)) == pytest.approx((1 / 6 + 1 / 4 + 1 / 4) / 3)
    assert float(false_negative_share(CONFUSION)) == pytest.approx((1 / 6 + 1 / 4 + 1 / 4) / 3)
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(0, 50, (7, 5, 5), generator=generator)
    random[:, 3] = random[:, :, 3] = 0  # an absent class
    total = mean_iou(random) + false_positive_share(random) + false_negative_share(random)
    torch.testing.assert_close(total, torch.ones(7, dtype=torch.float64))


def test_the_two_shares_tell_too_large_from_too_small():
    too_large = confusion_matrix(tensor([[1, 1, 1, 0]]), tensor([[0, 1, 1, 0]]), 2)
    foreground_only = iou_per_class(too_large)[1]
    assert foreground_only == 2 / 3
    assert float(false_positive_share(too_large)) == pytest.approx((0 + 1 / 3) / 2)
    assert float(false_negative_share(too_large)) == pytest.approx((1 / 2 + 0) / 2)


@pytest.mark.parametrize("confusion", [torch.ones(2, 3), torch.ones(3), torch.zeros(0, 0), tensor([[-1, 0], [0, 1]])])
@pytest.mark.parametrize(
    "metric",
    [
        iou_per_class,
        mean_iou,
        precision_per_class,
        recall_per_class,
        false_positive_share,
        false_negative_share,
    ],
)
def test_metrics_refuse_what_is_no_confusion_matrix(metric, confusion):
    with pytest.raises(ValueError, match="confusion matrix"):
        metric(confusion)


def test_histogram_by_hand():
    best_class = tensor([[1, 2, 1], [2, 1, 0]])
    best_score = tensor([[0.1, 0.5, 0.6], [0.9, 0.2, 0.0]])
    target = tensor([[0, 2, 1], [1, 255, 0]])
    histogram = threshold_histogram(best_class, best_score, target, tensor([0.25, 0.5]), 3)
    expected = torch.zeros(3, 3, 3, dtype=torch.int64)
    expected[0, 1, 0] = 1  # 0.1: below both thresholds
    expected[2, 2, 1] = 1  # 0.5: only 0.25 is strictly below, a tie is not
    expected[1, 1, 2] = 1  # 0.6
    expected[1, 2, 2] = 1  # 0.9
    expected[0, 0, 0] = 1  # an image part without any class
    assert torch.equal(histogram, expected)
    confusions = confusions_from_histogram(histogram)
    assert confusions.tolist() == [
        [[2, 0, 0], [0, 1, 1], [0, 0, 1]],
        [[2, 0, 0], [0, 1, 1], [1, 0, 0]],
    ]


@pytest.mark.parametrize("score_dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("threshold_dtype", [torch.float32, torch.float64])
def test_histogram_equals_separate_confusions_at_every_threshold(score_dtype, threshold_dtype):
    generator = torch.Generator().manual_seed(1)
    num_classes = 4
    thresholds = torch.linspace(0, 1, 21, dtype=threshold_dtype)
    steps = torch.randint(0, 41, (2, 13, 17), generator=generator)  # every second value ties with a threshold
    best_score = (steps.double() / 40).to(score_dtype)
    best_class = torch.randint(1, num_classes, (2, 13, 17), generator=generator)
    target = torch.randint(0, num_classes, (2, 13, 17), generator=generator)
    target[torch.rand(2, 13, 17, generator=generator) < 0.1] = 255

    halves = [
        threshold_histogram(c, s, t, thresholds, num_classes)
        for c, s, t in zip(best_class, best_score, target, strict=True)
    ]
    confusions = confusions_from_histogram(halves[0] + halves[1])

    assert confusions.shape == (21, num_classes, num_classes)
    score = best_score.float() if score_dtype == torch.float16 else best_score
    for threshold, confusion in zip(thresholds.tolist(), confusions, strict=True):
        prediction = torch.where(score > threshold, best_class, 0)
        assert torch.equal(confusion, confusion_matrix(prediction, target, num_classes))


def test_histogram_agrees_with_an_argmax_over_a_background_channel():
    generator = torch.Generator().manual_seed(2)
    cam = torch.rand(3, 11, 7, generator=generator)
    target = torch.randint(0, 4, (11, 7), generator=generator)
    best_score, channel = cam.max(dim=0)
    confusions = confusions_from_histogram(
        threshold_histogram(channel + 1, best_score, target, tensor([0.3, 0.7], dtype=torch.float64), 4)
    )
    for background, confusion in zip([0.3, 0.7], confusions, strict=True):
        scores = torch.cat([torch.full((1, 11, 7), background), cam])
        assert torch.equal(confusion, confusion_matrix(scores.argmax(dim=0), target, 4))


def test_histogram_refuses_bad_arguments():
    classes, scores, target = tensor([[1, 2]]), tensor([[0.5, 0.5]]), tensor([[0, 1]])
    edges = tensor([0.1, 0.2])
    for bad in (tensor([0.2, 0.1]), tensor([]), tensor([[0.1]]), tensor([math.nan]), tensor([1, 2])):
        with pytest.raises(ValueError, match="thresholds"):
            threshold_histogram(classes, scores, target, bad, 3)
    with pytest.raises(ValueError, match="best_class"):
        threshold_histogram(tensor([[1, 3]]), scores, target, edges, 3)
    with pytest.raises(ValueError, match="best_score"):
        threshold_histogram(classes, tensor([[0.5, math.nan]]), target, edges, 3)
    with pytest.raises(ValueError, match="best_score"):
        threshold_histogram(classes, tensor([0.5, 0.5]), target, edges, 3)
    with pytest.raises(ValueError, match="target"):
        threshold_histogram(classes, scores, tensor([[0, 3]]), edges, 3)
    with pytest.raises(ValueError, match="histogram"):
        confusions_from_histogram(torch.zeros(3, 2, 4, dtype=torch.int64))


def average_precision_from_the_definition(scores, positive):
    """Sum of (R_n - R_{n-1}) P_n over distinct thresholds, as loops."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        hits = sum(1 for s, p in zip(scores, positive, strict=True) if s >= threshold and p)
        recall = hits / sum(positive)
        total += (recall - recall_before) * hits / sum(1 for s in scores if s >= threshold)
        recall_before = recall
    return total


def test_average_precision_by_hand():
    # Class 0, descending: + - + -  -> 1/2 * 1 + 1/2 * 2/3. Class 1: - +, then the rest. Class 2: no positive.
    scores = tensor([[0.9, 0.8, 0.1], [0.7, 0.9, 0.2], [0.5, 0.2, 0.3], [0.3, 0.1, 0.4]])
    image_labels = tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    precision = average_precision(scores, image_labels)
    assert precision.dtype == torch.float64
    assert precision[:2].tolist() == pytest.approx([0.5 + 1 / 3, 0.5])
    assert precision[2].isnan()


def test_average_precision_groups_ties_so_the_order_of_images_is_irrelevant():
    # sklearn.metrics.average_precision_score([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.1]) = 2/3
    scores, image_labels = tensor([[0.5], [0.5], [0.5], [0.1]]), tensor([[1], [0], [1], [0]])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 0, 3, 2]):
        assert average_precision(scores[order], image_labels[order]).tolist() == pytest.approx([2 / 3])


def test_average_precision_against_the_definition():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(0, 10, (40, 6), generator=generator) / 10
    image_labels = torch.randint(0, 2, (40, 6), generator=generator)
    expected = [
        average_precision_from_the_definition(s.tolist(), p.tolist())
        for s, p in zip(scores.T, image_labels.T, strict=True)
    ]
    assert average_precision(scores, image_labels).tolist() == pytest.approx(expected)


def test_average_precision_of_nothing():
    assert average_precision(torch.zeros(0, 3), torch.zeros(0, 3)).isnan().all()
    assert average_precision(torch.zeros(3, 0), torch.zeros(3, 0)).shape == (0,)


def test_f1_is_pooled_and_a_tie_is_not_predicted():
    scores = tensor([[0.9, 0.5, 0.1], [0.6, 0.7, 0.2]], dtype=torch.float16)
    image_labels = tensor([[1, 1, 0], [0, 1, 0]])
    assert float(f1_score(scores, image_labels)) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert float(f1_score(scores, image_labels, threshold=0.25)) == pytest.approx(6 / 7)
    assert f1_score(scores, image_labels, threshold=0.95) == 0
    assert f1_score(scores, torch.zeros(2, 3), threshold=0.95).isnan()


@pytest.mark.parametrize("metric", [average_precision, f1_score])
def test_score_tables_are_checked(metric):
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        metric(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="0 or 1"):
        metric(torch.zeros(1, 2), tensor([[0, 2]]))
    with pytest.raises(ValueError, match="NaN"):
        metric(tensor([[math.nan]]), tensor([[1]]))
    with pytest.raises(ValueError, match="floating"):
        metric(tensor([[1]]), tensor([[1]]))


@pytest.mark.parametrize(
    ("counts", "head", "middle", "tail"),
    [
        ([5, 9, 1, 7, 5, 0, 2, 3], [1, 3], [0, 4, 7, 6], [2, 5]),
        ([1, 1, 1], [0], [1], [2]),
        ([1, 4], [1], [], [0]),
        ([3], [], [0], []),
        (range(20), [19, 18, 17, 16, 15], [*range(14, 4, -1)], [4, 3, 2, 1, 0]),
    ],
)
def test_groups_by_frequency(counts, head, middle, tail):
    assert frequency_groups(counts) == {"head": head, "middle": middle, "tail": tail}


def shows(*counts):
    """Image-level labels of images that show one class each, so many of each class."""
    return torch.eye(len(counts))[[number for number, count in enumerate(counts) for _ in range(count)]]


@pytest.mark.parametrize(
    ("mean", "labels", "images"),
    [
        (1.0, shows(12), 12),
        (1.0, shows(4, 4, 4), 12),
        (0.5, shows(4, 0, 4, 4), 12),
        (0.8, shows(1, 5, 6), 9 / (1 + 1 / 5 + 1 / 6)),
        (0.9, torch.ones(5, 3), 5),  # each image counts for three classes
        (0.0, torch.cat([shows(2), torch.zeros(8, 1)]), 2),  # positive images decide
    ],
)
def test_interval_of_a_mean_precision(mean, labels, images):
    """Its ends are the means from which the observed one is 1.96 standard deviations away."""
    low, high = mean_precision_interval(mean, labels)
    assert 0 <= low <= mean <= high <= 1
    for end in (low, high):
        if end not in (mean, 0, 1):
            assert abs(mean - end) == pytest.approx(1.96 * (end * (1 - end) / images) ** 0.5)


def test_interval_by_hand():
    low, high = mean_precision_interval(1.0, shows(12))
    assert (low, high) == (pytest.approx(12 / (12 + 1.96**2)), pytest.approx(1.0)) and f"{low:.2f}" == "0.76"
    narrow = mean_precision_interval(0.9, shows(5000))
    assert narrow == (pytest.approx(0.9, abs=0.01), pytest.approx(0.9, abs=0.01))
    assert all(math.isnan(end) for end in mean_precision_interval(math.nan, torch.zeros(3, 2)))


def test_interval_of_a_mean_iou():
    right, wrong = tensor([[5, 0], [0, 5]]), tensor([[0, 5], [5, 0]])
    assert mean_iou_interval(torch.stack([right] * 4)) == (1.0, 1.0)
    assert mean_iou_interval(torch.stack([right, wrong])) == (0.0, 1.0)  # a quarter of the draws has one of them only
    # Of 40 images half are right. The drawn share p has a standard deviation of sqrt(1/160); the IoU is p / (2 - p).
    low, high = mean_iou_interval(torch.stack([right, wrong] * 20))
    ends = [0.5 - 1.96 / 160**0.5, 0.5 + 1.96 / 160**0.5]
    assert (low, high) == tuple(pytest.approx(p / (2 - p), abs=0.03) for p in ends)
    assert mean_iou_interval(torch.stack([right, wrong] * 20)) == (low, high)


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 2)])
def test_an_interval_needs_images(shape):
    with pytest.raises(ValueError, match="must be"):
        mean_iou_interval(torch.zeros(shape, dtype=torch.int64))


def test_interval_holds_what_was_found_although_a_class_is_in_one_image_alone() -> None:
    """The first image has a class that is never found; a draw without it must not have a better mean."""
    only_one = tensor([[8.0, 0, 0], [0, 8, 0], [4, 0, 0]])
    others = tensor([[8.0, 2, 0], [2, 8, 0], [0, 0, 0]])
    confusions = torch.stack([only_one, others, others, others])
    low, high = mean_iou_interval(confusions)
    assert low <= float(mean_iou(confusions.sum(dim=0))) <= high
