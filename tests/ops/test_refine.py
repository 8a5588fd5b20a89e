import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cam_pipeline.ops.refine import local_refine, neighbor_weights

KERNELS = ("varm", "par", "color")
ROW_SUM = {"varm": 0.99, "par": 1.01, "color": 1.0}
DILATIONS = (1, 2, 4, 8, 12, 24)

# The grey image of the worked numbers, three equal channels.
GREY = tensor([[0, 0.1, 0.2], [0.5, 0.5, 0.5], [1, 0.9, 0.8]], dtype=torch.float64).expand(1, 3, 3, 3)
IMPULSE = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
IMPULSE[..., 1, 1] = 1


def gathered(maps, dilations=DILATIONS):
    """All neighbours (B, C, n, H, W) of (B, C, H, W), indices clamped to the image."""
    height, width = maps.shape[2:]
    planes = []
    for d in dilations:
        for dy, dx in [(-d, -d), (-d, 0), (-d, d), (0, -d), (0, d), (d, -d), (d, 0), (d, d)]:
            rows = (torch.arange(height) + dy).clamp(0, height - 1)
            columns = (torch.arange(width) + dx).clamp(0, width - 1)
            planes.append(maps[:, :, rows][..., columns])
    return torch.stack(planes, dim=2)


def reference_weights(image, kernel, dilations=DILATIONS, sigma_floor=0.0, factor=None):
    """The weights as the specification words them; `factor` replaces the kernel's contrast."""
    stack = gathered(image, dilations)
    sigma = stack.std(dim=2, keepdim=True).clamp(min=sigma_floor)
    factor = factor or (1 / 0.3 if kernel == "par" else 4)
    color = (-(((stack - image.unsqueeze(2)).abs() / (sigma + 1e-8) * factor) ** 2).mean(dim=1)).softmax(dim=1)
    if kernel == "par":
        ring = [2**0.5, 1, 2**0.5, 1, 1, 2**0.5, 1, 2**0.5]
        distance = tensor([d * r for d in dilations for r in ring], dtype=image.dtype)
        position = (-((distance / (distance.std() + 1e-8) / 0.3) ** 2)).softmax(dim=0)
        return color + 0.01 * position.view(1, -1, 1, 1)
    if kernel == "varm":
        below = torch.cat([stack[..., 1:, :], stack[..., -1:, :]], dim=-2)
        right = torch.cat([stack[..., 1:], stack[..., -1:]], dim=-1)
        variation = ((stack - below) ** 2 + (stack - right) ** 2).mean(dim=1)
        return color - 0.01 * variation.softmax(dim=1)
    return color


def reference_apply(weights, scores, iterations=10, dilations=DILATIONS):
    for _ in range(iterations):
        scores = (gathered(scores, dilations) * weights.unsqueeze(1)).sum(dim=2)
    return scores


