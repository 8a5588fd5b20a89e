import sys
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

from cam_pipeline.data.demo.scenes import draw_scene
from cam_pipeline.errors import LibraryMissing
from cam_pipeline.ops import crf as module
from cam_pipeline.ops.crf import dense_crf, dense_crf_batch, faster_backend, is_pydensecrf_installed
from cam_pipeline.ops.mean_field import _smoothness

needs_pydensecrf = pytest.mark.skipif(not is_pydensecrf_installed(), reason="pydensecrf is not installed")


@pytest.fixture(params=["torch", pytest.param("pydensecrf", marks=needs_pydensecrf)])
def crf(request):
    """`dense_crf` with each backend."""
    return partial(dense_crf, backend=request.param)


@pytest.fixture(scope="module")
def scene():
    """A noisy two-colour image, its true mask and weak, noisy scores that know only half of the object."""
    generator = np.random.default_rng(0)
    height, width = 40, 56
    truth = np.zeros((height, width), dtype=bool)
    truth[10:30, 14:44] = True
    colours = np.where(truth[..., None], [190, 120, 60], [70, 100, 150])
    image = np.clip(colours + generator.normal(0, 4, colours.shape), 0, 255).astype(np.uint8)
    seed = np.full((height, width), 0.4)
    seed[10:30, 14:30] = 0.65
    seed = np.clip(seed + generator.normal(0, 0.1, seed.shape), 0.05, 0.95)
    return image, truth, np.stack([1 - seed, seed]).astype(np.float32)


def iou(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


def test_a_weak_partial_seed_grows_to_the_edges_of_the_object(scene, crf):
    image, truth, probabilities = scene
    posterior = crf(image, probabilities)
    before, after = iou(probabilities.argmax(0) == 1, truth), iou(posterior.argmax(0) == 1, truth)
    assert before < 0.6
    assert after > 0.95


WORKED_IMAGE = np.fromfunction(lambda y, x, c: (37 * y + 23 * x + 61 * c) % 256, (5, 7, 3)).astype(np.uint8)
WORKED_SCORES = np.fromfunction(lambda k, y, x: 1 + (3 * y + 5 * x + 7 * k) % 11, (3, 5, 7))


@pytest.mark.parametrize(
    ("srgb", "weight", "iterations", "expected"),
    [
        (5, 10, 1, [0.000526, 0.083760, 0.002372, 0.030658]),
        (5, 10, 10, [0.000004, 0.000036, 0.000015, 0.000253]),
        (60, 4, 1, [0.060599, 0.367085, 0.104970, 0.187826]),
        (60, 4, 10, [0.000248, 0.998394, 0.000592, 0.000489]),
    ],
)
def test_worked_numbers(crf, srgb, weight, iterations, expected):
    probabilities = WORKED_SCORES / WORKED_SCORES.sum(0)
    posterior = crf(WORKED_IMAGE, probabilities, iterations, bilateral_srgb=srgb, bilateral_weight=weight)
    found = [posterior[0, 0, 0], posterior[1, 2, 3], posterior[2, 4, 6], posterior[0, 3, 1]]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_posterior_is_a_distribution_of_float32(scene, crf):
    image, _, probabilities = scene
    posterior = crf(image, probabilities, iterations=3)
    assert posterior.shape == probabilities.shape
    assert posterior.dtype == np.float32
    assert posterior.min() >= 0
    np.testing.assert_allclose(posterior.sum(axis=0), 1, atol=1e-5)


def test_without_iterations_or_without_kernels_the_probabilities_come_back(scene, crf):
    image, _, probabilities = scene
    np.testing.assert_allclose(crf(image, probabilities, iterations=0), probabilities, atol=1e-6)
    unchanged = crf(image, probabilities, gaussian_weight=0, bilateral_weight=0)
    np.testing.assert_allclose(unchanged, probabilities, atol=1e-6)


def test_a_common_factor_of_a_pixel_changes_nothing(scene, crf):
    image, _, probabilities = scene
    halved = crf(image, probabilities / 2, iterations=2)
    np.testing.assert_allclose(halved, crf(image, probabilities, iterations=2), atol=1e-4)


def symmetric_kernel(features):
    """Gaussian kernel of (N, F) features, divided by the square roots of its row sums on both sides."""
    kernel = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)
    scale = 1 / np.sqrt(kernel.sum(1))
    return kernel * scale[:, None] * scale[None]


