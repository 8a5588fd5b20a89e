"""P9 to P14 of the specification, with its numbers; P12b is in test_affinity.py, the merge of P12 in test_labels.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.cam import with_background
from cam_pipeline.ops.labels import merge_high_low
from cam_pipeline.ops.losses import segmentation_loss
from cam_pipeline.ops.refine import local_refine
from cam_pipeline.ops.scd import (
    affinity_loss,
    affinity_targets,
    balanced_cross_entropy,
    balanced_halves,
    coordinates_within,
    correspondence_loss,
    online_maps,
    random_coordinates,
    refined_labels,
    with_rest,
)


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


# The loss of correspondence: P9, P10, P11. Each of n pixels in a row is read exactly once.

HALF, QUARTER = [0, 0, 1, 1], [0, 0, 0, 1]


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def coded(classes: list[int], channels: int = 2) -> Tensor:
    """(1, channels, 1, n): one-hot vectors, zeros for a class below 0."""
    values = double([[float(one == channel) for one in classes] for channel in range(channels)])
    return values.view(1, channels, 1, -1)


def every(count: int, rows: int = 2) -> Tensor:
    """(1, rows, ., 2): the middles of all pixels of a row of `count`."""
    return torch.stack([torch.linspace(-1, 1, count, dtype=torch.float64), torch.zeros(count).double()], dim=1).view(
        1, rows, -1, 2
    )


def loss_of(maps: Tensor, answers: Tensor, **settings: object) -> float:
    at = every(maps.shape[-1])
    return correspondence_loss(maps, maps, answers, answers, at, at, **settings).item()


def drawn(seed: int = 0, batch: int = 2) -> tuple[Tensor, ...]:
    """Maps and logits of two views of different sizes, and different numbers of places."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(3, 5, 7), (3, 4, 3), (4, 3, 6), (4, 2, 5)]
    maps = [torch.randn(batch, *shape, generator=draw, dtype=torch.float64) for shape in shapes]
    places = [2 * torch.rand(batch, *grid, 2, generator=draw, dtype=torch.float64) - 1 for grid in [(4, 5), (3, 2)]]
    return maps[0].relu(), maps[1].relu(), maps[2], maps[3], *places


def plain(
    maps: Tensor, other: Tensor, answers: Tensor, others: Tensor, at: Tensor, there: Tensor, shift: float, kind: str
) -> Tensor:
    """The loss with both products as a whole, step by step as specified."""

    def vectors(values: Tensor, places: Tensor) -> Tensor:
        read = F.grid_sample(values, places, padding_mode="border", align_corners=True)
        return F.normalize(read, dim=1, eps=1e-10)

    target = torch.einsum("nchw,ncij->nhwij", vectors(maps, at), vectors(other, there))
    likeness = torch.einsum("nchw,ncij->nhwij", vectors(answers, at), vectors(others, there))
    if kind != "none":
        mean = target.mean() if kind == "batch" else target.mean(dim=(1, 2, 3, 4), keepdim=True)
        target = target - target.mean(dim=(3, 4), keepdim=True)
        target = target - target.mean() + mean
        if kind == "batch":
            rows = target.mean(dim=(3, 4))
            torch.testing.assert_close(rows, mean.expand_as(rows), rtol=0, atol=1e-12)  # P9
    return -(likeness.clamp(min=0) * (target - shift)).mean()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("centering", ["batch", "image", "none"])
def test_rows_in_chunks_equal_the_whole_product(centering, chunk):
    *values, at, there = drawn()
    expected = plain(*values, at, there, 0.15, centering)
    found = correspondence_loss(*values, at, there, shift=0.15, centering=centering, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shift", "perfect"), [(0, -0.5), (0.18, -0.41)])
def test_two_halves(shift, perfect):
    assert loss_of(coded(HALF), coded(HALF), shift=shift) == pytest.approx(perfect, abs=1e-9)


@pytest.mark.parametrize(("shift", "expected"), [(0, -0.25), (0.18, -0.16)])
def test_answers_that_cross_the_halves(shift, expected):
    assert loss_of(coded(HALF), coded([0, 1, 0, 1]), shift=shift) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("shift", "perfect", "collapsed"),
    [(0, -0.578125, -0.625), (0.125, -0.5, -0.5), (0.18, -0.465625, -0.445), (0.46, -0.290625, -0.165)],
)
def test_three_quarters_and_one(shift, perfect, collapsed):
    assert loss_of(coded(QUARTER), coded(QUARTER), shift=shift) == pytest.approx(perfect, abs=1e-9)
    assert loss_of(coded(QUARTER), coded([0, 0, 0, 0]), shift=shift) == pytest.approx(collapsed, abs=1e-9)