def random_image(*size, batch=2, seed=0, dtype=torch.float64):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_scores(*size, batch=2, channels=4, seed=1, dtype=torch.float64):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def step_edge():
    image = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    image[..., 32:] = 1
    return image, 1 - image[:, :1]


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, tensor(expected, dtype=found.dtype), atol=atol, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from(KERNELS),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dilations=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    sigma_floor=st.sampled_from([0.0, 2 / 255]),
    seed=st.integers(0, 9),
)
def test_equals_the_gathering_reference(kernel, size, dilations, sigma_floor, seed):
    image, scores = random_image(*size, seed=seed), random_scores(*size, seed=seed)
    weights = reference_weights(image, kernel, dilations, sigma_floor)
    torch.testing.assert_close(neighbor_weights(image, kernel, dilations, sigma_floor), weights, atol=1e-12, rtol=0)
    found = local_refine(image, scores, kernel, 3, dilations, sigma_floor)
    torch.testing.assert_close(found, reference_apply(weights, scores, 3, dilations), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_the_gathering_reference_with_the_defaults(kernel):
    for dtype, tolerance in [(torch.float64, 1e-13), (torch.float32, 1e-5)]:
        image, scores = random_image(30, 41, dtype=dtype), random_scores(30, 41, dtype=dtype)
        expected = reference_apply(reference_weights(image, kernel), scores)
        torch.testing.assert_close(local_refine(image, scores, kernel), expected, atol=tolerance, rtol=0)
    varm = local_refine(image, scores, "varm")
    assert torch.equal(local_refine(image, scores), varm)


def test_order_of_the_neighbours():
    """Only the neighbour of the centre's own colour counts: read its index off the weights."""
    compass = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    for number, (dy, dx) in enumerate([(d * y, d * x) for d in (1, 2) for y, x in compass]):
        image = torch.ones(1, 3, 5, 6, dtype=torch.float64)
        image[..., 2, 3] = image[..., 2 + dy, 3 + dx] = 0
        assert neighbor_weights(image, "color", (1, 2))[0, :, 2, 3].argmax() == number


@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_of_weights(kernel):
    image = random_image(7, 11)
    sums = neighbor_weights(image, kernel).sum(dim=1)
    torch.testing.assert_close(sums, torch.full_like(sums, ROW_SUM[kernel]), atol=1e-12, rtol=0)
    ones = torch.ones(2, 1, 7, 11, dtype=torch.float64)
    gain = {"par": 1.104622, "varm": 0.904382, "color": 1.0}[kernel]
    refined = local_refine(image, ones, kernel)
    torch.testing.assert_close(refined, gain * ones, atol=1e-6, rtol=0)
    shares = random_scores(7, 11).softmax(dim=1)
    torch.testing.assert_close(local_refine(image, shares, kernel).sum(dim=1, keepdim=True), refined)


@pytest.mark.parametrize("kernel", KERNELS)
def test_renormalize_makes_the_sums_one(kernel):
    image, scores = random_image(7, 11), random_scores(7, 11)
    plain = neighbor_weights(image, kernel)
    torch.testing.assert_close(neighbor_weights(image, kernel, renormalize=True), plain / ROW_SUM[kernel])
    found = local_refine(image, scores, kernel, 4, renormalize=True)
    torch.testing.assert_close(found, local_refine(image, scores, kernel, 4) / ROW_SUM[kernel] ** 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.0])
def test_constant_image(value, dtype):
    image = torch.full((2, 3, 4, 5), value, dtype=dtype)
    tolerance = 1e-7
    color = neighbor_weights(image, "color")
    torch.testing.assert_close(color, torch.full_like(color, 1 / 48), atol=tolerance, rtol=0)
    varm = neighbor_weights(image, "varm")
    torch.testing.assert_close(varm, torch.full_like(varm, 0.020625), atol=tolerance, rtol=0)
    par = neighbor_weights(image, "par")
    close(par.min(), 0.0208333, 1e-7)
    close(par.max(), 0.0215979, 1e-7)
    # straight and diagonal neighbours at distance 1, 2 and 4
    position = (par[1, :24, 2, 3] - 1 / 48).view(3, 8) * 100
    close(position[:, 1], [0.076453, 0.054413, 0.013961], 1e-5)
    close(position[:, 7], [0.068260, 0.034576, 0.002276], 1e-5)


def test_impulse_on_a_constant_image():
    image = torch.full((1, 3, 5, 5), 0.5, dtype=torch.float64)
    impulse = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    impulse[..., 2, 2] = 1
    once = local_refine(image, impulse, "color", 1, (1,))[0, 0]
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[1:4, 1:4] = 0.125
    expected[2, 2] = 0
    torch.testing.assert_close(once, expected)
    twice = local_refine(image, impulse, "color", 2, (1,))[0, 0]
    close(twice[2, 2], 0.125)
    close(twice[1], [0.03125, 0.03125, 0.0625, 0.03125, 0.03125])
    close(twice[0, 0], 0.015625)


