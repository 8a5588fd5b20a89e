"""The teacher's maths on images of 2 x 3 pixels, by hand."""

import math

import pytest
import torch

from cam_pipeline.ops.teacher import (
    blurred,
    cutmix_boxes,
    partners,
    pasted,
    recolored,
    restricted_targets,
    teacher_loss,
    within,
)

NAN = torch.nan


def test_pixels_within_boxes():
    boxes = torch.tensor([[0, 1, 1, 3], [1, 0, 2, 2], [0, 0, 0, 0]])
    assert within(boxes, 2, 3).int().tolist() == [
        [[0, 1, 1], [0, 0, 0]],
        [[0, 0, 0], [1, 1, 0]],
        [[0, 0, 0], [0, 0, 0]],
    ]


def test_boxes_by_hand():
    """On 8 x 18 pixels: a quarter of them are 36; 6 x 6 if square, 3 x 12 at aspect 1/4, 8 (for 12) x 3 at 4."""
    drawn = torch.tensor(
        [
            [0.1, 0.5, 0.5, 0.0, 0.0],  # the first place
            [0.1, 0.5, 0.5, 0.999, 0.999],  # the last
            [0.1, 0.5, 0.0, 0.5, 0.5],
            [0.1, 0.5, 1.0, 0.7, 0.0],
            [0.5, 0.5, 0.5, 0.5, 0.5],  # not chosen
        ]
    )
    assert cutmix_boxes(drawn, 8, 18, 0.5, (0.2, 0.3), 4.0).tolist() == [
        [0, 0, 6, 6],
        [2, 12, 8, 18],
        [3, 3, 6, 15],
        [0, 0, 8, 3],
        [0, 0, 0, 0],
    ]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_boxes_lie_inside_and_are_as_large_as_asked(share):
    drawn = torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
    top, left, bottom, right = cutmix_boxes(drawn, 40, 60, share, (0.1, 0.3), 2.0).unbind(dim=1)
    area = (bottom - top) * (right - left) / (40 * 60)
    if not share:
        assert not area.any()
        return
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= 40).all() and (right <= 60).all()
    assert 0.09 < area.min() < 0.12 and 0.28 < area.max() < 0.31
    ratio = (bottom - top) / (right - left)
    assert 0.48 < ratio.min() < 0.6 and 1.7 < ratio.max() < 2.1


@pytest.mark.parametrize(
    ("count", "order"), [(1, [0]), (2, [1, 0]), (3, [1, 0, 1]), (4, [1, 0, 3, 2]), (5, [1, 0, 3, 2, 3])]
)
def test_partners(count, order):
    assert partners(count).tolist() == order


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
def test_boxes_come_from_the_partner_as_it_was(dtype):
    values = torch.tensor([[[0, 1, 0], [0, 0, 0]], [[1, 0, 1], [1, 1, 1]], [[0, 0, 1], [0, 0, 1]]]).to(dtype)
    boxes = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3], [0, 0, 2, 1]])
    expected = torch.tensor([[[1, 0, 0], [0, 0, 0]], [[1, 1, 0], [1, 0, 0]], [[1, 0, 1], [1, 0, 1]]]).to(dtype)
    found = pasted(values, boxes)
    assert torch.equal(found, expected) and found.dtype == dtype
    assert torch.equal(pasted(torch.stack([values, values], dim=1), boxes)[:, 1], expected)


def test_colours_by_hand():
    images = torch.tensor([[0.2, 0.4], [0.6, 0.8], [0.4, 0.1]]).view(1, 3, 1, 2).repeat(5, 1, 1, 1)
    one, no = torch.ones(5), torch.zeros(5, dtype=torch.bool)
    brightness, contrast, saturation, grey = one.clone(), one.clone(), one.clone(), no.clone()
    brightness[1], contrast[2], saturation[3], grey[4] = 1.5, 0.5, 0.0, True
    found = recolored(images, brightness, contrast, saturation, grey)
    torch.testing.assert_close(found[0], images[0])
    torch.testing.assert_close(found[1], torch.tensor([[[0.3, 0.6]], [[0.9, 1.0]], [[0.6, 0.15]]]))
    light = [0.2989 * 0.2 + 0.587 * 0.6 + 0.114 * 0.4, 0.2989 * 0.4 + 0.587 * 0.8 + 0.114 * 0.1]
    torch.testing.assert_close(found[2], (images[2] + sum(light) / 2) / 2)
    for row in (3, 4):
        expected = torch.tensor(light).expand(3, 1, 2) * (1 if row == 3 else 0.9999)
        torch.testing.assert_close(found[row], expected, atol=2e-4, rtol=0)