@pytest.mark.parametrize(("row", "target"), [(0, [0.875, -0.125]), (3, [0.375, 1.375])])
def test_the_centred_target(row, target):
    """Answers that are alike for one pair of pixels alone show what its target is."""
    for other, expected in ((0, target[0]), (3, target[1])):
        first, second = coded([-1] * 4), coded([-1] * 4)
        first[0, 0, 0, row] = second[0, 0, 0, other] = 1
        maps, at = coded(QUARTER), every(4)
        loss = correspondence_loss(maps, maps, first, second, at, at)
        assert loss.item() == pytest.approx(-expected / 16, abs=1e-9)


@pytest.mark.parametrize(
    ("classes", "threshold"), [(HALF, 0), (QUARTER, 0.125), ([0, 0, -1, -1], 0), ([0, 1, -1, -1, -1, -1], 1 / 9)]
)
@pytest.mark.parametrize("centering", ["batch", "image"])
def test_above_the_threshold_the_perfect_segmentation_beats_the_collapsed_one(classes, threshold, centering):
    """Pixels of class -1 are background, whose map is 1 - max over classes."""
    maps = with_rest(coded(classes))
    answers, collapsed = coded([one + 1 for one in classes], 3), coded([0] * len(classes), 3)

    def gain(shift: float) -> float:
        perfect, same = (loss_of(maps, one, shift=shift, centering=centering) for one in (answers, collapsed))
        return same - perfect

    assert gain(threshold) == pytest.approx(0, abs=1e-9)
    assert gain(threshold - 0.02) < -1e-3 and gain(threshold + 0.02) > 1e-3 and gain(0.18) > 0.02


def test_without_a_background_map_the_background_is_pulled_to_the_class():
    """What the released code does: two pixels of a class, two whose maps are all zero."""
    maps, collapsed = coded([0, 0, -1, -1]), coded([0] * 4)
    assert loss_of(maps, coded(HALF)) == pytest.approx(-0.25, abs=1e-9)
    assert loss_of(maps, collapsed) == pytest.approx(-0.25, abs=1e-9)
    rest = with_rest(maps)
    assert rest.squeeze().tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert loss_of(rest, coded(HALF)) == loss_of(rest, collapsed) == pytest.approx(-0.5, abs=1e-9)


def test_constant_views_and_opposite_answers():
    maps, answers = torch.full((1, 2, 2, 3), 0.5), torch.full((1, 3, 2, 3), 2.0)
    at, there = random_coordinates(1, 3), random_coordinates(1, 2)
    assert correspondence_loss(maps, maps, answers, answers, at, there).item() == pytest.approx(-1)
    assert correspondence_loss(maps, maps, answers, -answers, at, there).item() == 0


def test_centering_sees_the_batch_or_each_image():
    """The mean that is added back: of a constant image and one of halves."""
    maps = torch.cat([coded([0, 0, 0, 0]), coded(HALF)])
    answers, at = torch.cat([coded([0, 0, 0, 0]), coded(HALF)]), every(4).expand(2, -1, -1, -1)
    assert correspondence_loss(maps, maps, answers, answers, at, at, centering="image").item() == pytest.approx(-0.75)
    # means 1 and 0.5, together 0.75: targets 0.75 (constant image), 1.25 (same half); half of the pairs
    batch = -(0.75 + 1.25 / 2) / 2
    assert correspondence_loss(maps, maps, answers, answers, at, at).item() == pytest.approx(batch)


