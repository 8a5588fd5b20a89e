import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.config import RefineSettings, RunSettings
from cam_pipeline.data.images import read_image
from cam_pipeline.errors import DataError
from cam_pipeline.machine.crf_backend import CrfBackend
from cam_pipeline.ops import mean_field
from cam_pipeline.refinement import scores as refinement
from cam_pipeline.refinement.scores import (
    CPU,
    class_scores,
    placed,
    reduction,
    refined,
    refined_batch,
    refined_scores,
    smoothed_scores,
)
from cam_pipeline.store.cams import StoredCam

SIZE = (24, 36)


@pytest.fixture
def image(tmp_path):
    """Gives an image whose left half is red."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, : SIZE[1] // 2, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return lambda: read_image(tmp_path / "a.png")


def stored(cam, class_ids):
    return StoredCam("a", torch.tensor(cam), class_ids, SIZE)


def test_without_crf_scores_are_shares_with_the_background_first(image):
    cam = stored([[[4.0, 0.0]], [[0.0, 9.0]]], (2, 1))
    scores = refined_scores(cam, image, RefineSettings(background=0.25, crf=False))
    assert scores.shape == (3, *SIZE) and scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(scores[:, 5, 0], [0.2, 0.8, 0], atol=1e-4)  # 1/4 beside 1 and 0
    np.testing.assert_allclose(scores[:, 5, -1], [0.2, 0, 0.8], atol=1e-4)


def test_the_crf_moves_borders_to_those_of_the_image(image):
    cam = stored([[[6.0, 5.0, 0.0, 0.0]]], (2,))  # reaches too far: a part of the right half as well
    settings = RefineSettings(background=0.3, bilateral_sxy=20, bilateral_srgb=10)
    plain = refined_scores(cam, image, settings.model_copy(update={"crf": False}))
    refined = refined_scores(cam, image, settings)
    truth = np.zeros(SIZE, bool)
    truth[:, : SIZE[1] // 2] = True
    errors = [int((scores.argmax(axis=0) != truth).sum()) for scores in (plain, refined)]
    assert errors[0] > 20 and errors[1] == 0
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)


def test_crf_settings_reach_the_crf(image, monkeypatch):
    seen = []

    def crf(image, probabilities, iterations, **rest):
        seen.append({"iterations": iterations, **rest})
        return probabilities

    monkeypatch.setattr(refinement, "dense_crf", crf)
    monkeypatch.setattr(refinement, "dense_crf_batch", crf)
    chosen = dict(gaussian_sxy=1.0, gaussian_weight=2.0, bilateral_sxy=3.0, bilateral_srgb=4.0, bilateral_weight=5.0)
    for backend in ("torch", "pydensecrf"):
        settings = RefineSettings(crf_iterations=6, crf_backend=backend, **chosen)
        refined_scores(stored([[[1.0, 0.0]]], (2,)), image, settings)
    assert seen == [{"iterations": 6, **chosen}, {"iterations": 6, "backend": "pydensecrf", **chosen}]


def test_an_image_without_classes_is_background(image):
    cam = StoredCam("a", torch.zeros(0, 2, 3), (), SIZE)
    assert (refined_scores(cam, image, RefineSettings()) == 1).all()


def test_an_image_that_is_not_needed_is_not_read():
    def read():
        raise AssertionError

    cam = stored([[[4.0, 0.0]]], (2,))
    assert refined_scores(cam, read, RefineSettings(crf=False)).shape == (2, *SIZE)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(DataError, match="its maps are of"):
        refined_scores(stored([[[4.0, 0.0]]], (2,)), lambda: np.zeros((3, 4, 3), np.uint8), RefineSettings())


def calibrated(cam, background, prototype):
    """Maps of one cell each: what they are divided by their maxima is 1, unless they have none."""
    return StoredCam("a", torch.tensor(cam), (2,), SIZE, torch.tensor(background), torch.tensor(prototype))


def test_classifier_and_prototype_maps_are_merged_after_each_has_a_maximum_of_one():
    cam = calibrated([[[8.0, 4.0]]], [[1.0, 3.0]], [[[4.0, 2.0]], [[0.0, 5.0]]])
    for share, left, right in ((0.0, 1.0, 0.5), (1.0, 0.0, 1.0), (0.25, 0.75, 0.625)):
        scores, beside = class_scores(cam, RefineSettings(prototype_share=share, background_map=0.5))
        np.testing.assert_allclose(scores[0, 5, [0, -1]], [left, right], atol=1e-6)
        expected = [0.5 * ((1 - share) * low + share * high) for low, high in ((1 / 3, 1.0), (1.0, 0.5))]
        np.testing.assert_allclose(beside[5, [0, -1]], expected, atol=1e-6)
    assert not class_scores(cam, RefineSettings(background_map=0.0))[1].any()


def test_maps_without_calibration_have_a_background_that_is_the_same_everywhere():
    scores, beside = class_scores(stored([[[8.0, 4.0]]], (2,)), RefineSettings(prototype_share=0.9, background_map=1.0))
    np.testing.assert_allclose(scores[0, 5, [0, -1]], [1.0, 0.5])
    assert beside.shape == SIZE and not beside.any()


@pytest.mark.parametrize(("background", "wins"), [(0.5, True), (0.7, False)])
def test_the_papers_rule_of_the_background(image, background, wins):
    """A class of .5 wins where .5 > .5 bg + .2, beside a pixel where class and background map have their maximum."""
    cam = calibrated([[[1.0, 0.5]]], [[1.0, background]], [[[1.0, background]], [[1.0, 0.5]]])
    scores = refined_scores(cam, image, RefineSettings(background=0.2, background_map=0.5, crf=False))
    assert (scores[1, 5, -1] > scores[0, 5, -1]) == wins
    np.testing.assert_allclose(scores.sum(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize("kernel", ["color", "par", "varm"])
@pytest.mark.parametrize("guide", [0.5, 1.0])
def test_local_refinement_moves_borders_to_those_of_the_image(image, kernel, guide):
    cam = stored([[[6.0, 5.0, 0.0, 0.0]]], (2,))
    settings = RefineSettings(background=0.5, crf=False, kernel=kernel, kernel_guide=guide)
    truth = np.zeros(SIZE, bool)
    truth[:, : SIZE[1] // 2] = True
    plain = refined_scores(cam, image, settings.model_copy(update={"kernel": "none"}))
    refined = refined_scores(cam, image, settings)
    errors = [int((scores.argmax(axis=0) != truth).sum()) for scores in (plain, refined)]
    assert errors[0] > 20 and errors[1] <= 0.03 * truth.size
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)


def test_a_kernel_moves_the_background_map_as_well_and_keeps_constants(image):
    cam = calibrated([[[3.0, 3.0]]], [[1.0, 1.0]], [[[1.0, 0.0]], [[2.0, 2.0]]])
    settings = RefineSettings(kernel="varm", background_map=1.0, prototype_share=0.5)
    ((scores, beside),) = smoothed_scores([cam], lambda: torch.from_numpy(np.array(image()))[None], settings)
    np.testing.assert_allclose(scores, 1, atol=1e-3)
    before = class_scores(cam, settings)[1]
    assert beside.shape == SIZE and (beside - before).abs().max() > 0.05
    assert beside[:, : SIZE[1] // 2].std() < before[:, : SIZE[1] // 2].std()


def test_a_kernel_that_is_off_reads_no_image():
    def read():
        raise AssertionError

    refined_scores(stored([[[4.0, 0.0]]], (2,)), read, RefineSettings(crf=False))
    refined_scores(StoredCam("a", torch.zeros(0, 2, 3), (), SIZE), read, RefineSettings(kernel="par"))


@pytest.mark.parametrize("size", [(1, 1), (3, 1000), (1, 7)])
def test_images_of_any_shape_and_a_constant_one_are_refined(size):
    cam = StoredCam("a", torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]), (2, 5), size)
    for kernel in ("color", "par", "varm"):
        scores = refined_scores(cam, lambda: np.full((*size, 3), 90, np.uint8), RefineSettings(kernel=kernel))
        assert scores.shape == (3, *size) and np.isfinite(scores).all()


def test_a_kernel_refuses_an_image_of_another_size():
    with pytest.raises(DataError, match="image a has 6 x 5 pixels, its maps are of 36 x 24: it was replaced"):
        refined_scores(
            stored([[[4.0, 0.0]]], (2,)), lambda: np.zeros((5, 6, 3), np.uint8), RefineSettings(kernel="par")
        )


def test_large_images_are_refined_at_a_smaller_size(image, monkeypatch):
    seen = []

    def crf(pixels, probabilities, iterations, **rest):
        sizes = [tuple(one.shape) for one in probabilities]
        seen.append((tuple(pixels.shape), sizes, rest["bilateral_sxy"], rest["gaussian_sxy"]))
        return dense_crf_batch(pixels, probabilities, iterations, **rest)

    dense_crf_batch = refinement.dense_crf_batch
    monkeypatch.setattr(refinement, "dense_crf_batch", crf)
    settings = RefineSettings(background=0.3, bilateral_sxy=20, bilateral_srgb=10, crf_backend="torch")
    assert reduction(SIZE, settings) == 1
    small = settings.model_copy(update={"max_pixels": 24 * 36 // 4})
    scores = refined_scores(stored([[[6.0, 5.0, 0.0, 0.0]]], (2,)), image, small)
    assert seen == [((1, 12, 18, 3), [(2, 12, 18)], 10.0, 1.5)]
    assert scores.shape == (2, *SIZE)
    np.testing.assert_allclose(scores.sum(axis=0), 1, atol=1e-5)
    assert (scores.argmax(axis=0)[:, : SIZE[1] // 2 - 1] == 1).all() and (
        scores.argmax(axis=0)[:, SIZE[1] // 2 + 1 :] == 0
    ).all()


def no_room(pixels, images=1):
    """A CRF that finds too little memory for more pixels or images than these."""

    def crf(stack, probabilities, iterations, **rest):
        if len(stack) > images or stack[0, ..., 0].numel() > pixels:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return dense_crf_batch(stack, probabilities, iterations, **rest)

    dense_crf_batch = refinement.dense_crf_batch
    return crf


def halves(size):
    """An image whose left half is red."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:, : size[1] // 2, 0] = 200
    return pixels


