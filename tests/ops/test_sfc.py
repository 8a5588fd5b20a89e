import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cam_pipeline.ops import sfc
from cam_pipeline.ops.sfc import (
    bank_appearances,
    distribution_weights,
    maps_with_background,
    msdw_losses,
    peak_normalized,
    pixel_correlation,
    prototype_cam,
    unit_vectors,
)

VOC = {
    "person": (4155, 1.545), "chair": (1228, 0.907), "dog": (1188, 0.887), "car": (1150, 0.873), "cat": (1005, 0.832),
    "bottle": (714, 0.773), "bird": (705, 0.773), "sofa": (649, 0.780), "diningtable": (613, 0.793),
    "aeroplane": (590, 0.806), "tvmonitor": (567, 0.826), "pottedplant": (522, 0.877), "bicycle": (504, 0.903),
    "train": (503, 0.904), "motorbike": (492, 0.926), "boat": (468, 0.981), "horse": (445, 1.042), "bus": (393, 1.208),
    "sheep": (300, 1.595), "cow": (267, 1.769),
}  # fmt: skip


def of(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("counts", "extra", "expected"),
    [
        ([10, 4, 1], 0, [0.2857, 0.4286, 2.2857]),
        ([10, 4, 1], 5, [0.75, 0.75, 1.5]),
        ([100, 50, 20, 10], 20, [0.6539, 0.6115, 1.0701, 1.6645]),
    ],
)
def test_weights_from_counts(counts, extra, expected):
    torch.testing.assert_close(distribution_weights(of(*counts), extra), of(*expected), atol=5e-5, rtol=0)


def test_the_whole_table_of_voc():
    counts, expected = zip(*VOC.values(), strict=True)
    weights = distribution_weights(torch.tensor(counts), 396)
    torch.testing.assert_close(weights, torch.tensor(expected), atol=5.01e-4, rtol=0)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30), st.integers(0, 1000), st.randoms())
def test_weights_are_one_on_average_and_know_no_order_or_unit(counts, extra, random):
    numbers = of(*counts)
    weights = distribution_weights(numbers, extra)
    shown = numbers > 0
    assert weights.isfinite().all()
    assert (weights[~shown] == 0).all()
    if shown.any():
        assert weights[shown].mean() == pytest.approx(1)
    order = torch.tensor(random.sample(range(len(counts)), len(counts)))
    torch.testing.assert_close(distribution_weights(numbers[order], extra), weights[order])
    torch.testing.assert_close(distribution_weights(3 * numbers, 3 * extra), weights)


def test_equal_counts_weigh_the_same_and_a_class_without_images_nothing():
    assert distribution_weights(of(7, 7, 7), 3).tolist() == [1, 1, 1]
    torch.testing.assert_close(distribution_weights(of(10, 0, 4, 1)), of(0.2857, 0, 0.4286, 2.2857), atol=5e-5, rtol=0)
    assert distribution_weights(of(0, 0)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("counts", "extra"),
    [
        (of(1, -1), 0),
        (of(1, 2), -1),
        (of(1, 2), math.inf),
        (of(1, math.inf), 0),
        (of(math.nan, 1), 0),
        (torch.ones(2, 2), 0),
    ],
)
def test_weights_refuse_nonsense(counts, extra):
    with pytest.raises(ValueError, match="counts"):
        distribution_weights(counts, extra)


def test_appearances_through_the_bank():
    # Slot 0 shows image 0 or 1 (1.5 labels on average), slot 1 image 1 (2), slot 2 is never written.
    labels = of([1, 0, 0], [1, 1, 0])
    assert bank_appearances(labels, steps=3, draws=4) == pytest.approx(12 * 1.75 / 2)
    assert bank_appearances(labels, steps=3, draws=4, blank=True) == pytest.approx(12 * 2 / 3 * 1.75 / 2)
    assert bank_appearances(torch.zeros(2, 3), steps=3, draws=4) == 0