def test_grey_image_par():
    close(gathered(GREY, (1,)).std(dim=2)[0, 0, 1, 1], 0.3779645, 5e-8)
    weights = neighbor_weights(GREY, "par", (1,))
    close(weights[0, :, 1, 1], [0, 0.002502, 0.000456, 0.502043, 0.502043, 0, 0.002502, 0.000456], 1e-6)
    once = local_refine(GREY, IMPULSE, "par", 1, (1,))[0, 0]
    close(once, [[0, 0.0025, 0], [0.502459, 0, 0.502466], [0, 0.0025, 0]], 5e-6)
    twice = local_refine(GREY, IMPULSE, "par", 2, (1,))[0, 0]
    close(twice[1], [0.252466, 0.504528, 0.252472], 1e-6)
    close(twice[0, [0, 2]], [0.001488, 0.001317], 1e-6)
    far = local_refine(GREY, IMPULSE, "par")[0, 0]
    close(far[1], [0.079151, 0.079218, 0.079242], 1e-6)


def test_grey_image_color_term_of_par():
    """The worked numbers called colour-only have PAR's contrast."""
    weights = neighbor_weights(GREY, "par", (1,))
    position = weights - reference_weights(GREY, "color", (1,), factor=1 / 0.3)
    torch.testing.assert_close(position, position[..., :1, :1].expand_as(position))
    twice = reference_apply(weights - position, IMPULSE, 2, (1,))[0, 0]
    close(twice, [[0, 0, 0], [0.249959, 0.499505, 0.249966], [0, 0, 0]], 1e-6)


def test_grey_image_varm():
    weights = neighbor_weights(GREY, "varm", (1,))
    expected = [-0.001445, -0.001321, -0.001198, 0.498548, 0.49876, -0.001125, -0.001125, -0.001093]
    close(weights[0, :, 1, 1], expected, 1e-6)
    once = local_refine(GREY, IMPULSE, "varm", 1, (1,))[0, 0]
    close(once[1], [0.49873, 0, 0.49864], 5e-6)
    twice = local_refine(GREY, IMPULSE, "varm", 2, (1,))[0, 0]
    close(twice[1], [0.248681, 0.497352, 0.248697], 1e-6)
    close(twice[0], [-0.002653, -0.002625, -0.002616], 1e-6)
    far = local_refine(GREY, IMPULSE, "varm")[0, 0]
    close(far[1], [0.074794, 0.074798, 0.074799], 1e-6)
    close(far[2], [-0.000588] * 3, 1e-6)


def test_variation_term():
    """VARM's second term read off the weights: its logarithm is the variation, up to a constant."""
    share = (neighbor_weights(GREY, "color", (1,)) - neighbor_weights(GREY, "varm", (1,))) / 0.01
    centre = share[0, :, 1, 1].log()
    close(centre - centre[7], [0.26, 0.17, 0.09, 0.25, 0.09, 0.01, 0.01, 0])
    close(share[0, :, 2, 2], [1 / 8] * 8)