def test_gradients_reach_the_answers_alone():
    *values, at, there = drawn()
    for value in values:
        value.requires_grad_()
    correspondence_loss(*values, at, there).backward()
    assert values[0].grad is None and values[1].grad is None
    assert values[2].grad.abs().sum() > 0 and values[3].grad.abs().sum() > 0


def test_the_gradient_is_that_of_the_whole_product():
    maps, other, answers, others, at, there = drawn(batch=1)
    answers.requires_grad_()
    others.requires_grad_()

    def loss(first: Tensor, second: Tensor) -> Tensor:
        return correspondence_loss(maps, other, first, second, at, there, shift=0.15, centering="image", chunk=7)

    assert torch.autograd.gradcheck(loss, (answers, others))
    for one in ((answers, others), (answers.detach(), others)):
        found = torch.autograd.grad(loss(*one), others)
        expected = torch.autograd.grad(plain(maps, other, *one, at, there, 0.15, "image"), others)
        torch.testing.assert_close(found, expected)


def test_positive_scaling_changes_nothing():
    *values, at, there = drawn()
    scaled = [value * scale for value, scale in zip(values, (3, 0.2, 7, 0.5), strict=True)]
    torch.testing.assert_close(
        correspondence_loss(*scaled, at, there), correspondence_loss(*values, at, there), rtol=0, atol=1e-12
    )


def test_answers_that_are_zero_have_finite_gradients():
    *values, at, there = drawn()
    answers = torch.zeros_like(values[2]).requires_grad_()
    loss = correspondence_loss(values[0], values[1], answers, values[3], at, there)
    loss.backward()
    assert loss.item() == 0 and not answers.grad.any()


def test_half_precision_and_autocast_compute_in_float32():
    *values, at, there = (value.float() for value in drawn())
    values = [value.bfloat16() for value in values]
    expected = correspondence_loss(*(value.float() for value in values), at, there)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = correspondence_loss(*values, at, there)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_coordinates_are_x_then_y():
    """Only the right column of two shows a class, and only the last of three rows gets an answer."""
    maps, answers = torch.zeros(1, 2, 3, 2), torch.zeros(1, 2, 3, 2)
    maps[0, 0, :, 1], maps[0, 1, :, 0], answers[0, 0, 2] = 1, 1, 1
    at = torch.tensor([1.0, 1.0]).view(1, 1, 1, 2)
    values = [
        correspondence_loss(maps, maps, answers, answers, at, there.view(1, 1, 1, 2), centering="none").item()
        for there in torch.tensor([[1.0, 1], [-1, 1], [1, -1]])
    ]
    assert values == [-1, 0, 0]


def test_drawn_coordinates():
    at = random_coordinates(3, 5, torch.Generator().manual_seed(0))
    assert at.shape == (3, 5, 5, 2) and at.min() < -0.5 and at.max() > 0.5 and at.abs().max() <= 1
    assert torch.equal(at, random_coordinates(3, 5, torch.Generator().manual_seed(0)))
    assert len(at.unique()) == at.numel()


def test_coordinates_within_boxes():
    """Corners of the box of a 10 x 20 image: rows 5 to 10, columns 0 to 5; then one that is larger than the image."""
    corners = torch.tensor([[-1.0, -1], [1, 1], [0, -1]]).view(1, 1, 3, 2).expand(2, -1, -1, -1)
    moved = coordinates_within(corners, torch.tensor([[5, 0, 10, 5], [-3, -3, 11, 99]]), (10, 20))
    assert moved[0, 0].tolist() == [[-1, 0], [-0.5, 1], [-0.75, 0]]
    assert torch.equal(moved[1], corners[1])
    with pytest.raises(ValueError, match="boxes"):
        coordinates_within(corners, torch.zeros(1, 4), (10, 20))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.rand(2, 3, 4)}, "cam_a and cam_b"),
        ({1: torch.rand(2, 2, 4, 3)}, "cam_a and cam_b"),
        ({3: torch.rand(2, 3, 2, 5)}, "logits_a and logits_b"),
        ({2: torch.rand(1, 4, 3, 6), 3: torch.rand(1, 4, 2, 5)}, "one batch"),
        ({2: torch.ones(2, 4, 3, 6, dtype=torch.long)}, "floating point"),
        ({4: torch.rand(1, 4, 5, 2)}, "coordinates must be"),
        ({5: torch.full((2, 3, 2, 2), 1.5)}, "-1..1"),
        ({5: torch.full((2, 3, 2, 2), torch.nan)}, "-1..1"),
        ({6: torch.nan}, "shift"),
        ({7: "all"}, "centering must be one of batch, image, none"),
        ({8: 0}, "chunk"),
    ],
)
def test_what_the_correspondence_refuses(change, words):
    given = [*drawn(), 0.0, "batch", 256]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(ValueError, match=words):
        correspondence_loss(*given)