def test_what_does_not_fit_into_memory_is_refined_at_fewer_pixels(monkeypatch, caplog):
    size = (240, 360)
    cam = StoredCam("a", torch.tensor([[[6.0, 5.0, 0.0, 0.0]]]), (2,), size)
    monkeypatch.setattr(refinement, "dense_crf_batch", no_room(size[0] * size[1] // 4))
    found = refined(cam, lambda: halves(size), RefineSettings(crf_backend="torch"))
    assert caplog.messages == ["image a: too little memory; it is refined at 21600 pixels"]
    truth = halves(size)[..., 0] > 0
    wrong = (found.scores.argmax(axis=0) != truth)[:, [*range(170), *range(190, 360)]]
    assert not wrong.any()


@pytest.mark.parametrize("alone", [True, False])
def test_lattices_that_are_kept_are_freed_if_memory_is_short(monkeypatch, alone):
    refinement.dense_crf_batch(torch.zeros(1, *SIZE, 3, dtype=torch.uint8), [torch.full((2, *SIZE), 0.5)])
    kept = mean_field._smoothness.cache_info().currsize
    monkeypatch.setattr(refinement, "dense_crf_batch", no_room(0))
    cam = StoredCam("a", torch.tensor([[[4.0, 0.0]]]), (2,), (240, 360))
    refine = refined if alone else lambda cam, read, settings: refined_batch([cam], [read], settings, CPU)
    with pytest.raises(torch.OutOfMemoryError):
        refine(cam, lambda: halves(cam.size), RefineSettings(crf_backend="torch"))
    assert (kept > 0, mean_field._smoothness.cache_info().currsize) == (True, 0)


def test_an_image_that_fits_at_no_useful_size_is_an_error(monkeypatch):
    monkeypatch.setattr(refinement, "dense_crf_batch", no_room(0))
    with pytest.raises(torch.OutOfMemoryError):
        refined(stored([[[4.0, 0.0]]], (2,)), lambda: halves(SIZE), RefineSettings(crf_backend="torch"))


def test_another_error_is_no_lack_of_memory(monkeypatch):
    def crf(*_, **__):
        raise RuntimeError("another error")

    monkeypatch.setattr(refinement, "dense_crf_batch", crf)
    settings = RefineSettings(crf_backend="torch")
    with pytest.raises(RuntimeError, match="another error"):
        refined(stored([[[4.0, 0.0]]], (2,)), lambda: halves(SIZE), settings)
    with pytest.raises(RuntimeError, match="another error"):
        refined_batch([stored([[[4.0, 0.0]]], (2,))], [lambda: halves(SIZE)], settings, CPU)


BATCH = [
    StoredCam("a", torch.tensor([[[4.0, 1.0, 0.0, 0.0]]]), (2,), SIZE),
    StoredCam("b", torch.zeros(0, 2, 3), (), SIZE),
    StoredCam(
        "c",
        torch.tensor([[[4.0, 3.0], [0.0, 0.0]], [[0.0, 1.0], [2.0, 5.0]], [[0.0, 0.0], [9.0, 0.0]]]),
        (3, 1, 2),
        SIZE,
    ),
]


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("settings", [{}, {"crf": False}, {"kernel": "par", "band": 0.1, "max_pixels": 600}])
def test_a_batch_gives_what_each_image_gives_alone(monkeypatch, settings, fits):
    """Images of a batch show different numbers of classes, or none."""
    noise = np.random.default_rng(0).integers(0, 60, (3, *SIZE, 3)).astype(np.uint8)
    reads = [lambda: halves(SIZE) + noise[0], lambda: 1 / 0, lambda: noise[2]]
    settings = RefineSettings(crf_backend="torch").model_copy(update=settings)  # max_pixels is too small to be set
    alone = [refined(cam, read, settings) for cam, read in zip(BATCH, reads, strict=True)]
    if not fits:
        monkeypatch.setattr(refinement, "dense_crf_batch", no_room(10**6))
    for found, expected in zip(refined_batch(BATCH, reads, settings, CPU), alone, strict=True):
        assert (found.name, found.class_ids) == (expected.name, expected.class_ids)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        assert found.labels.keys() == expected.labels.keys()
        assert all(np.array_equal(found.labels[name], expected.labels[name]) for name in found.labels)


@pytest.mark.parametrize(("workers", "threads", "expected"), [(1, 0, 3), (2, 0, 1), (2, 5, 5)])
def test_backends_are_compared_with_the_threads_that_will_work(monkeypatch, workers, threads, expected):
    seen = []
    monkeypatch.setattr(refinement, "crf_backend", lambda *given: seen.append(given) or CrfBackend("pydensecrf", ""))
    run = RunSettings(device="cpu", workers=workers, threads=3)
    settings, device = placed(RefineSettings(), run, threads)
    assert seen == [("auto", "cpu", expected)]
    assert (settings.crf_backend, device) == ("pydensecrf", CPU)