def mean_field_by_matrices(image, probabilities, iterations, gaussian_weight, bilateral_weight):
    """The same energy with explicit N x N kernels, default widths."""
    height, width = image.shape[:2]
    position = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2).astype(float)
    colour = image.reshape(-1, 3).astype(float)
    near = symmetric_kernel(position / 3)
    alike = symmetric_kernel(np.concatenate([position / 50, colour / 5], axis=1))
    unary = -np.log(probabilities.reshape(len(probabilities), -1).clip(1e-5))
    posterior = np.exp(-unary) / np.exp(-unary).sum(0)
    for _ in range(iterations):
        energy = -unary + gaussian_weight * (posterior @ near) + bilateral_weight * (posterior @ alike)
        posterior = np.exp(energy - energy.max(0))
        posterior /= posterior.sum(0)
    return posterior.reshape(probabilities.shape)


@pytest.mark.parametrize(
    ("iterations", "gaussian_weight", "bilateral_weight"), [(1, 3, 0), (1, 0, 10), (3, 3, 0), (10, 3, 10)]
)
def test_against_explicit_kernels(scene, crf, iterations, gaussian_weight, bilateral_weight):
    generator = np.random.default_rng(1)
    image = np.ascontiguousarray(scene[0][5:29, 8:39])
    probabilities = generator.dirichlet([2, 1.5, 1], image.shape[:2]).transpose(2, 0, 1)
    expected = mean_field_by_matrices(image, probabilities, iterations, gaussian_weight, bilateral_weight)
    posterior = crf(
        image,
        probabilities,
        iterations,
        gaussian_weight=gaussian_weight,
        bilateral_weight=bilateral_weight,
    )
    # The lattice filter is an approximation: some pixels differ by a few hundredths, the mean hardly.
    assert np.abs(posterior - expected).mean() < 0.01
    assert (posterior.argmax(0) == expected.argmax(0)).mean() > 0.98


def test_impossible_labels_stay_possible(crf):
    image = np.zeros((3, 4, 3), dtype=np.uint8)
    probabilities = np.zeros((2, 3, 4))
    probabilities[0] = 1
    posterior = crf(image, probabilities, iterations=0)
    np.testing.assert_allclose(posterior[1], 1e-5, rtol=1e-3)
    assert np.isfinite(crf(image, np.zeros((2, 3, 4)))).all()


def random_case(height, width, labels, seed=0, colors=256):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, colors, (height, width, 3)).astype(np.uint8)
    return image, generator.dirichlet(np.ones(labels), (height, width)).transpose(2, 0, 1)


def flat(height, width, labels, value=200):
    image, probabilities = random_case(height, width, labels)
    return np.full_like(image, value), probabilities


def grey(height, width, labels):
    image, probabilities = random_case(height, width, labels)
    return np.repeat(image[:, :, :1], 3, axis=2), probabilities


EDGE_CASES = {
    "one pixel": (random_case(1, 1, 2), {}),
    "one row": (random_case(1, 40, 3), {}),
    "one column": (random_case(40, 1, 3), {}),
    "a strip": (random_case(3, 1000, 3), {}),
    "a flat image": (flat(23, 31, 4), {}),
    "a black image": (flat(23, 31, 2, value=0), {}),
    "a grey image": (grey(23, 31, 3), {}),
    "two labels": (random_case(23, 31, 2), {}),
    "many labels": (random_case(23, 31, 81), {}),
    "no smoothness": (random_case(23, 31, 3), {"gaussian_weight": 0}),
    "no appearance": (random_case(23, 31, 3), {"bilateral_weight": 0}),
    "few colours": (random_case(23, 31, 3, colors=2), {"bilateral_srgb": 13}),
    "great weights": (random_case(23, 31, 3), {"bilateral_weight": 300, "gaussian_weight": 500, "bilateral_srgb": 60}),
    "narrow kernels": (random_case(23, 31, 3), {"gaussian_sxy": 0.5, "bilateral_sxy": 1, "bilateral_srgb": 1}),
    "wide kernels": (random_case(23, 31, 3), {"gaussian_sxy": 900, "bilateral_sxy": 900, "bilateral_srgb": 900}),
}