def test_background_is_what_present_classes_leave():
    cam = of([[[4, 2, -1], [0, 0, 1]], [[0, 8, 8], [8, 8, 8]]])  # (1, 2, 2, 3)
    present = of([1, 0])
    maps = maps_with_background(cam, present)
    torch.testing.assert_close(maps[0, 1], of([1, 0.5, 0], [0, 0, 0.25]), atol=1e-4, rtol=0)
    torch.testing.assert_close(maps[0, 0], 1 - maps[0, 1])
    assert (maps[0, 2] == 0).all()
    over_all = maps_with_background(cam, present, "all")
    torch.testing.assert_close(over_all[0, 0], of([0, 0, 0], [0, 0, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(over_all[0, 1:], maps[0, 1:])
    valid = torch.ones(1, 1, 2, 3)
    valid[..., 2] = 0
    assert (maps_with_background(cam, present, valid=valid)[..., 2] == 0).all()


def test_an_absent_class_changes_the_background_only_if_asked():
    cam = torch.rand(2, 3, 2, 3)
    present = torch.tensor([[1, 1, 0], [1, 1, 0]])
    other = cam.clone()
    other[:, 2] = torch.rand(2, 2, 3)
    assert torch.equal(maps_with_background(cam, present), maps_with_background(other, present))
    ours, theirs = maps_with_background(cam, present, "all"), maps_with_background(other, present, "all")
    assert torch.equal(ours[:, 1:], theirs[:, 1:])
    assert not torch.equal(ours[:, 0], theirs[:, 0])


def test_noise_is_not_amplified():
    faint = torch.full((1, 1, 2, 3), 1e-7)
    assert (peak_normalized(faint) == 0).all()


def test_pixels_that_have_nothing_in_common_keep_their_maps():
    cam = torch.rand(2, 4, 2, 3, dtype=torch.float64)
    features = torch.eye(6, dtype=torch.float64).view(1, 6, 2, 3).expand(2, 6, 2, 3)
    torch.testing.assert_close(pixel_correlation(cam, features), cam, atol=1e-4, rtol=0)


def test_pixels_that_are_all_alike_get_the_mean():
    cam = torch.rand(2, 4, 2, 3, dtype=torch.float64)
    features = of(1, 2).view(1, 2, 1, 1).expand(2, 2, 2, 3)
    mean = cam.mean(dim=(2, 3), keepdim=True).expand_as(cam)
    torch.testing.assert_close(pixel_correlation(cam, features), mean, atol=1e-4, rtol=0)


def test_pixel_correlation_by_hand():
    features = of([1, 1, 0], [0, 1, 1]).view(1, 2, 1, 3)
    got = pixel_correlation(of(1, 0, 0).view(1, 1, 1, 3), features).flatten()
    torch.testing.assert_close(got, of(0.4645, 0.2929, 0.1213), atol=1e-4, rtol=0)


def test_pixel_correlation_stays_within_the_map_and_keeps_constants():
    cam, features = torch.rand(2, 3, 4, 5) + 0.5, torch.randn(2, 7, 4, 5)
    got = pixel_correlation(cam, features)
    assert (got <= cam.amax(dim=(2, 3), keepdim=True) + 1e-5).all()
    assert (got >= cam.amin(dim=(2, 3), keepdim=True) - 1e-4).all()
    torch.testing.assert_close(
        pixel_correlation(torch.ones(2, 3, 4, 5), features), torch.ones(2, 3, 4, 5), atol=1e-4, rtol=0
    )
    assert torch.equal(pixel_correlation(cam, features, steps=0), cam)


def test_prototypes_learn_from_their_own_pixels_too():
    """Not from the pixels that are compared with them alone: a class of two seeds, two pixels that only compare."""
    features = torch.rand(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    cam = of([[0.1, 0.1], [1, 1]], [[1, 1], [0, 0]])[None]
    (slope,) = torch.autograd.grad(prototype_cam(cam, features)[0, 1, 1].sum(), features)  # of the second row alone
    assert slope[0, :, 0].any(), "the seeds lie in the first row"


def test_pixel_correlation_in_blocks_is_the_same(monkeypatch):
    cam, features = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 7, 4, 5, dtype=torch.float64)
    features.requires_grad_()
    whole = pixel_correlation(cam, features)
    (slope,) = torch.autograd.grad(whole.square().sum(), features)
    for entries in (20 * 20, 20 * 3):  # image by image; blocks of 3 columns of each
        monkeypatch.setattr(sfc, "ENTRIES_AT_ONCE", entries)
        parts = pixel_correlation(cam, features)
        torch.testing.assert_close(parts, whole)
        torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), features)[0], slope)