# P14: online maps


def test_online_maps_by_hand():
    maps = double([0, 0.2, 1, 3, -5, 0.0]).view(1, 1, 2, 3)
    shown = online_maps(torch.cat([maps, -maps.abs(), torch.zeros_like(maps)], dim=1))
    torch.testing.assert_close(
        shown[0, 0].flatten(), double([0, 0.066666, 0.333332, 0.999997, 0, 0]), rtol=0, atol=1e-6
    )
    assert not shown[0, 1:].any()


def test_online_maps_start_at_their_minimum():
    assert online_maps(double([[[[1.0, 2, 3]]]])).flatten().tolist() == pytest.approx([0, 0.5, 1], abs=1e-5)


def test_online_maps_of_absent_classes_and_low_peaks():
    draw = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 3, 2, 4, generator=draw)
    maps[:, :, 0, 0] = 1
    maps[:, 2] *= 0.01
    labels = torch.tensor([[1.0, 0, 1], [torch.nan] * 3])
    peaks = online_maps(maps, labels, floor=0.1).amax(dim=(2, 3)) > 0.9
    assert peaks.tolist() == [[True, False, False], [True, True, False]]
    assert (online_maps(maps, labels).amax(dim=(2, 3)) > 0.9).tolist() == [[True, False, True], [True] * 3]
    assert online_maps(maps).amax(dim=(2, 3)).min() > 0.9


@pytest.mark.parametrize(
    ("maps", "labels", "floor", "words"),
    [
        (torch.zeros(2, 3, 4), None, 0, "maps must be"),
        (torch.zeros(1, 3, 2, 4), torch.zeros(3), 0, "class_labels"),
        (torch.zeros(1, 3, 2, 4), None, -1, "floor"),
    ],
)
def test_what_online_maps_refuse(maps, labels, floor, words):
    with pytest.raises(ValueError, match=words):
        online_maps(maps, labels, floor)


# P12: affinity


def test_affinity_of_the_specification():
    targets = affinity_targets(torch.tensor([[[1, 1, 0, 255]]]), 8)
    assert targets.tolist() == [[[1, 1, 0, 255], [1, 1, 0, 255], [0, 0, 1, 255], [255] * 4]]
    assert affinity_loss(torch.full((1, 4, 4), 0.8), targets).item() == pytest.approx(0.403333, abs=1e-6)


def test_affinity_within_a_radius():
    """Cells 0..5 of 2 x 3: those in the first and last column are two columns apart."""
    labels = torch.tensor([[[0, 0, 3], [3, 0, 0]]], dtype=torch.uint8)
    near = affinity_targets(labels, 1)[0]
    assert near[0].tolist() == [1, 1, 255, 0, 1, 255] and near[2].tolist() == [255, 0, 1, 255, 0, 0]
    assert torch.equal(near, near.T) and near.dtype == torch.uint8
    assert affinity_targets(labels, 2)[0, 2].tolist() == [0, 0, 1, 1, 0, 0]
    assert affinity_targets(labels.long(), 0, 9)[0].tolist() == (9 - 8 * torch.eye(6)).tolist()


def test_the_number_of_pairs_within_eight_cells():
    counts = (affinity_targets(torch.zeros(1, 32, 32, dtype=torch.uint8), 8) == 1)[0].sum(dim=1)
    assert counts.sum() == 222_784 and counts[0] == 81 and counts[16 * 32 + 16] == 289