@needs_pydensecrf
@pytest.mark.parametrize("name", EDGE_CASES)
def test_both_backends_agree_on_edge_cases(name):
    (image, probabilities), settings = EDGE_CASES[name]
    image_before, before = image.copy(), probabilities.copy()
    torch_, compiled = (dense_crf(image, probabilities, backend=one, **settings) for one in ("torch", "pydensecrf"))
    assert np.isfinite(torch_).all()
    np.testing.assert_allclose(torch_.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(torch_, compiled, atol=1e-3)
    assert np.array_equal(image, image_before)
    assert np.array_equal(probabilities, before)


@pytest.mark.parametrize("width", [1e-2, 1e-3, 1e-20])
@pytest.mark.parametrize("name", ["bilateral_sxy", "bilateral_srgb"])
def test_a_kernel_narrower_than_a_pixel_leaves_every_pixel_to_itself(name, width):
    """Each adds its weight to its own label. The small keys of pydensecrf overflow here."""
    image, probabilities = random_case(9, 13, 3)
    image[..., 0] = np.arange(9 * 13).reshape(9, 13)  # no two pixels look alike
    posterior = dense_crf(
        image, probabilities, 1, gaussian_weight=0, bilateral_weight=4, backend="torch", **{name: width}
    )
    expected = probabilities * np.exp(4 * probabilities)
    np.testing.assert_allclose(posterior, expected / expected.sum(0), atol=1e-5)


@needs_pydensecrf
def test_both_backends_agree_on_generated_images():
    """The slow test has more and larger ones."""
    check_agreement([compared(seed, (60, 90)) for seed in range(6)])


@pytest.mark.slow
@needs_pydensecrf
def test_both_backends_agree_on_200_generated_images():
    check_agreement([compared(seed, (150 + seed % 80, 240 - seed % 70)) for seed in range(200)])


def check_agreement(found):
    """Equal labels, and probabilities within 1e-3, at 99.99 % of the pixels.

    Not at all of them: pydensecrf loses some neighbours in a large lattice (tests/ops/test_permutohedral.py has the
    lattice in plain Python).
    """
    equal, near = (np.concatenate([np.ravel(image[part]) for image in found]) for part in (0, 1))
    assert equal.mean() >= 0.9999
    assert near.mean() >= 0.9999


def compared(seed, size):
    """Where labels are equal, and where probabilities are within 1e-3: (H, W) bool; a drawn scene, 2 to 5 labels."""
    generator = np.random.default_rng(seed)
    image, mask = draw_scene(generator, (1, 2, 3), size)
    labels = 2 + seed % 4
    coarse = torch.nn.functional.interpolate(
        torch.from_numpy(np.stack([mask % labels == label for label in range(labels)])[None]).float(),
        (6, 9),
        mode="area",
    )
    noise = torch.from_numpy(generator.normal(0, 0.5, coarse.shape)).float()
    scores = torch.nn.functional.interpolate(2 * coarse + noise, size, mode="bilinear")[0].softmax(0).numpy()
    torch_, compiled = (dense_crf(image, scores, backend=backend) for backend in ("torch", "pydensecrf"))
    return torch_.argmax(0) == compiled.argmax(0), np.abs(torch_ - compiled).max(axis=0) < 1e-3


@pytest.mark.slow
def test_a_photograph_of_24_million_pixels():
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 60), (4000, 6000), mode="bilinear")[0]
    image = (255 * smooth).to(torch.uint8).movedim(0, -1)
    posterior = dense_crf(image, (3 * smooth).softmax(0), iterations=1, backend="torch")
    assert posterior.shape == (3, 4000, 6000)
    torch.testing.assert_close(posterior.sum(0), torch.ones(4000, 6000))