def test_step_edge():
    image, left = step_edge()
    crossing = [j for j in range(48) if j % 8 in (2, 4, 7)]  # from the column before the edge: NE, E, SE
    close(neighbor_weights(image, "par")[0, crossing, 32, 31].sum(), 0.0036, 5e-5)
    close(neighbor_weights(image, "varm")[0, crossing, 32, 31].sum(), -0.0026, 5e-5)
    assert 0 < neighbor_weights(image, "color")[0, crossing, 32, 31].sum() < 1e-12
    color = local_refine(image, left, "color")
    torch.testing.assert_close(color, left, atol=1e-12, rtol=0)
    par, varm = (local_refine(image, left, kernel)[0, 0, 32, 30:34] for kernel in ("par", "varm"))
    close(par, [1.099888, 1.096109, 0.008513, 0.004734], 1e-6)
    close(varm, [0.916923, 0.916491, -0.016632, -0.015966], 1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_step_edge_keeps_the_argmax(kernel):
    image, left = step_edge()
    scores = torch.cat([left, 1 - left], dim=1)
    assert torch.equal(local_refine(image, scores, kernel).argmax(dim=1), scores.argmax(dim=1))


def test_maximum_principle():
    image, mask = random_image(20, 30), random_scores(20, 30).round()
    color = local_refine(image, mask, "color")
    assert color.min() >= 0 and color.max() <= 1 + 1e-12
    par = local_refine(image, mask, "par")
    assert par.min() >= 0 and par.max() <= 1.01**10 + 1e-12
    assert local_refine(image, mask, "varm").min() < -0.01


@pytest.mark.parametrize("kernel", KERNELS)
def test_linear_and_channel_by_channel(kernel):
    image, high, low = random_image(5, 8), random_scores(5, 8, seed=1), random_scores(5, 8, seed=2)

    def refine(scores):
        return local_refine(image, scores, kernel, 5)

    torch.testing.assert_close(refine(2 * high - 3 * low), 2 * refine(high) - 3 * refine(low))
    torch.testing.assert_close(refine(high[:, [2, 0, 3, 1]]), refine(high)[:, [2, 0, 3, 1]])
    both = refine(torch.cat([high, low[:, :2]], dim=1))
    torch.testing.assert_close(both, torch.cat([refine(high), refine(low[:, :2])], dim=1))


def test_affine_change_of_the_image():
    image = random_image(9, 12)
    par, varm = (
        (neighbor_weights(0.5 * image + 0.3, kernel) - neighbor_weights(image, kernel)).abs().max()
        for kernel in ("par", "varm")
    )
    assert par < 1e-6 < 1e-5 < varm


def test_mirrored_image():
    image, scores = random_image(16, 13), random_scores(16, 13)

    def gap(kernel):
        return (
            local_refine(image.flip(-1), scores.flip(-1), kernel).flip(-1) - local_refine(image, scores, kernel)
        ).abs()

    assert gap("par").max() < 1e-12 and gap("color").max() < 1e-12
    assert gap("varm").max() > 1e-6  # its differences are one-sided


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("background", [0.35, 0.55])
def test_recovers_an_object_from_a_blob(kernel, background):
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    truth = ((y - 46) / 26) ** 2 + ((x - 52) / 18) ** 2 <= 1
    image = torch.where(truth, tensor([0.65, 0.35, 0.5]).view(3, 1, 1), tensor([0.4, 0.6, 0.3]).view(3, 1, 1))
    image = (image + 0.04 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    cam = torch.exp(-((y - 42) ** 2 + (x - 50) ** 2) / (2 * 15**2))
    scores = torch.stack([torch.full_like(cam, background), cam]).softmax(dim=0)

    def iou(maps):
        found = maps[1] > maps[0]
        return float((found & truth).sum() / (found | truth).sum())

    before, after = iou(scores), iou(local_refine(image[None], scores[None], kernel)[0])
    assert before < 0.85 and after > before + 0.1 and after > 0.95


def test_a_flat_image_keeps_its_digits_in_float32():
    """Where the mean of squares less the square of the mean would be all rounding."""
    noise = random_image(20, 24) * 2e-4 - 1e-4
    exact = (0.7 + noise).float().double()
    found = neighbor_weights(exact.float(), "color")
    torch.testing.assert_close(found.double(), neighbor_weights(exact, "color"), atol=2e-3, rtol=0)


def test_sigma_floor_silences_invisible_noise():
    image = 0.7 + 1e-4 * random_image(20, 24)
    assert neighbor_weights(image, "color").amax(dim=1).mean() > 0.2
    floored = neighbor_weights(image, "color", sigma_floor=2 / 255)
    torch.testing.assert_close(floored, torch.full_like(floored, 1 / 48), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(1, 1), (3, 1000), (1, 7), (7, 1)])
def test_edge_images(kernel, size):
    for image in (random_image(*size, dtype=torch.float32), torch.zeros(2, 3, *size), torch.ones(2, 3, *size)):
        zeros = local_refine(image, torch.zeros(2, 3, *size), kernel)
        assert zeros.shape == (2, 3, *size) and (zeros == 0).all()
        ones = local_refine(image, torch.ones(2, 1, *size), kernel)
        torch.testing.assert_close(ones, torch.full_like(ones, ROW_SUM[kernel] ** 10))


def test_an_impulse_in_the_image_is_finite_in_float32():
    """Its neighbours are all alike, so their deviation is 0 and the colour difference divided by it is huge."""
    image = torch.zeros(1, 3, 1, 9)
    image[..., 4] = 1
    for kernel in KERNELS:
        assert neighbor_weights(image, kernel, (1,)).isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_valid_rectangle_is_treated_as_cut_out(kernel):
    image, scores = random_image(9, 12, batch=3), random_scores(9, 12, batch=3)
    boxes = [(slice(2, 7), slice(1, 12)), (slice(0, 9), slice(4, 8)), (slice(3, 4), slice(5, 6))]
    valid = torch.zeros(3, 1, 9, 12, dtype=torch.bool)
    for number, (rows, columns) in enumerate(boxes):
        valid[number, 0, rows, columns] = True
    weights = neighbor_weights(image, kernel, valid=valid)
    refined = local_refine(image, scores, kernel, 4, valid=valid)
    for number, (rows, columns) in enumerate(boxes):
        one = slice(number, number + 1)
        part = image[one, :, rows, columns]
        torch.testing.assert_close(weights[one, :, rows, columns], neighbor_weights(part, kernel))
        expected = local_refine(part, scores[one, :, rows, columns], kernel, 4)
        torch.testing.assert_close(refined[one, :, rows, columns], expected)
    outside = ~valid.expand_as(scores)
    assert torch.equal(refined[outside], scores[outside]) and (weights.masked_select(~valid) == 0).all()
    other = local_refine(image.masked_fill(~valid, 0), scores.masked_fill(~valid, torch.nan), kernel, 4, valid=valid)
    assert torch.equal(other[~outside], refined[~outside])


def test_valid_everywhere_and_nowhere():
    image, scores = random_image(4, 6), random_scores(4, 6)
    valid = torch.ones(2, 1, 4, 6, dtype=torch.bool)
    valid[1] = False
    refined = local_refine(image, scores, valid=valid)
    torch.testing.assert_close(refined[0], local_refine(image, scores)[0])
    assert torch.equal(refined[1], scores[1])


@pytest.mark.parametrize("holes", [[(1, 1)], [(0, 2), (1, 2), (2, 2)], [(0, 0)]])
def test_valid_must_be_a_rectangle(holes):
    valid = torch.ones(2, 1, 3, 4, dtype=torch.bool)
    for row, column in holes:
        valid[1, 0, row, column] = False
    if holes == [(0, 2), (1, 2), (2, 2)]:
        assert valid[1, 0, :, 3].all()  # a gap, not a margin
    with pytest.raises(ValueError, match="one rectangle"):
        local_refine(random_image(3, 4), random_scores(3, 4), valid=valid)


@pytest.mark.parametrize("kernel", KERNELS)
def test_fixed_pixels_keep_their_scores_and_others_take_them_up(kernel):
    image, scores = random_image(4, 5), torch.zeros(2, 2, 4, 5, dtype=torch.float64)
    fixed = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    fixed[1, 0, 2, 3] = True
    scores[1, 0, 2, 3] = 1.0
    weights, expected = reference_weights(image, kernel), scores
    for _ in range(3):
        expected = torch.where(fixed, scores, reference_apply(weights, expected, 1))
    found = local_refine(image, scores, kernel, 3, fixed=fixed)
    torch.testing.assert_close(found, expected)
    assert found[1, 0, 2, 3] == 1 and found[1, 0].sum() > local_refine(image, scores, kernel, 3)[1, 0].sum()
    assert local_refine(image, scores, kernel, 3, fixed=torch.zeros_like(fixed)).equal(
        local_refine(image, scores, kernel, 3)
    )


@pytest.mark.parametrize("fixed", [torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 2, dtype=torch.bool)])
def test_fixed_is_checked(fixed):
    with pytest.raises(ValueError, match=r"^fixed must be bool \(1, 1, 3, 3\), not torch\."):
        local_refine(GREY, IMPULSE, fixed=fixed)