def test_blur():
    images = torch.zeros(3, 3, 15, 15)
    images[:, :, 7, 7] = 1.0
    images[2] = 0.5
    found = blurred(images, torch.tensor([0.0, 1.5, 2.0]))
    torch.testing.assert_close(found[0], images[0])
    torch.testing.assert_close(found[2], images[2])  # an even image stays, its border too
    row = found[1, 1, 7]
    assert float(found[1, 1].sum()) == pytest.approx(1, abs=1e-5)
    assert float(row[8] / row[7]) == pytest.approx(math.exp(-1 / (2 * 1.5**2)), abs=1e-5)
    torch.testing.assert_close(found[1, 1], found[1, 1].t())


def test_blur_of_images_smaller_than_its_reach():
    assert blurred(torch.rand(2, 3, 2, 3), torch.tensor([2.0, 0.5])).shape == (2, 3, 2, 3)


def logits_of(*pixels):
    """(1, K, 2, 3) logits from probabilities of six pixels."""
    return torch.tensor(pixels).log().t().reshape(1, -1, 2, 3)


def test_a_teacher_names_the_background_and_what_the_labels_name():
    pixels = [[0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.6, 0.2, 0.2], [0.05, 0.05, 0.9], [0.3, 0.6, 0.1], [0.4, 0.4, 0.2]]
    logits = logits_of(*pixels).repeat(3, 1, 1, 1)
    labels = torch.tensor([[0.0, 1.0], [NAN, NAN], [0.0, 0.0]])
    best, confidence = restricted_targets(logits, labels)
    assert best.tolist() == [[[2, 2, 0], [2, 0, 0]], [[1, 1, 0], [2, 1, 0]], [[0] * 3] * 2]
    shown = [[0.3 / 0.5, 0.3 / 0.4, 0.6 / 0.8], [0.9 / 0.95, 0.3 / 0.4, 0.4 / 0.6]]
    torch.testing.assert_close(confidence[0], torch.tensor(shown))
    torch.testing.assert_close(confidence[1], torch.tensor([[0.5, 0.6, 0.6], [0.9, 0.6, 0.4]]))
    assert (confidence[2] == 1).all()


def test_the_loss_by_hand():
    logits = torch.cat([logits_of(*[[0.2, 0.8]] * 6), logits_of(*[[0.5, 0.5]] * 6)]).requires_grad_()
    targets = torch.tensor([[[1, 255, 255], [0, 255, 255]], [[255, 255, 0], [255, 255, 255]]])
    counted = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[0, 0, 1], [1, 0, 0]]]).bool()
    expected = -(math.log(0.8) + math.log(0.2) + math.log(0.5)) / 5
    assert float(teacher_loss(logits, targets, counted).detach()) == pytest.approx(expected)
    nothing = teacher_loss(logits, torch.full_like(targets, 255), torch.zeros_like(counted))
    nothing.backward()
    assert float(nothing.detach()) == 0 and not logits.grad.any()


@pytest.mark.parametrize(("logits", "labels"), [((1, 3, 2, 3), (1, 3)), ((2, 3, 2, 3), (1, 2)), ((1, 3, 6), (1, 2))])
def test_other_shapes_are_refused(logits, labels):
    with pytest.raises(ValueError, match=r"logits and labels must be \(B, 1 \+ C, H, W\) and \(B, C\), not"):
        restricted_targets(torch.zeros(logits), torch.zeros(labels))
    with pytest.raises(ValueError, match="floating"):
        restricted_targets(torch.zeros(1, 2, 2, 3, dtype=torch.int64), torch.zeros(1, 1))
