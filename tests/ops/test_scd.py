import pytest
import torch

from cam_pipeline.ops.losses import segmentation_loss
from cam_pipeline.ops.scd import balanced_cross_entropy, balanced_halves


def test_the_number_of_the_specification():
    logits = torch.tensor([2.0, 0, 0])[None, :, None, None].expand(1, 3, 1, 4)
    labels = torch.tensor([[[0, 0, 0, 1]]])
    assert segmentation_loss(logits, labels).item() == pytest.approx(0.739545, abs=1e-6)
    assert balanced_cross_entropy(logits, labels).item() == pytest.approx(1.239545, abs=1e-6)


def test_an_empty_half_counts_nothing():
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    background = torch.zeros(2, 2, 2, dtype=torch.long)
    halves = balanced_halves(logits, background)
    assert halves[1] == 0
    torch.testing.assert_close(halves[0], segmentation_loss(logits, background) / 2)
    torch.testing.assert_close(
        balanced_cross_entropy(logits, background + 1), segmentation_loss(logits, background + 1) / 2
    )


def test_all_ignored_gives_zero_with_a_graph():
    logits = torch.randn(1, 3, 2, 2).requires_grad_()
    loss = balanced_cross_entropy(logits, torch.full((1, 2, 2), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_ignored_pixels_change_nothing():
    logits = torch.randn(1, 3, 1, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[[0, 2, 255]]])
    other = logits.clone()
    other[..., 2] = 50
    assert torch.equal(balanced_cross_entropy(logits, labels), balanced_cross_entropy(other, labels))


def test_labels_are_checked():
    with pytest.raises(ValueError, match=r"labels must be 0\.\.2 or 255"):
        balanced_cross_entropy(torch.zeros(1, 3, 1, 1), torch.tensor([[[3]]]))