def test_gradients_reach_the_scores_alone():
    image, scores = random_image(3, 4).requires_grad_(), random_scores(3, 4, channels=2).requires_grad_()
    for kernel in KERNELS:
        assert torch.autograd.gradcheck(lambda s, k=kernel: local_refine(image, s, k, 2, (1, 2)), (scores,))
    assert not neighbor_weights(image, "varm").requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refined_in_float32(dtype):
    image, scores = random_image(5, 7).to(dtype), random_scores(5, 7).to(dtype)
    assert neighbor_weights(image, "par").dtype == torch.float32
    refined = local_refine(image, scores)
    assert refined.dtype == torch.float32
    assert torch.equal(refined, local_refine(image.float(), scores.float()))
    assert local_refine(image, scores.double()).dtype == torch.float64


def test_arguments_are_not_changed():
    image, scores = random_image(5, 7), random_scores(5, 7)
    valid = torch.zeros(2, 1, 5, 7, dtype=torch.bool)
    valid[..., 1:4, 2:6] = True
    before = image.clone(), scores.clone(), valid.clone()
    for kernel in KERNELS:
        neighbor_weights(image, kernel, valid=valid)
        local_refine(image, scores, kernel, valid=valid)
        local_refine(image, scores, kernel, 0)
        local_refine(image, scores, kernel, renormalize=True)
    assert all(torch.equal(now, then) for now, then in zip((image, scores, valid), before, strict=True))


