"""The drawn objects: twins share the body and differ in the part only; nothing vanishes."""

import numpy as np
import pytest

from cam_pipeline.data.demo.scenes import BODIES, BODY_TEXTURE, CLASS_NAMES, PARTS, coverage, draw_scene, texture

CAR, SLEDGE = CLASS_NAMES.index("car") + 1, CLASS_NAMES.index("sledge") + 1


@pytest.mark.parametrize("class_id", range(1, 7))
def test_body_is_most_of_the_object(class_id: int) -> None:
    size = (90, 100)  # an object of half length 30 in the middle, nothing cut off
    body, *part = (
        coverage(np.array([48, 47]) + 30 * outline, size) > 0.5
        for outline in (BODIES[(class_id - 1) % 3], *(outline for outline, _ in PARTS[class_id - 1]))
    )
    share = np.any(part, axis=0).sum() / np.any([body, *part], axis=0).sum()
    assert 0.12 < share < 0.3


def test_twins_share_the_body_and_differ_in_the_part() -> None:
    (car, car_labels), (sledge, sledge_labels) = (
        draw_scene(np.random.default_rng(3), [class_id], (96, 128)) for class_id in (CAR, SLEDGE)
    )
    both = (car_labels == CAR) & (sledge_labels == SLEDGE)
    either = (car_labels == CAR) | (sledge_labels == SLEDGE)
    assert (car[~either] == sledge[~either]).all(axis=-1).mean() > 0.98, "the same background but for edges"
    assert (car[both] == sledge[both]).all(axis=-1).mean() > 0.75, "the same body"
    assert (car != sledge).any(axis=-1).sum() / either.sum() > 0.1, "another part"


def test_objects_never_vanish_behind_others() -> None:
    for seed in range(10):
        _, labels = draw_scene(np.random.default_rng(seed), [1, 5, 6], (96, 128))
        assert all((labels == class_id).sum() > 100 for class_id in np.unique(labels))


def test_coverage_of_a_rectangle() -> None:
    expected = np.zeros((4, 6))
    expected[1:3, 1:4], expected[1:3, 4] = 1, 1 / 3  # three fine pixels to a pixel
    corners = np.array([(1, 1), (1, 4.3), (3, 4.3), (3, 1)])
    np.testing.assert_allclose(coverage(corners, (4, 6)), expected)


def test_texture_has_the_strength_asked_for() -> None:
    noise = texture(np.random.default_rng(0), (40, 50), 1, BODY_TEXTURE)
    assert noise.shape == (40, 50, 1)
    assert noise.std() == pytest.approx(BODY_TEXTURE)