def test_prototypes_by_hand():
    features = of([1, 0, 1], [0, 1, 1]).view(1, 2, 1, 3)
    cam = of([0.2, 1, 1], [1, 0, 0]).view(1, 2, 1, 3)  # the class wins pixel 0 alone
    maps = prototype_cam(cam, features)
    torch.testing.assert_close(maps[0, 1, 0], of(1, 0, 0.7071), atol=1e-4, rtol=0)


def test_the_background_must_win_although_it_is_lowered():
    cam = of([0.9, 1.0], [0.29, 0.25]).view(1, 2, 1, 2)  # background first: times .3 it is .27 and .30
    features = of([1, 0], [0, 1]).view(1, 2, 1, 2)
    torch.testing.assert_close(prototype_cam(cam, features)[0, :, 0], of([0, 1], [1, 0]))
    torch.testing.assert_close(prototype_cam(cam, features, background_factor=1.0)[0, 1, 0], of(0, 0))


def dense_prototype_cam(cam, features, background_factor=0.3):
    weighed = cam.clone()
    weighed[:, 0] *= background_factor
    seeds = F.one_hot(weighed.argmax(1), cam.shape[1]).permute(0, 3, 1, 2)
    prototypes = (seeds[:, :, None] * features[:, None]).mean(dim=(3, 4), keepdim=True)
    return F.cosine_similarity(features[:, None], prototypes, dim=2, eps=1e-8).relu()


