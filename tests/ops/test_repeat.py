import pytest
import torch

from cam_pipeline.ops.repeat import repeat_factors


def test_factors_by_hand():
    """Of eight labelled images, four show the first class, two the second, none the third; one is not labelled."""
    labels = torch.zeros(9, 3)
    labels[:4, 0] = 1
    labels[3:5, 1] = 1
    labels[8] = torch.nan
    factors = repeat_factors(labels, 0.36)  # above a quarter, below a half: sqrt(.36 / .25) = 1.2
    assert factors.tolist() == pytest.approx([1, 1, 1, 1.2, 1.2, 1, 1, 1, 1])
    assert repeat_factors(labels, 1.0).tolist() == pytest.approx([2**0.5] * 3 + [2, 2, 1, 1, 1, 1])
    assert (repeat_factors(labels, 0.1) == 1).all()


def test_without_classes_labels_or_images():
    assert repeat_factors(torch.zeros(2, 0), 0.1).tolist() == [1, 1]
    assert repeat_factors(torch.full((2, 3), torch.nan), 0.1).tolist() == [1, 1]
    assert repeat_factors(torch.zeros(0, 3), 0.1).tolist() == []


@pytest.mark.parametrize(("shape", "threshold"), [((3,), 0.1), ((3, 2), 0.0)])
def test_what_is_refused(shape, threshold):
    with pytest.raises(ValueError, match="labels must be"):
        repeat_factors(torch.zeros(shape), threshold)
