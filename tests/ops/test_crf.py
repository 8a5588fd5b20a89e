import sys

import numpy as np
import pytest
import torch

from cam_pipeline.errors import LibraryMissing
from cam_pipeline.ops.crf import dense_crf


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


def test_a_weak_partial_seed_grows_to_the_edges_of_the_object(scene):
    image, truth, probabilities = scene
    posterior = dense_crf(image, probabilities)
    before, after = iou(probabilities.argmax(0) == 1, truth), iou(posterior.argmax(0) == 1, truth)
    assert before < 0.6
    assert after > 0.95


def test_posterior_is_a_distribution_of_float32(scene):
    image, _, probabilities = scene
    posterior = dense_crf(image, probabilities, iterations=3)
    assert posterior.shape == probabilities.shape
    assert posterior.dtype == np.float32
    assert posterior.min() >= 0
    np.testing.assert_allclose(posterior.sum(axis=0), 1, atol=1e-5)


def test_without_iterations_or_without_kernels_the_probabilities_come_back(scene):
    image, _, probabilities = scene
    np.testing.assert_allclose(dense_crf(image, probabilities, iterations=0), probabilities, atol=1e-6)
    unchanged = dense_crf(image, probabilities, gaussian_weight=0, bilateral_weight=0)
    np.testing.assert_allclose(unchanged, probabilities, atol=1e-6)


def test_a_common_factor_of_a_pixel_changes_nothing(scene):
    image, _, probabilities = scene
    halved = dense_crf(image, probabilities / 2, iterations=2)
    np.testing.assert_allclose(halved, dense_crf(image, probabilities, iterations=2), atol=1e-4)


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
def test_against_explicit_kernels(scene, iterations, gaussian_weight, bilateral_weight):
    generator = np.random.default_rng(1)
    image = np.ascontiguousarray(scene[0][5:29, 8:39])
    probabilities = generator.dirichlet([2, 1.5, 1], image.shape[:2]).transpose(2, 0, 1)
    expected = mean_field_by_matrices(image, probabilities, iterations, gaussian_weight, bilateral_weight)
    posterior = dense_crf(
        image,
        probabilities,
        iterations,
        gaussian_weight=gaussian_weight,
        bilateral_weight=bilateral_weight,
    )
    # The lattice filter is an approximation: some pixels differ by a few hundredths, the mean hardly.
    assert np.abs(posterior - expected).mean() < 0.01
    assert (posterior.argmax(0) == expected.argmax(0)).mean() > 0.98


def test_impossible_labels_stay_possible():
    image = np.zeros((3, 4, 3), dtype=np.uint8)
    probabilities = np.zeros((2, 3, 4))
    probabilities[0] = 1
    posterior = dense_crf(image, probabilities, iterations=0)
    np.testing.assert_allclose(posterior[1], 1e-5, rtol=1e-3)
    assert np.isfinite(dense_crf(image, np.zeros((2, 3, 4)))).all()


def test_torch_in_gives_torch_out_and_equal_numbers(scene):
    image, _, probabilities = scene
    from_numpy = dense_crf(image, probabilities, iterations=2)
    for given in (torch.from_numpy(image), image):
        posterior = dense_crf(given, torch.from_numpy(probabilities), iterations=2)
        assert isinstance(posterior, torch.Tensor)
        assert posterior.dtype == torch.float32
        assert np.array_equal(posterior.numpy(), from_numpy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes(scene, dtype):
    image, _, probabilities = scene
    posterior = dense_crf(torch.from_numpy(image), torch.from_numpy(probabilities).to(dtype), iterations=1)
    np.testing.assert_allclose(posterior.numpy(), dense_crf(image, probabilities, iterations=1), atol=0.05)


def test_views_and_read_only_arrays_are_taken_and_left_alone(scene):
    image, _, probabilities = scene
    image_view, probabilities_view = image[:, ::-1], probabilities[:, :, ::-1]
    image_view.setflags(write=False)
    probabilities_view.setflags(write=False)
    before = image_view.copy(), probabilities_view.copy()
    mirrored = dense_crf(image_view, probabilities_view, iterations=2)
    expected = dense_crf(before[0], before[1], iterations=2)
    assert np.array_equal(mirrored, expected)
    assert np.array_equal(image_view, before[0])
    assert np.array_equal(probabilities_view, before[1])


def test_one_channel_is_certain():
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    assert dense_crf(image, np.full((1, 2, 3), 0.3)).tolist() == [[[1, 1, 1], [1, 1, 1]]]
    posterior = dense_crf(torch.from_numpy(image), torch.full((1, 2, 3), 0.3))
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


def test_a_missing_module_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(LibraryMissing, match=r"pip install pydensecrf2 \(needs a C\+\+ compiler\)"):
        dense_crf(np.zeros((2, 3, 3), dtype=np.uint8), np.full((2, 2, 3), 0.5))