def test_prototypes_equal_the_dense_formulation():
    cam, features = torch.rand(2, 4, 3, 5, dtype=torch.float64), torch.randn(2, 6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(prototype_cam(cam, features), dense_prototype_cam(cam, features), atol=1e-6, rtol=0)


def test_the_length_of_a_feature_and_the_number_of_seeds_do_not_matter():
    cam, features = torch.rand(2, 4, 3, 5, dtype=torch.float64), torch.randn(2, 6, 3, 5, dtype=torch.float64)
    maps = prototype_cam(cam, features)
    assert (maps >= 0).all() and (maps <= 1 + 1e-12).all()
    mask = torch.ones(2, 1, 3, 5)
    mask[:, :, :, 4] = 0  # the last column is nobody's seed
    longer = features.clone()
    longer[:, :, :, 4] *= 7
    torch.testing.assert_close(prototype_cam(cam, longer, mask), prototype_cam(cam, features, mask))
    twice = prototype_cam(torch.cat([cam, cam], dim=3), torch.cat([features, features], dim=3))
    torch.testing.assert_close(twice[..., :5], maps)


def test_absent_classes_and_padding_win_no_pixel():
    cam, features = torch.rand(2, 3, 2, 3) + 0.1, torch.rand(2, 5, 2, 3)
    mask = torch.ones(2, 3, 2, 3)
    mask[:, 2] = 0
    maps = prototype_cam(cam, features, mask)
    assert (maps[:, 2] == 0).all()
    assert (maps[:, :2].flatten(1).amax(1) > 0).all()
    assert (prototype_cam(cam, features, torch.zeros(2, 1, 2, 3)) == 0).all()


def test_prototypes_have_a_gradient_with_respect_to_features_alone():
    cam = torch.rand(2, 3, 2, 3, requires_grad=True)
    features = torch.rand(2, 5, 2, 3, requires_grad=True)
    slopes = torch.autograd.grad(prototype_cam(cam, features).sum(), [cam, features], allow_unused=True)
    assert slopes[0] is None
    assert slopes[1].abs().sum() > 0


def one_pixel(*values):
    return of(*values).view(1, -1, 1, 1)


def test_losses_by_hand():
    zeros = one_pixel(0, 0, 0)
    prototype, scale = msdw_losses(one_pixel(0.1, 0.2, 0.3), zeros, one_pixel(0.9, 0.2, 0.3), zeros, of(0.5, 1.5))
    assert float(prototype) == pytest.approx(0.34667, abs=1e-5)
    assert float(scale) == pytest.approx(0.22)


def test_losses_are_zero_for_equal_maps_and_symmetric():
    first, second, small, other = (torch.rand(2, 4, *grid) for grid in ((4, 6), (4, 6), (2, 3), (2, 3)))
    weights = torch.rand(3)
    assert [float(loss) for loss in msdw_losses(first, first, small, small, weights)] == [0, 0]
    assert msdw_losses(first, second, small, other, weights) == msdw_losses(second, first, other, small, weights)


def test_an_absent_class_costs_nothing():
    maps = [torch.rand(2, 4, *grid) for grid in ((4, 6), (4, 6), (2, 3), (2, 3))]
    for cam in maps:
        cam[:, 2] = 0
    light, heavy = (msdw_losses(*maps, torch.tensor([1.0, weight, 1.0])) for weight in (0.0, 9.0))
    assert light == heavy


@pytest.mark.parametrize(
    "call",
    [
        lambda: maps_with_background(torch.rand(2, 3, 2, 3), torch.ones(2, 2)),
        lambda: maps_with_background(torch.rand(2, 3, 2, 3), torch.ones(2, 3), "some"),
        lambda: pixel_correlation(torch.rand(2, 3, 2, 3), torch.rand(2, 3, 3, 2)),
        lambda: pixel_correlation(torch.rand(2, 3, 2, 3), torch.rand(2, 3, 2, 3), steps=-1),
        lambda: pixel_correlation(torch.rand(2, 3, 0, 3), torch.rand(2, 3, 0, 3)),
        lambda: pixel_correlation(torch.rand(0, 3, 2, 3), torch.rand(0, 3, 2, 3)),
        lambda: prototype_cam(torch.rand(2, 3, 2, 3), torch.rand(1, 3, 2, 3)),
        lambda: prototype_cam(torch.rand(2, 0, 2, 3), torch.rand(2, 3, 2, 3)),
        lambda: prototype_cam(torch.rand(2, 3, 2, 3), torch.rand(2, 3, 2, 3), torch.ones(2, 2, 2, 3)),
        lambda: msdw_losses(*[torch.rand(1, 3, 2, 3)] * 4, torch.ones(3)),
        lambda: msdw_losses(*[torch.rand(1, 3, 2, 3)] * 3, torch.rand(1, 3, 3, 2), torch.ones(2)),
        lambda: msdw_losses(*[torch.rand(1, 1, 2, 3)] * 4, torch.ones(0)),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match=r"must|do not fit"):
        call()


def test_correlation_of_two_precisions_has_the_wider_one():
    cam, features = torch.rand(2, 3, 2, 3), torch.rand(2, 5, 2, 3).double()
    expected = pixel_correlation(cam.double(), features)
    assert torch.equal(pixel_correlation(cam, features), expected)
    torch.testing.assert_close(pixel_correlation(cam.double(), features.float()), expected)


def test_half_precision_is_raised_and_arguments_stay():
    cam, features = torch.rand(2, 3, 2, 3).bfloat16(), torch.rand(2, 5, 2, 3).bfloat16()
    before = cam.clone(), features.clone()
    outs = [
        maps_with_background(cam[:, 1:], torch.ones(2, 2)),
        pixel_correlation(cam, features),
        unit_vectors(features),
    ]
    outs += [prototype_cam(cam, features), *msdw_losses(cam, cam, cam, cam, torch.ones(2))]
    assert {out.dtype for out in outs} == {torch.float32}
    assert torch.equal(cam, before[0]) and torch.equal(features, before[1])
