import numpy as np
import pytest
import torch

from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.labels import complete_labels, labels_from_scores, merge_high_low

# Background, class 7, class 3; 2 x 3 pixels.
SCORES = [
    [[0.80, 0.60, 0.10], [0.30, 0.50, 0.20]],
    [[0.20, 0.40, 0.90], [0.30, 0.10, 0.35]],
    [[0.10, 0.10, 0.20], [0.10, 0.55, 0.65]],
]


def test_labels_between_thresholds_are_ignored():
    scores = torch.tensor([[[0.8, 0.6, 0.1]], [[0.2, 0.4, 0.9]]])
    assert labels_from_scores(scores, class_ids=[7], low=0.3, high=0.6).tolist() == [[0, IGNORE_INDEX, 7]]


def test_labels_by_hand():
    labels = labels_from_scores(torch.tensor(SCORES), [7, 3], low=0.3, high=0.6)
    # 0.3 is not < low; 0.55 is the best channel but not >= high.
    assert labels.tolist() == [[0, 255, 7], [255, 255, 3]]
    assert labels.dtype == torch.uint8


def test_thresholds_are_inclusive_above_and_exclusive_below():
    scores = torch.tensor([[[0.0, 0.0]], [[0.5, 0.25]]])
    assert labels_from_scores(scores, [1], low=0.25, high=0.5).tolist() == [[1, 255]]


def test_a_confident_class_that_is_not_the_best_channel_is_ignored():
    scores = torch.tensor([[[0.9, 0.7]], [[0.7, 0.7]]])
    assert labels_from_scores(scores, [1], low=0.3, high=0.6).tolist() == [[255, 255]]


def test_equal_thresholds_leave_only_disagreement_to_ignore():
    labels = labels_from_scores(torch.tensor(SCORES), [7, 3], low=0.5, high=0.5)
    assert labels.tolist() == [[0, 0, 7], [0, 3, 3]]


def test_complete_labels_have_no_ignore_band_and_ties_go_to_the_background():
    labels = complete_labels(torch.tensor(SCORES), [7, 3])
    assert labels.tolist() == [[0, 0, 7], [0, 3, 3]]
    assert labels.dtype == torch.uint8


@pytest.mark.parametrize("function", [complete_labels, lambda s, c: labels_from_scores(s, c, 0.0, 0.0)])
def test_between_equal_classes_the_first_wins(function):
    assert function(torch.tensor([[[0.1]], [[0.5]], [[0.5]]]), [9, 4]).tolist() == [[9]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_in_gives_numpy_out(dtype):
    scores = np.array(SCORES, dtype=dtype)
    before = scores.copy()
    scores.setflags(write=False)
    for labels, expected in [
        (labels_from_scores(scores, [7, 3], 0.3, 0.7), [[0, 255, 7], [255, 255, 255]]),
        (complete_labels(scores[:, ::-1], [7, 3]), [[0, 3, 3], [0, 0, 7]]),
        (complete_labels(scores[:, ::-1], np.array([7, 3])), [[0, 3, 3], [0, 0, 7]]),
    ]:
        assert isinstance(labels, np.ndarray)
        assert labels.dtype == np.uint8
        if dtype != np.float16:  # half precision rounds 0.3 down
            assert labels.tolist() == expected
    assert np.array_equal(scores, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_torch_dtypes(dtype):
    scores = torch.tensor(SCORES, dtype=dtype)
    assert labels_from_scores(scores, [7, 3], 0.25, 0.625).tolist() == [[0, 255, 7], [255, 255, 3]]


def test_an_image_without_classes_is_background():
    scores = torch.full((1, 2, 3), 0.4)
    assert labels_from_scores(scores, [], 0.3, 0.6).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert complete_labels(scores.numpy(), []).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_zero_threshold_makes_an_image_without_classes_no_less_background():
    assert labels_from_scores(torch.zeros(1, 1, 2), [], 0.0, 0.0).tolist() == [[0, 0]]


def test_rounding_beyond_one_is_forgiven():
    scores = torch.tensor([[[-1e-6]], [[1.000001]]])
    assert labels_from_scores(scores, [254], 0.3, 0.6).tolist() == [[254]]


@pytest.mark.parametrize("low_high", [(0.6, 0.3), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_thresholds_are_checked(low_high):
    with pytest.raises(ValueError, match="low"):
        labels_from_scores(torch.tensor(SCORES), [7, 3], *low_high)


@pytest.mark.parametrize("class_ids", [[7], [7, 3, 1], [0, 1], [7, 255], [-1, 1], [7, 7]])
def test_class_ids_are_checked(class_ids):
    with pytest.raises(ValueError, match="class"):
        complete_labels(torch.tensor(SCORES), class_ids)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3, 4), "must be"),
        (torch.zeros(1, 3, 2, 2), "must be"),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), "floats in 0..1"),
        (torch.full((3, 2, 2), 255.0), "lie in 0..1"),
        (torch.full((3, 2, 2), -0.5), "lie in 0..1"),
        (torch.full((3, 2, 2), float("nan")), "lie in 0..1"),
    ],
)
def test_scores_are_checked(scores, message):
    for given in (scores, scores.numpy()):
        with pytest.raises(ValueError, match=message):
            complete_labels(given, [7, 3])
        with pytest.raises(ValueError, match=message):
            labels_from_scores(given, [7, 3], 0.3, 0.6)