def test_affinity_loss_pools_the_batch_and_reaches_the_prediction():
    draw = torch.Generator().manual_seed(0)
    predicted = torch.rand(2, 4, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 255])[torch.randint(3, (2, 4, 4), generator=draw)]
    one, zero = (predicted[target == kind] for kind in (1, 0))
    expected = 0.5 * (1 - one).sum() / (len(one) + 1) + 0.5 * zero.sum() / (len(zero) + 1)
    torch.testing.assert_close(affinity_loss(predicted, target), expected)
    affinity_loss(predicted, target).backward()
    assert torch.equal(predicted.grad != 0, target != 255)


def test_without_pairs_affinity_costs_nothing():
    predicted = torch.rand(1, 4, 4, requires_grad=True)
    loss = affinity_loss(predicted, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0 and not predicted.grad.any()


@pytest.mark.parametrize(
    ("labels", "radius", "ignore"),
    [
        (torch.zeros(2, 2).long(), 1, 255),
        (torch.zeros(1, 2, 2), 1, 255),
        (torch.zeros(1, 2, 2).long(), -1, 255),
        (torch.zeros(1, 2, 2).long(), 1, 1),
    ],
)
def test_what_affinity_targets_refuse(labels, radius, ignore):
    with pytest.raises(ValueError, match=r"labels must be|radius must"):
        affinity_targets(labels, radius, ignore)


@pytest.mark.parametrize(
    ("predicted", "target", "words"),
    [
        (torch.rand(1, 4, 4), torch.zeros(1, 3, 3), "predicted and target"),
        (torch.full((1, 2, 2), 1.5), torch.zeros(1, 2, 2), r"0\.\.1"),
        (torch.rand(1, 2, 2), torch.full((1, 2, 2), 2), "0, 1 or 255"),
    ],
)
def test_what_affinity_loss_refuses(predicted, target, words):
    with pytest.raises(ValueError, match=words):
        affinity_loss(predicted, target)


# Refined labels


def scene(batch: int = 3, classes: int = 5, height: int = 18, width: int = 25) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images, smooth maps, and labels of one, two and no class."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, height, width, generator=draw)
    maps = F.interpolate(torch.rand(batch, classes, 3, 4, generator=draw), (height, width), mode="bilinear")
    labels = torch.zeros(batch, classes)
    labels[0, 3] = labels[1, 1] = labels[1, 4] = 1
    return images, online_maps(maps, labels), labels


def one_by_one(image: Tensor, maps: Tensor, labels: Tensor, low: float, high: float, **settings: object) -> Tensor:
    """What the specification says, image by image and background by background."""
    classes = [0, *(int(one) + 1 for one in labels.nonzero())]
    found = []
    for background in (high, low):
        shares = with_background(maps[labels != 0], background).softmax(dim=0)
        best = local_refine(image[None], shares[None], **settings)[0].argmax(dim=0)
        found.append(torch.tensor(classes)[best].to(torch.uint8))
    return merge_high_low(*found)


@pytest.mark.parametrize("kernel", ["varm", "par", "color"])
def test_refined_labels_equal_those_of_single_images(kernel):
    images, maps, labels = scene()
    settings = {"kernel": kernel, "iterations": 4}
    found = refined_labels(images, maps, labels, 0.35, 0.55, **settings)
    expected = [one_by_one(*one, 0.35, 0.55, **settings) for one in zip(images, maps, labels, strict=True)]
    assert torch.equal(found, torch.stack(expected)) and found.dtype == torch.uint8
    assert [one.unique().tolist() for one in found] == [[0, 4, 255], [0, 2, 5, 255], [0]]


def test_unlabelled_images_may_show_any_class():
    images, maps, labels = scene()
    maps, labels = online_maps(torch.rand(3, 5, 18, 25, generator=torch.Generator().manual_seed(1))), labels * 0
    labels[1] = torch.nan
    found = refined_labels(images, maps, labels, 0.35, 0.55, iterations=1)
    everything = torch.where(labels.isnan(), 1, labels)
    assert torch.equal(found, refined_labels(images, maps, everything, 0.35, 0.55, iterations=1))
    assert len(found[1].unique()) > 3 and not found[0].any()


def test_padding_does_not_leak_into_refined_labels():
    images, maps, labels = scene()
    boxes = torch.tensor([[2, 3, 14, 20], [-4, 0, 99, 21], [0, 0, 0, 0]])
    found = refined_labels(images, maps, labels, 0.35, 0.55, boxes=boxes)
    for number, (top, left, bottom, right) in enumerate(boxes.clamp(min=0).tolist()):
        inside = slice(top, bottom), slice(left, right)
        cut = (
            one_by_one(images[number][:, *inside], maps[number][:, *inside], labels[number], 0.35, 0.55)
            if bottom
            else 0
        )
        expected = torch.full((18, 25), 255, dtype=torch.uint8)
        expected[inside] = cut
        assert torch.equal(found[number], expected)


def test_boxes_that_cover_the_image_change_nothing():
    images, maps, labels = scene()
    boxes = torch.tensor([[0, 0, 18, 25]]).expand(3, -1)
    assert torch.equal(
        refined_labels(images, maps, labels, 0.3, 0.6, boxes=boxes), refined_labels(images, maps, labels, 0.3, 0.6)
    )


def test_coarse_maps_are_resized_to_the_image():
    images, maps, labels = scene()
    coarse = F.interpolate(maps, (5, 6), mode="bilinear")
    fine = F.interpolate(coarse, (18, 25), mode="bilinear")
    assert torch.equal(
        refined_labels(images, coarse, labels, 0.35, 0.55), refined_labels(images, fine, labels, 0.35, 0.55)
    )


def test_refined_labels_recover_an_object_from_a_blob():
    """A bright ellipse that the map covers in part; between the two backgrounds nothing is left to ignore."""
    draw = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(56.0), indexing="ij")
    object_ = ((rows - 20) / 12) ** 2 + ((columns - 26) / 18) ** 2 < 1
    image = (0.3 + 0.35 * object_ + 0.02 * torch.randn(1, 3, 40, 56, generator=draw)).clamp(0, 1)
    blob = (-((rows - 19) ** 2 + (columns - 29) ** 2) / 200).exp()
    found = refined_labels(image, torch.stack([0 * blob, blob])[None], torch.tensor([[0.0, 1]]), 0.35, 0.55)[0]
    assert ((found == 2) & object_).sum() > 0.95 * object_.sum() and not (found == 2)[~object_].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.rand(2, 3, 18, 25)}, "maps and image"),
        ({2: torch.zeros(3, 4)}, "class_labels"),
        ({3: 0.6}, "background scores"),
        ({5: "box"}, "kernel must be"),
        ({7: torch.zeros(3, 2)}, "boxes"),
    ],
)
def test_what_refined_labels_refuse(change, words):
    given = [*scene(), 0.35, 0.55, "varm", 1, None]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(ValueError, match=words):
        refined_labels(*given)


@pytest.mark.gpu
def test_the_gpu_says_the_same():
    given = [value.float() for value in drawn()]
    images, maps, labels = scene()
    boxes = torch.tensor([[2, 3, 14, 20], [0, 0, 18, 21], [0, 0, 18, 25]])
    here = correspondence_loss(*given, shift=0.15)
    torch.testing.assert_close(correspondence_loss(*(value.cuda() for value in given), shift=0.15).cpu(), here)
    found = refined_labels(images.cuda(), maps.cuda(), labels.cuda(), 0.35, 0.55, boxes=boxes)
    expected = refined_labels(images, maps, labels, 0.35, 0.55, boxes=boxes)
    assert (found.cpu() != expected).float().mean() < 0.01
    targets = affinity_targets(expected, 8)
    assert torch.equal(affinity_targets(expected.cuda(), 8).cpu(), targets)
    assert random_coordinates(2, 3, torch.Generator().manual_seed(0), "cuda").is_cuda
