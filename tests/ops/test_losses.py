import math

import pytest
import torch
from torch import tensor

from cam_pipeline.ops.losses import segmentation_loss

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