# Two label maps of 2 x 3 pixels: every case, and what becomes of it.
HIGH, LOW, MERGED = [[0, 0, 5], [5, 255, 0]], [[0, 5, 5], [7, 255, 7]], [[0, 255, 5], [5, 255, 255]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_merge_by_hand(dtype):
    high, low = torch.tensor(HIGH, dtype=dtype), torch.tensor(LOW, dtype=dtype)
    merged = merge_high_low(high, low)
    assert merged.tolist() == MERGED and merged.dtype == dtype
    merged = merge_high_low(high.numpy(), low.numpy())
    assert isinstance(merged, np.ndarray) and merged.tolist() == MERGED and merged.dtype == high.numpy().dtype


def test_merge_of_two_types_has_that_of_high():
    high, low = torch.tensor(HIGH, dtype=torch.uint8), torch.tensor(LOW)
    assert merge_high_low(high, low).dtype == torch.uint8 and merge_high_low(high.long(), low.byte()).dtype == low.dtype


@pytest.mark.parametrize(("high", "low", "merged"), [(255, 0, 255), (255, 3, 255), (0, 255, 255), (3, 255, 3)])
def test_merge_with_ignored_pixels(high, low, merged):
    assert merge_high_low(torch.tensor([[high]]), torch.tensor([[low]])).tolist() == [[merged]]


def test_merge_takes_batches_and_changes_nothing():
    high, low = np.array([HIGH, LOW], dtype=np.uint8), np.array([LOW, HIGH], dtype=np.uint8)
    before = high.copy(), low.copy()
    high.setflags(write=False)
    merged = merge_high_low(high, low)
    assert merged.tolist() == [MERGED, [[0, 5, 5], [7, 255, 7]]]
    merged[:] = 1
    once = merge_high_low(torch.from_numpy(before[0]), torch.from_numpy(low))
    once.fill_(1)
    assert np.array_equal(high, before[0]) and np.array_equal(low, before[1])


@pytest.mark.parametrize(
    ("high", "low", "message"),
    [
        (torch.zeros(2, 3).byte(), torch.zeros(3, 2).byte(), "same shape"),
        (torch.zeros(2, 3).byte(), torch.zeros(1, 2, 3).byte(), "same shape"),
        (torch.zeros(2, 3), torch.zeros(2, 3).byte(), "high must be uint8"),
        (torch.zeros(2, 3).byte(), torch.zeros(2, 3).bool(), "low must be uint8"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.zeros(2, 3).byte(), "high must be uint8"),
        (torch.zeros(2, 3).byte(), np.zeros((2, 3), dtype=np.uint8), "both"),
    ],
)
def test_merge_is_checked(high, low, message):
    with pytest.raises(ValueError, match=message):
        merge_high_low(high, low)