def test_no_iteration_leaves_the_scores():
    scores = random_scores(5, 7)
    assert torch.equal(local_refine(random_image(5, 7), scores, iterations=0), scores)


def test_layout_in_memory_does_not_matter():
    image, scores = random_image(5, 7), random_scores(5, 7)
    last = {"memory_format": torch.channels_last}
    torch.testing.assert_close(local_refine(image.to(**last), scores.to(**last)), local_refine(image, scores))
    expanded = scores[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(local_refine(image, expanded), local_refine(image, expanded.clone()))


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor made inside has."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor) and one.is_contiguous():  # an expanded view takes no memory
                self.numel = max(self.numel, one.numel())
        return made


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_is_larger_than_the_weights(kernel):
    image, scores = random_image(64, 80, batch=1), random_scores(64, 80, batch=1, channels=10)
    with Largest() as largest:
        local_refine(image, scores, kernel, 2, valid=torch.ones(1, 1, 64, 80, dtype=torch.bool))
    assert largest.numel == 48 * 64 * 80


IMAGE, SCORES = random_image(4, 6), random_scores(4, 6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE[0], "image must be"),
        (IMAGE[:, :2], "image must be"),
        (IMAGE[..., :0], "image must be"),
        ((255 * IMAGE).byte(), "floats in 0..1"),
        (255 * IMAGE, "lie in 0..1"),
        (IMAGE - 0.5, "lie in 0..1"),
        (torch.full_like(IMAGE, torch.nan), "lie in 0..1"),
    ],
)
def test_image_is_checked(image, message):
    with pytest.raises(ValueError, match=message):
        neighbor_weights(image, "par")
    with pytest.raises(ValueError, match=message):
        local_refine(image, SCORES)


@pytest.mark.parametrize(
    "scores", [SCORES[0], SCORES[:1], SCORES[..., :5], SCORES.transpose(2, 3), SCORES[:, :0], SCORES.long()]
)
def test_scores_are_checked(scores):
    with pytest.raises(ValueError, match="scores"):
        local_refine(IMAGE, scores)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kernel": "none"}, "kernel must be one of varm, par, color"),
        ({"dilations": ()}, "dilations"),
        ({"dilations": (0, 1)}, "dilations"),
        ({"sigma_floor": -0.1}, "sigma_floor"),
        ({"sigma_floor": float("nan")}, "sigma_floor"),
        ({"valid": torch.ones(2, 4, 6, dtype=torch.bool)}, "valid must be bool"),
        ({"valid": torch.ones(2, 1, 6, 4, dtype=torch.bool)}, "valid must be bool"),
        ({"valid": torch.ones(2, 1, 4, 6)}, "valid must be bool"),
    ],
)
def test_settings_are_checked(changed, message):
    with pytest.raises(ValueError, match=message):
        neighbor_weights(IMAGE, **{"kernel": "par", **changed})
    with pytest.raises(ValueError, match=message):
        local_refine(IMAGE, SCORES, **changed)
    with pytest.raises(ValueError, match="iterations"):
        local_refine(IMAGE, SCORES, iterations=-1)
