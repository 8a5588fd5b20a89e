"""P1 to P13 of the specification, with its numbers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cam_pipeline.ops.dfr import (
    EPS,
    feature_consistency_loss,
    partial_cross_entropy,
    regularized,
    regularized_loss,
)
from cam_pipeline.ops.pairs import Kernel, dense_energy, ends, offsets_within
from cam_pipeline.ops.self_regulation import nearest

BACKENDS = ["loop", "quad", "dense"]
PAIR = torch.tensor([[0.9, 0.2], [0.1, 0.8]], dtype=torch.float64)[None]
"""Two pixels, (1, 2, 2)."""
HALF = torch.tensor([[0, 0.5], [0.5, 0]], dtype=torch.float64)
THREE = torch.tensor([[0.9, 0.6, 0.2], [0.1, 0.4, 0.8]], dtype=torch.float64)[None]
WEIGHTS = torch.tensor([[0, 0.8, 0.1], [0.8, 0, 0.5], [0.1, 0.5, 0]], dtype=torch.float64)


def near(value: float | Tensor, tolerance: float = 1e-5) -> object:
    return pytest.approx(value, abs=tolerance)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(1, classes, h, w) float64."""
    return torch.nn.functional.one_hot(labels, classes).permute(2, 0, 1)[None].double()


def grey(height: int, width: int) -> Tensor:
    return torch.zeros(1, 3, height, width, dtype=torch.float64)