def test_a_batch_gives_what_each_image_gives_alone():
    """Images of one batch never meet, and may have different labels."""
    cases = [random_case(17, 26, labels, seed=labels, colors=40) for labels in (3, 2, 5)]
    images = torch.from_numpy(np.stack([image for image, _ in cases]))
    found = dense_crf_batch(images, [torch.from_numpy(one) for _, one in cases], 4)
    for (image, probabilities), posterior in zip(cases, found, strict=True):
        alone = dense_crf(image, probabilities, 4, backend="torch")
        assert posterior.shape == alone.shape
        np.testing.assert_allclose(posterior.numpy(), alone, atol=1e-6)


def test_torch_gives_the_same_bits_with_any_number_of_threads(scene):
    image, _, probabilities = scene
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(dense_crf(image, probabilities, backend="torch"))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*found)


def test_torch_in_gives_torch_out_and_equal_numbers(scene, crf):
    image, _, probabilities = scene
    from_numpy = crf(image, probabilities, iterations=2)
    for given in (torch.from_numpy(image), image):
        posterior = crf(given, torch.from_numpy(probabilities), iterations=2)
        assert isinstance(posterior, torch.Tensor)
        assert posterior.dtype == torch.float32
        assert np.array_equal(posterior.numpy(), from_numpy)


def test_no_gradient_is_kept(scene, crf):
    image, _, probabilities = scene
    assert not crf(image, torch.from_numpy(probabilities).requires_grad_(), iterations=1).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes(scene, crf, dtype):
    image, _, probabilities = scene
    posterior = crf(torch.from_numpy(image), torch.from_numpy(probabilities).to(dtype), iterations=1)
    np.testing.assert_allclose(posterior.numpy(), crf(image, probabilities, iterations=1), atol=0.05)


@pytest.fixture(params=["autocast", "half precision by default", "inference mode", "another device by default"])
def surroundings(request):
    """What may be set where the CRF is called."""
    context = {
        "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
        "inference mode": torch.inference_mode,
        "another device by default": partial(torch.device, "meta"),
    }.get(request.param, nullcontext)
    if request.param == "half precision by default":
        torch.set_default_dtype(torch.bfloat16)
    _smoothness.cache_clear()
    yield context
    torch.set_default_dtype(torch.float32)


def test_surroundings_change_nothing(scene, crf, surroundings):
    image, _, probabilities = scene
    with surroundings():
        found = crf(torch.from_numpy(image), torch.from_numpy(probabilities))
    torch.set_default_dtype(torch.float32)
    expected = crf(image, probabilities)  # with the lattice that was kept
    assert np.array_equal(found.numpy(), expected)
    _smoothness.cache_clear()
    assert np.array_equal(crf(image, probabilities), expected)


def test_backends_are_timed_on_the_cpu_whatever_the_default_device(monkeypatch):
    monkeypatch.setattr(module, "dense_crf", lambda image, probabilities, backend: image.float().mean().item())
    with torch.device("meta"):
        seconds = module.seconds_per_image(1)
    assert all(0 < found < 60 for found in seconds.values())


def test_views_and_read_only_arrays_are_taken_and_left_alone(scene, crf):
    image, _, probabilities = scene
    image_view, probabilities_view = image[:, ::-1], probabilities[:, :, ::-1]
    image_view.setflags(write=False)
    probabilities_view.setflags(write=False)
    before = image_view.copy(), probabilities_view.copy()
    mirrored = crf(image_view, probabilities_view, iterations=2)
    expected = crf(before[0], before[1], iterations=2)
    assert np.array_equal(mirrored, expected)
    assert np.array_equal(image_view, before[0])
    assert np.array_equal(probabilities_view, before[1])


def test_one_channel_is_certain(crf):
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    assert crf(image, np.full((1, 2, 3), 0.3)).tolist() == [[[1, 1, 1], [1, 1, 1]]]
    posterior = crf(torch.from_numpy(image), torch.full((1, 2, 3), 0.3))
    assert posterior.dtype == torch.float32
    assert (posterior == 1).all()


