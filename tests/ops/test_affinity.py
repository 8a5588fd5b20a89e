import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from cam_pipeline.ops.affinity import feature_walk, random_walk


def random_scores(batch=2, channels=4, height=2, width=3, seed=0):
    return torch.rand(
        batch, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def random_affinity(batch=2, cells=6, seed=1):
    return torch.rand(batch, cells, cells, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_features(batch=2, channels=3, height=2, width=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def dense_affinity(features, radius=None):
    """Positive cosine of every pair of cells, one by one."""
    batch, _, height, width = features.shape
    matrix = features.new_zeros(batch, height * width, height * width)
    for i in range(height * width):
        for j in range(height * width):
            (y, x), (v, u) = divmod(i, width), divmod(j, width)
            if not radius or max(abs(y - v), abs(x - u)) <= radius:
                matrix[:, i, j] = functional.cosine_similarity(features[..., y, x], features[..., v, u]).clamp(min=0)
    return matrix


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, tensor(expected, dtype=found.dtype), atol=atol, rtol=0)


P12B = tensor(
    [[0.9, 0.8, 0.1, 0.1], [0.8, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.7], [0.1, 0.1, 0.7, 0.9]], dtype=torch.float64
)


@pytest.mark.parametrize("size", [(1, 4), (2, 2), (4, 1)])
def test_worked_numbers(size):
    """The second of four cells has a weak class score and a strong neighbour."""
    scores = tensor([[0.35] * 4, [1, 0.2, 0, 0]], dtype=torch.float64).softmax(dim=0)
    assert (scores[1] > scores[0]).tolist() == [True, False, False, False]
    column = P12B.square()
    close(1 - 0.1 / (column.sum(dim=0) + 0.1), [0.936306, 0.936306, 0.929577, 0.929577], 1e-6)
    walked = random_walk(scores.view(1, 2, *size), P12B[None], power=2, eps=0.1)
    assert walked.shape == (1, 2, *size)
    background, foreground = walked.flatten(2)[0]
    close(background, [0.403509, 0.424563, 0.543244, 0.543244], 1e-6)
    close(foreground, [0.532797, 0.511743, 0.386333, 0.386333], 1e-6)
    assert (foreground > background).tolist() == [True, True, False, False]


def test_by_hand_on_an_affinity_that_is_not_symmetric():
    """Columns are divided by their sums and a cell gathers along its column, not along its row."""
    affinity = tensor([[[1.0, 3.0], [1.0, 1.0]]], dtype=torch.float64)
    scores = tensor([[[[8.0], [4.0]]]], dtype=torch.float64)
    close(random_walk(scores, affinity), [[[[6.0], [7.0]]]])
    close(random_walk(scores, affinity, power=2), [[[[6.0], [7.6]]]])
    close(random_walk(scores, affinity, eps=2), [[[[3.0], [28 / 6]]]])
    close(random_walk(scores, affinity, steps=2), [[[[6.5], [6.25]]]])


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_equals_the_sum_cell_by_cell(steps):
    scores, affinity = random_scores(), random_affinity()
    transition = affinity**1.5
    transition = transition / (transition.sum(dim=1, keepdim=True) + 0.1)
    expected = scores.clone()
    for _ in range(steps):
        before = expected.clone()
        for j in range(6):
            total = sum(before[..., i // 3, i % 3] * transition[:, i, j].unsqueeze(1) for i in range(6))
            expected[..., j // 3, j % 3] = total
    torch.testing.assert_close(random_walk(scores, affinity, steps, 1.5, 0.1), expected)


def test_a_constant_map_stays_and_the_identity_changes_nothing():
    affinity, ones = random_affinity(), torch.ones(2, 1, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(random_walk(ones, affinity, steps=4, power=3), ones)
    identity = torch.eye(6, dtype=torch.float64).expand(2, -1, -1)
    assert torch.equal(random_walk(random_scores(), identity, steps=4, power=3), random_scores())


def test_images_and_channels_do_not_meet():
    scores, affinity = random_scores(), random_affinity()
    both = random_walk(scores, affinity, steps=2)
    for image in range(2):
        for channel in range(4):
            alone = random_walk(scores[image : image + 1, channel : channel + 1], affinity[image : image + 1], steps=2)
            torch.testing.assert_close(both[image, channel], alone[0, 0])


def test_a_cell_without_affinity_gets_zero():
    affinity = random_affinity()
    affinity[..., 4] = 0
    walked = random_walk(random_scores(), affinity)
    assert walked.isfinite().all() and (walked[..., 1, 1] == 0).all()
    features = random_features()
    features[..., 1, 1] = 0
    walked = feature_walk(random_scores(), features)
    assert walked.isfinite().all() and (walked[..., 1, 1] == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    radius=st.sampled_from([None, 0, 1, 2, 9]),
    chunk=st.integers(1, 40),
    steps=st.integers(0, 3),
    power=st.sampled_from([0.5, 1.0, 2.0]),
    eps=st.sampled_from([0.0, 0.1]),
)
def test_feature_walk_is_the_walk_on_the_dense_affinity(size, radius, chunk, steps, power, eps):
    scores, features = random_scores(2, 3, *size), random_features(2, 4, *size)
    expected = random_walk(scores, dense_affinity(features, radius), steps, power, eps)
    found = feature_walk(scores, features, radius, steps, power, eps, chunk)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_feature_walk_does_not_see_the_length_of_features():
    scores, features = random_scores(), random_features()
    walked = feature_walk(scores, features, radius=1, power=2)
    torch.testing.assert_close(feature_walk(scores, 100 * features, radius=1, power=2), walked)


def test_feature_walk_makes_only_so_many_columns():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                self.numel = max(self.numel, made.numel())
            return made

    scores, features = random_scores(1, 2, 20, 30), random_features(1, 4, 20, 30)
    for radius, cells in [(None, 600), (3, 9 * 30)]:  # 50 columns lie in up to 3 rows and reach 3 more on both sides
        with Largest() as largest:
            feature_walk(scores, features, radius, chunk=50)
        assert largest.numel == 50 * cells


def test_gradients():
    scores, affinity = random_scores(1, 2).requires_grad_(), (random_affinity(1) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, a: random_walk(s, a, 2, 2.0, 0.1), (scores, affinity))
    features = random_features(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, f: feature_walk(s, f, 1, 2, 2.0, 0.1, chunk=4), (scores, features))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_walked_in_float32(dtype):
    scores, affinity, features = random_scores().to(dtype), random_affinity().to(dtype), random_features().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        walked, by_features = random_walk(scores, affinity), feature_walk(scores, features)
    assert walked.dtype == by_features.dtype == torch.float32
    assert torch.equal(walked, random_walk(scores.float(), affinity.float()))
    assert torch.equal(by_features, feature_walk(scores.float(), features.float()))
    assert random_walk(scores, affinity.double()).dtype == torch.float64


def test_arguments_are_not_changed():
    given = random_scores(), random_affinity(), random_features()
    before = [one.clone() for one in given]
    random_walk(given[0], given[1], 2, 2.0, 0.1)
    feature_walk(given[0], given[2], 1, 2, 2.0, 0.1, 4)
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True))


SCORES, AFFINITY, FEATURES = random_scores(), random_affinity(), random_features()


@pytest.mark.parametrize(
    "affinity",
    [AFFINITY[0], AFFINITY[:1], AFFINITY[:, :5], AFFINITY[..., :5], -AFFINITY, AFFINITY * torch.nan, AFFINITY.long()],
)
def test_affinity_is_checked(affinity):
    with pytest.raises(ValueError, match="affinity"):
        random_walk(SCORES, affinity)


@pytest.mark.parametrize("features", [FEATURES[0], FEATURES[:1], FEATURES[:, :0], FEATURES.mT, FEATURES.long()])
def test_features_are_checked(features):
    with pytest.raises(ValueError, match="features"):
        feature_walk(SCORES, features)


@pytest.mark.parametrize("scores", [SCORES[0], SCORES[:, :0], SCORES.flatten(2), SCORES.long()])
def test_scores_are_checked(scores):
    with pytest.raises(ValueError, match="scores"):
        random_walk(scores, AFFINITY)
    with pytest.raises(ValueError, match="scores"):
        feature_walk(scores, FEATURES)


@pytest.mark.parametrize("changed", [{"steps": -1}, {"power": 0}, {"power": -1.0}, {"eps": -0.1}])
def test_settings_are_checked(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        random_walk(SCORES, AFFINITY, **changed)
    with pytest.raises(ValueError, match=next(iter(changed))):
        feature_walk(SCORES, FEATURES, **changed)


@pytest.mark.parametrize("changed", [{"chunk": 0}, {"radius": -1}])
def test_chunk_and_radius_are_checked(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        feature_walk(SCORES, FEATURES, **changed)