def random_maps(height: int = 4, width: int = 5, classes: int = 3, batch: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = (height, width)
    return {
        "probabilities": torch.randn(batch, classes, *shape, generator=draw, dtype=torch.float64).softmax(dim=1),
        "image": 0.1 * torch.randn(batch, 3, *shape, generator=draw, dtype=torch.float64),
        "features": torch.randn(batch, 6, *shape, generator=draw, dtype=torch.float64),
        "roi": (torch.rand(batch, 1, *shape, generator=draw) < 0.8).double(),
    }


# P1, P2, P10: explicit weights


def test_the_energy_of_two_pixels():
    energy = dense_energy(PAIR, HALF)
    assert energy.item() == near(0.74)
    products = PAIR[0].T @ PAIR[0]
    concave = -(HALF * products).sum()
    assert concave.item() == near(-0.26)
    assert (energy - concave).item() == near(1.0)
    with_diagonal = dense_energy(PAIR, HALF + torch.eye(2, dtype=torch.float64))
    assert (with_diagonal - energy).item() == near(0.5)


def test_both_spellings_have_the_same_gradient_in_logits():
    logits = PAIR[0].log().requires_grad_()  # their softmax is the pair
    probabilities = logits.softmax(dim=0)
    probabilities.retain_grad()
    dense_energy(probabilities[None], HALF).backward()
    expected = torch.tensor([[-0.2, -0.9], [-0.8, -0.1]], dtype=torch.float64)
    torch.testing.assert_close(probabilities.grad, expected)
    in_logits = torch.tensor([[0.054, -0.128], [-0.054, 0.128]], dtype=torch.float64)
    torch.testing.assert_close(logits.grad, in_logits)
    logits.grad = None
    other = logits.softmax(dim=0)
    other.retain_grad()
    sum(one @ HALF @ (1 - one) for one in other).backward()
    expected = torch.tensor([[0.3, -0.4], [-0.3, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(other.grad, expected)
    torch.testing.assert_close(logits.grad, in_logits)


def test_three_pixels_with_explicit_weights():
    energy = dense_energy(THREE, WEIGHTS)
    assert [energy.item(), energy.item() / 3, (energy / WEIGHTS.sum()).item()] == near([1.38, 0.46, 0.492857])
    inside = torch.tensor([1, 1, 0], dtype=torch.float64)
    assert dense_energy(THREE, WEIGHTS * inside * inside[:, None]).item() == near(0.672)
    degree = WEIGHTS.sum(dim=1)
    cut = sum((one @ WEIGHTS @ (1 - one)) / (degree @ one) for one in THREE[0])
    assert cut.item() == near(1.036536)


def test_a_gate_on_the_first_pixel_of_pairs():
    probabilities, gate = THREE.clone().requires_grad_(), torch.tensor([0, 1, 1], dtype=torch.float64)
    energy = dense_energy(probabilities, WEIGHTS, gate)
    energy.backward()
    assert [energy.item(), energy.item() / 2] == near([0.97, 0.485])
    expected = torch.tensor([[-0.5, -0.92, -0.69], [-0.4, -0.88, -0.41]], dtype=torch.float64)
    torch.testing.assert_close(probabilities.grad[0], expected)


def test_the_gated_energy_of_rrm_has_another_gradient_than_its_code():
    """A negative control: -2 G W p is not the derivative of -p G W p."""
    weights, gate = WEIGHTS + torch.eye(3, dtype=torch.float64), torch.tensor([0.1, 1, 0.2], dtype=torch.float64)
    probabilities = THREE[0].clone().requires_grad_()
    value = -(gate * (probabilities * (probabilities @ weights)).sum(dim=0)).sum()
    value.backward()
    assert value.item() == near(-1.5202)
    assert probabilities.grad[0].tolist() == near([-0.714, -2.112, -0.467])
    assert (-2 * gate * (THREE[0] @ weights))[0].tolist() == near([-0.28, -2.84, -0.236])


# P3 to P6: windows and kernels


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_small_grid(backend):
    def energy(probabilities: Tensor) -> float:
        found = regularized(probabilities, grey(2, 3), radius=1, backend=backend)
        assert found.mass.item() == near(21.587735)
        assert found.alike.item() == near(1)
        return float(found.loss) * 6

    uniform = torch.full((1, 21, 2, 3), 1 / 21, dtype=torch.float64)
    assert energy(uniform) == near(20.559748)
    assert energy(one_hot(torch.full((2, 3), 4), 21)) == near(0)
    assert energy(one_hot(torch.arange(6).reshape(2, 3), 21)) == near(21.587735)
    drawn = random_maps(2, 3, 21)["probabilities"]
    assert energy(drawn) == near(energy(drawn.flip(1)))
    assert 0 <= energy(drawn) <= 21.587735


def test_values_of_the_kernel():
    def value(difference: float, sigma_xy: float, sigma_rgb: float) -> float:
        image = grey(4, 5)
        image[0, 0, 3, 4] = difference
        inside = torch.ones(1, 1, 4, 5, dtype=torch.float64)
        return Kernel(image, None, 0.0, sigma_xy, sigma_rgb, inside)(3, 4).item()

    assert value(10, 6, 15) == near(0.565840)
    assert value(10, 100, 15) == near(0.799737)
    assert value(10 / 58.395, 6, 0.1) == near(0.163081)


@pytest.mark.parametrize(("sigma", "expected"), [(0.5, 0.449329), (1.0, 0.818731)])
def test_values_of_the_deep_kernel(sigma, expected):
    features = torch.tensor([[1, 0.8], [0, 0.6]], dtype=torch.float64).view(1, 2, 1, 2)
    inside = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    image = grey(1, 2)
    static = Kernel(image, None, 0.0, 1e9, 0.1, inside)(0, 1).item()
    kernel = Kernel(image, features, 1.0, 1e9, 0.1, inside, "gauss", sigma)
    assert kernel(0, 1).item() == near(static * expected)


@pytest.mark.parametrize(("beta", "expected"), [(0.0, 0.70), (0.5, 0.42), (1.0, 0.14)])
def test_the_blend_of_both_kernels(beta, expected):
    """k = 0.7 by the places, a = 0.2 by the features."""
    features = torch.tensor([0, math.log(5)], dtype=torch.float64).view(1, 1, 1, 2)
    sigma_xy = (-1 / (2 * math.log(0.7))) ** 0.5
    kernel = Kernel(grey(1, 2), features, beta, sigma_xy, 0.1, torch.ones(1, 1, 1, 2, dtype=torch.float64))
    assert kernel(0, 1).item() == near(expected)


ROW = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64).view(1, 2, 1, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_tell_objects_of_one_colour_apart(backend):
    """The row A A B B."""

    def energy(probabilities: Tensor, beta: float) -> float:
        chosen = {"radius": 1, "feature_kernel": "gauss", "backend": backend}
        return 4 * regularized_loss(probabilities, grey(1, 4), ROW, beta=beta, **chosen).item()

    inside = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    weights = Kernel(grey(1, 4), ROW, 1.0, 6.0, 0.1, inside, "gauss")(0, 1)
    assert weights[0, 0].tolist() == near([0.986207, 0.018063, 0.986207])
    assert Kernel(grey(1, 4), None, 0.0, 6.0, 0.1, inside)(0, 1)[0, 0].tolist() == near([0.986207] * 3)
    correct, collapsed = ROW, one_hot(torch.zeros(1, 4, dtype=torch.long), 2)
    assert energy(correct, 0.0) == near(1.972414)
    assert energy(correct, 1.0) == near(0.036126)
    assert energy(correct, 1.0) / energy(correct, 0.0) == near(math.exp(-4))
    assert energy(collapsed, 0.0) == energy(collapsed, 1.0) == near(0)


def split_at(column: float, sharp: bool = True) -> Tensor:
    """(1, 2, 16, 16): two classes with a vertical border before this column."""
    place = torch.arange(16, dtype=torch.float64) + 0.5 - column
    right = (place > 0).double() if sharp else place.sigmoid()
    return torch.stack([1 - right, right]).view(1, 2, 1, 16).expand(1, 2, 16, 16).contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_pull_the_border_to_their_edge(backend):
    chosen = {"radius": 2, "feature_kernel": "gauss", "backend": backend, "features": split_at(8)}

    def energy(probabilities: Tensor, beta: float) -> float:
        return regularized_loss(probabilities, grey(16, 16), beta=beta, **chosen).item()

    assert [energy(split_at(b), 0.0) for b in range(4, 13)] == near([1.620589] * 9)
    dynamic = [energy(split_at(b), 1.0) for b in range(6, 11)]
    assert dynamic == near([1.620589, 1.097703, 0.029682, 1.097703, 1.620589])
    uniform = torch.full((1, 2, 16, 16), 0.5, dtype=torch.float64)
    assert energy(uniform, 0.0) == near(9.645564)
    assert energy(uniform, 1.0) == near(8.850110)


@pytest.mark.parametrize(
    ("place", "static", "dynamic"), [(6.0, 0.01604, -0.27328), (8.0, 0.0, 0.0), (10.0, -0.01604, 0.27328)]
)
def test_where_a_soft_border_goes(place, static, dynamic):
    for beta, expected in ((0.0, static), (1.0, dynamic)):
        column = torch.tensor(place, dtype=torch.float64, requires_grad=True)
        right = (torch.arange(16, dtype=torch.float64) + 0.5 - column).sigmoid()
        probabilities = torch.stack([1 - right, right]).view(1, 2, 1, 16).expand(1, 2, 16, 16)
        options = {"radius": 2, "features": split_at(8), "feature_kernel": "gauss", "beta": beta, "backend": "quad"}
        regularized_loss(probabilities, grey(16, 16), **options).backward()
        assert column.grad.item() == near(expected)


# P7: partial cross entropy


def test_partial_cross_entropy():
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [5, 0, 0]]).t().reshape(1, 3, 2, 2).requires_grad_()
    labels = torch.tensor([[[0, 1], [255, 2]]], dtype=torch.uint8)
    loss = partial_cross_entropy(logits, labels)
    assert loss.item() == near(1.934792)
    loss.backward()
    assert not logits.grad[0, :, 1, 0].any() and logits.grad[0, :, 1, 1].any()
    assert partial_cross_entropy(logits, labels, "bg_fg").item() == near(1.510980)
    assert 2 * partial_cross_entropy(logits, labels, "bg_fg").item() == near(3.021960)


@pytest.mark.parametrize("mode", ["mean", "bg_fg"])
def test_nothing_is_learned_without_a_label(mode):
    logits = torch.randn(2, 3, 4, 5).requires_grad_()
    loss = partial_cross_entropy(logits, torch.full((2, 4, 5), 255), mode)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be 'mean' or 'bg_fg', not 'sum'"):
        partial_cross_entropy(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), "sum")


# P8: consistent features

ROWS = torch.tensor([[0, 1], [0.2, 0.8], [1, 0], [0.9, 0.3]], dtype=torch.float64).t().reshape(1, 2, 1, 4)
OF_ROWS = torch.tensor([[[1, 1, 0, 255]]])


@pytest.mark.parametrize(("radius", "expected"), [(1, 0.348297), (2, 0.313812), (9, 0.313812)])
def test_consistency_of_features(radius, expected):
    features = ROWS.clone().requires_grad_()
    loss = feature_consistency_loss(features, OF_ROWS, radius)
    loss.backward()
    assert loss.item() == near(expected)
    assert not features.grad[..., 3].any() and features.grad[..., :3].any()


def test_the_parts_of_consistency():
    """Means of pairs alone: both of class 1, and one of them beside background."""
    same = feature_consistency_loss(ROWS[..., :2], torch.ones(1, 1, 2, dtype=torch.long), 1)
    assert 4 * same.item() == near(0.199988, 1e-5)
    assert feature_consistency_loss(ROWS[..., :2], torch.zeros(1, 1, 2, dtype=torch.long), 1).item() == near(
        same.item()
    )
    apart = feature_consistency_loss(ROWS[..., 1:3], torch.tensor([[[1, 0]]]), 1)
    assert 2 * apart.item() == near(0.596600)


def test_a_map_without_pairs_is_consistent():
    features = torch.randn(2, 3, 1, 1).requires_grad_()
    loss = feature_consistency_loss(features, torch.zeros(2, 1, 1, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and features.grad is not None


def test_the_gradient_of_consistency():
    features = random_maps()["features"].requires_grad_()
    labels = torch.randint(0, 3, (1, 4, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 1] = 255
    assert torch.autograd.gradcheck(lambda given: feature_consistency_loss(given, labels, 2), features)


# P9: the backends are one


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("radius", "expected"), [(1, 0.606336), (4, 2.382546), (9, 2.382546)])
def test_drawn_maps(backend, radius, expected):
    draw = np.random.default_rng(0)
    image, probabilities = draw.random((3, 4, 5)), draw.random((3, 4, 5))
    probabilities /= probabilities.sum(axis=0)
    given = torch.from_numpy(probabilities)[None], torch.from_numpy(image)[None]
    loss = regularized_loss(*given, radius=radius, sigma_rgb=1 / 3, backend=backend)
    assert loss.item() == near(expected)


@pytest.mark.parametrize("normalize", ["pixel", "mass"])
@pytest.mark.parametrize("feature_kernel", ["affinity", "gauss"])
@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_backends_agree(normalize, feature_kernel, beta):
    maps = random_maps(batch=2)
    losses, gradients = [], []
    for backend in BACKENDS:
        probabilities = maps["probabilities"].clone().requires_grad_()
        given = maps | {"probabilities": probabilities}
        chosen = {"beta": beta, "normalize": normalize, "feature_kernel": feature_kernel, "backend": backend}
        loss = regularized_loss(**given, radius=2, **chosen)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(probabilities.grad)
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["loop", "quad"])
def test_the_gradient_of_the_regularised_loss(backend):
    maps = random_maps(3, 4)
    probabilities = maps.pop("probabilities").requires_grad_()
    assert torch.autograd.gradcheck(
        lambda given: regularized_loss(given, **maps, radius=2, beta=0.5, backend=backend), probabilities
    )


def test_the_gradient_of_features_that_learn():
    maps = random_maps(3, 4)
    features = maps.pop("features").requires_grad_()
    for kernel in ("affinity", "gauss"):
        chosen = {"beta": 0.5, "detach_features": False, "backend": "auto", "feature_kernel": kernel}
        assert torch.autograd.gradcheck(
            lambda given, chosen=chosen: regularized_loss(**maps, features=given, radius=2, **chosen), features
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_region_of_interest_of_three_pixels(backend):
    """P10's ROI, with weights made by place: pixels outside have no pairs and do not count."""
    row = THREE.view(1, 2, 1, 3)
    roi = torch.tensor([1, 1, 0], dtype=torch.float64).view(1, 1, 1, 3)
    found = regularized_loss(row, grey(1, 3), roi=roi, radius=2, backend=backend)
    alone = regularized_loss(row[..., :2], grey(1, 2), radius=2, backend=backend)
    assert found.item() == near(alone.item(), 1e-12)
    nothing = row.clone().requires_grad_()
    loss = regularized_loss(nothing, grey(1, 3), roi=torch.zeros_like(roi), backend=backend)
    loss.backward()
    assert loss.item() == 0 and not nothing.grad.any()


# P11: where gradients go


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_reaches_image_and_features(backend):
    maps = {name: value.requires_grad_() for name, value in random_maps().items() if name != "roi"}
    regularized_loss(**maps, beta=1.0, backend=backend).backward()
    assert maps["features"].grad is None and maps["image"].grad is None
    assert maps["probabilities"].grad.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_count_as_far_as_beta_says(backend):
    maps = random_maps()
    other = maps | {"features": maps["features"] + torch.rand(1, 6, 4, 5, dtype=torch.float64)}

    def loss(given: dict[str, Tensor], beta: float) -> float:
        return regularized_loss(**given, beta=beta, backend=backend).item()

    assert loss(maps, 0.0) == loss(other, 0.0)
    assert abs(loss(maps, 1.0) - loss(other, 1.0)) > 1e-4


# P12: symmetry


def test_a_flip_changes_nothing():
    maps = random_maps()
    flipped = {name: value.flip(-1) for name, value in maps.items()}
    assert regularized_loss(**maps, beta=0.5).item() == near(regularized_loss(**flipped, beta=0.5).item(), 1e-12)
    labels = torch.randint(0, 3, (1, 4, 5))
    loss = feature_consistency_loss(maps["features"], labels, roi=maps["roi"])
    other = feature_consistency_loss(flipped["features"], labels.flip(-1), roi=flipped["roi"])
    assert loss.item() == near(other.item(), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_outside_the_region_changes_nothing(backend):
    maps = random_maps()
    padded = {name: torch.nn.functional.pad(value, (2, 0, 0, 3), value=0.3) for name, value in maps.items()}
    padded["roi"] = torch.nn.functional.pad(maps["roi"], (2, 0, 0, 3))
    chosen = {"beta": 0.5, "backend": backend}
    assert regularized_loss(**maps, **chosen).item() == near(regularized_loss(**padded, **chosen).item(), 1e-12)
    labels = torch.randint(0, 3, (1, 4, 5))
    loss = feature_consistency_loss(maps["features"], labels, roi=maps["roi"])
    around = torch.nn.functional.pad(labels, (2, 0, 0, 3), value=1)
    assert feature_consistency_loss(padded["features"], around, roi=padded["roi"]).item() == near(loss.item(), 1e-12)


# P13: pairs


@pytest.mark.parametrize(
    ("radius", "half", "pairs"), [(2, 12, 385_572), (3, 24, 765_072), (4, 40, 1_265_040), (5, 60, 1_882_500)]
)
def test_the_number_of_pairs(radius, half, pairs):
    offsets = offsets_within(radius, 128, 128)
    assert len(offsets) == half
    assert 2 * sum(ends(torch.zeros(128, 128), *offset)[0].numel() for offset in offsets) == pairs


@pytest.mark.parametrize(("radius", "sigma", "mass"), [(2, 6, 22.7), (5, 6, 92.0), (5, 3, 48.4), (5, 50, 119.5)])
def test_the_mass_of_a_window(radius, sigma, mass):
    """What one pixel gets from all others, far from the edge."""
    weights = [2 * math.exp(-(dy * dy + dx * dx) / (2 * sigma**2)) for dy, dx in offsets_within(radius, 64, 64)]
    assert sum(weights) == pytest.approx(mass, abs=0.05)


# Precision, labels and mistakes


@pytest.mark.parametrize("backend", ["loop", "quad"])
def test_autocast_changes_nothing(backend):
    maps = {name: value.float() for name, value in random_maps().items()}
    labels = nearest(torch.randint(0, 3, (1, 8, 10)), (4, 5))
    plain = regularized_loss(**maps, beta=0.5, backend=backend)
    consistent = feature_consistency_loss(maps["features"], labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert regularized_loss(**maps, beta=0.5, backend=backend) == plain
        assert feature_consistency_loss(maps["features"], labels) == consistent
    half = {name: value.to(torch.bfloat16) for name, value in maps.items() if name != "roi"}
    assert regularized_loss(**half, beta=0.5, backend=backend).dtype == torch.float32


def test_features_that_are_equal_have_finite_gradients():
    features = torch.zeros(1, 4, 3, 3, requires_grad=True)
    loss = feature_consistency_loss(features, torch.arange(9).reshape(1, 3, 3), 2)
    loss.backward()
    assert loss.item() == near(-0.5 * math.log(EPS), 1e-2) and features.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": 0.5, "features": None}, "beta = 0.5 needs features"),
        ({"beta": 1.5}, "beta must be in 0..1"),
        ({"radius": 0}, "radius must be 1 or more"),
        ({"sigma_rgb": 0.0}, "sigma_rgb must be above 0"),
        ({"backend": "unfold"}, "backend must be one of auto, loop, quad, dense, not 'unfold'"),
        ({"normalize": "images"}, "normalize must be one of pixel, mass"),
        ({"feature_kernel": "cosine"}, "feature_kernel must be one of affinity, gauss"),
        ({"image": torch.zeros(1, 3, 8, 10)}, "image must be"),
        ({"probabilities": torch.full((1, 3, 4, 5), 2.0)}, "probabilities must be in 0..1"),
        ({"probabilities": torch.zeros(3, 4, 5)}, "probabilities must be"),
        ({"features": torch.zeros(1, 6, 2, 5)}, "features must be"),
        ({"roi": torch.full((1, 1, 4, 5), 0.5)}, "roi must be"),
        ({"roi": torch.ones(1, 4, 5)}, "roi must be"),
        ({"backend": "quad", "detach_features": False}, "'quad' takes the weights for constant"),
    ],
)
def test_what_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        regularized_loss(**(random_maps() | change))


def test_the_oracle_is_for_small_maps():
    with pytest.raises(ValueError, match="at most 4096 pixels, not 65 x 64"):
        regularized_loss(torch.full((1, 2, 65, 64), 0.5), torch.zeros(1, 3, 65, 64), backend="dense")


@pytest.mark.parametrize(
    ("features", "labels", "radius", "words"),
    [
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 4, 3, dtype=torch.long), 3, "features and labels must be"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 4), 3, "labels must be integers"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 4, dtype=torch.long), 0, "radius must be 1 or more"),
    ],
)
def test_what_consistency_refuses(features, labels, radius, words):
    with pytest.raises(ValueError, match=words):
        feature_consistency_loss(features, labels, radius)


def test_no_argument_is_changed():
    maps = random_maps()
    before = {name: value.clone() for name, value in maps.items()}
    regularized_loss(**maps, beta=0.5, backend="quad", feature_kernel="gauss")
    regularized_loss(**maps, beta=0.5)
    feature_consistency_loss(maps["features"], torch.zeros(1, 4, 5, dtype=torch.long))
    assert all(torch.equal(value, before[name]) for name, value in maps.items())


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["loop", "quad"])
def test_the_gpu_says_the_same(backend):
    maps = {name: value.float() for name, value in random_maps(24, 20, batch=2).items()}
    labels = torch.randint(0, 3, (2, 24, 20))
    found = []
    for device in ("cpu", "cuda"):
        given = {name: value.to(device).requires_grad_(name != "roi") for name, value in maps.items()}
        loss = regularized_loss(**given, beta=0.5, backend=backend)
        loss = loss + feature_consistency_loss(given["features"], labels.to(device), roi=given["roi"])
        loss.backward()
        found.append([loss.cpu(), given["probabilities"].grad.cpu(), given["features"].grad.cpu()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