@pytest.mark.parametrize(
    ("image", "probabilities", "message"),
    [
        (np.zeros((2, 3, 3)), np.full((2, 2, 3), 0.5), "image must be"),
        (np.zeros((2, 3), dtype=np.uint8), np.full((2, 2, 3), 0.5), "image must be"),
        (np.zeros((3, 2, 3), dtype=np.uint8), np.full((2, 2, 3), 0.5), "probabilities must be"),
        (np.zeros((2, 3, 3), dtype=np.uint8), np.full((2, 3), 0.5), "probabilities must be"),
        (np.zeros((2, 3, 3), dtype=np.uint8), np.full((0, 2, 3), 0.5), "probabilities must be"),
        (np.zeros((2, 3, 3), dtype=np.uint8), np.ones((2, 2, 3), dtype=np.uint8), "floats in 0..1"),
        (np.zeros((2, 3, 3), dtype=np.uint8), np.full((2, 2, 3), 1.5), "lie in 0..1"),
        (np.zeros((2, 3, 3), dtype=np.uint8), np.full((2, 2, 3), -0.5), "lie in 0..1"),
        (np.zeros((2, 3, 3), dtype=np.uint8), np.full((2, 2, 3), np.nan), "lie in 0..1"),
    ],
)
def test_arrays_are_checked(image, probabilities, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(image, probabilities)
    with pytest.raises(ValueError, match=message):
        dense_crf(torch.from_numpy(image), torch.from_numpy(probabilities))


@pytest.mark.parametrize(
    "setting",
    [
        {"iterations": -1},
        {"gaussian_weight": -1},
        {"bilateral_weight": float("nan")},
        {"gaussian_sxy": 0},
        {"bilateral_sxy": -50},
        {"bilateral_srgb": 0},
    ],
)
def test_settings_are_checked(setting):
    with pytest.raises(ValueError, match="iterations and weights"):
        dense_crf(np.zeros((2, 3, 3), dtype=np.uint8), np.full((2, 2, 3), 0.5), **setting)


@pytest.mark.parametrize("weight", [1e12, 1e38, 1e308])
def test_a_huge_weight_decides(crf, weight):
    image, probabilities = random_case(9, 13, 3)
    for other in (0, 10, weight):
        posterior = crf(image, probabilities, gaussian_weight=weight, bilateral_weight=other)
        np.testing.assert_allclose(posterior.max(axis=0), 1)
        np.testing.assert_allclose(posterior.sum(axis=0), 1)


def test_the_backend_is_checked():
    with pytest.raises(ValueError, match="backend must be auto, pydensecrf or torch, not 'numpy'"):
        dense_crf(np.zeros((2, 3, 3), dtype=np.uint8), np.full((2, 2, 3), 0.5), backend="numpy")


def test_a_missing_module_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(LibraryMissing, match=r"pip install pydensecrf2 \(needs a C\+\+ compiler\), or use .* torch"):
        dense_crf(np.zeros((2, 3, 3), dtype=np.uint8), np.full((2, 2, 3), 0.5), backend="pydensecrf")


@pytest.fixture
def not_measured_yet():
    faster_backend.cache_clear()
    yield
    faster_backend.cache_clear()


@pytest.mark.usefixtures("not_measured_yet")
def test_without_pydensecrf_auto_is_torch(scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    image, _, probabilities = scene
    assert np.array_equal(dense_crf(image, probabilities, 2), dense_crf(image, probabilities, 2, backend="torch"))


@needs_pydensecrf
@pytest.mark.usefixtures("not_measured_yet")
@pytest.mark.parametrize(("seconds", "expected"), [(0.1, "pydensecrf"), (0.2, "pydensecrf"), (0.3, "torch")])
def test_auto_takes_pydensecrf_unless_it_is_slower(monkeypatch, seconds, expected):
    monkeypatch.setattr(module, "seconds_per_image", lambda threads: {"pydensecrf": seconds, "torch": 0.2})
    assert faster_backend(1) == expected


@needs_pydensecrf
def test_measuring_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    seconds = module.seconds_per_image(before + 1)
    assert torch.get_num_threads() == before
    assert all(0 < found < 60 for found in seconds.values())
    assert set(seconds) == {"pydensecrf", "torch"}
