import math

import pytest
import torch
from torch import nn, tensor

from cam_pipeline.ops.acr import MAP_FUNCTIONS, TRANSFORMS, class_token_map, consistency_losses, patch_permutation


def attention(batch=2, layers=3, tokens=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, layers, tokens, tokens, generator=generator).softmax(dim=-1)


def transformed(maps, permutation, prefix_tokens):
    """Attention of a network that follows the transform: rows and columns of the patches permuted."""
    index = torch.cat([torch.arange(prefix_tokens), permutation + prefix_tokens])
    return maps[..., index, :][..., index]


@pytest.mark.parametrize(
    ("kind", "height", "width", "expected"),
    [
        ("hflip", 2, 2, [1, 0, 3, 2]),
        ("hflip", 2, 3, [2, 1, 0, 5, 4, 3]),
        ("vflip", 2, 3, [3, 4, 5, 0, 1, 2]),
        ("rot90", 2, 2, [1, 3, 0, 2]),
    ],
)
def test_permutation(kind, height, width, expected):
    assert patch_permutation(kind, height, width).tolist() == expected


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_permutation_gives_the_tokens_of_the_transformed_image(kind):
    grid = torch.rand(3, 3) if kind == "rot90" else torch.rand(2, 3)
    image = {"hflip": grid.flip(1), "vflip": grid.flip(0), "rot90": torch.rot90(grid)}[kind]
    assert torch.equal(grid.flatten()[patch_permutation(kind, *grid.shape)], image.flatten())


def test_permuted_matrix():
    index = patch_permutation("hflip", 2, 2)
    matrix = torch.arange(16).view(4, 4)
    permuted = matrix[index][:, index]
    assert permuted.tolist() == [[5, 4, 7, 6], [1, 0, 3, 2], [13, 12, 15, 14], [9, 8, 11, 10]]
    assert torch.equal(permuted[index][:, index], matrix)  # an involution
    assert permuted.trace() == matrix.trace() and permuted.sum(dim=1).sort()[0].equal(matrix.sum(dim=1).sort()[0])


def test_a_quarter_turn_is_undone_by_its_inverse():
    index = patch_permutation("rot90", 3, 3)
    assert torch.equal(index[torch.argsort(index)], torch.arange(9)) and not torch.equal(index[index], torch.arange(9))
    matrix = torch.rand(9, 9)
    turned = matrix[index][:, index]
    assert torch.equal(turned.flatten().sort().values, matrix.flatten().sort().values)
    torch.testing.assert_close(turned.trace(), matrix.trace())


def test_permutation_refuses():
    with pytest.raises(ValueError, match="square"):
        patch_permutation("rot90", 2, 3)
    with pytest.raises(ValueError, match="one of hflip"):
        patch_permutation("flip", 2, 2)
    with pytest.raises(ValueError, match="empty"):
        patch_permutation("hflip", 0, 2)


@pytest.mark.parametrize(("kind", "height", "width"), [("hflip", 2, 3), ("vflip", 2, 3), ("rot90", 3, 3)])
@pytest.mark.parametrize("prefix_tokens", [1, 2])
def test_a_network_that_follows_the_transform_loses_nothing(kind, height, width, prefix_tokens):
    permutation = patch_permutation(kind, height, width)
    first = attention(tokens=prefix_tokens + height * width)
    second = transformed(first, permutation, prefix_tokens)
    activation, affinity = consistency_losses(first, second, permutation, prefix_tokens)
    assert activation == 0 and affinity == 0


def test_both_axes_are_undone():
    permutation = patch_permutation("hflip", 2, 3)
    first = attention()
    index = torch.cat([torch.zeros(1, dtype=torch.long), permutation + 1])
    for one_axis in (first[..., index, :], first[..., index]):
        assert consistency_losses(first, one_axis, permutation)[1] > 0


def test_consistency_numbers():
    first = tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]], dtype=torch.float64).view(1, 1, 3, 3)
    second = tensor([[0.5, 0.25, 0.25], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]], dtype=torch.float64).view(1, 1, 3, 3)
    activation, affinity = consistency_losses(first, second, tensor([1, 0]))
    assert float(activation) == pytest.approx(0.05) and float(affinity) == pytest.approx(0.05)


def test_bound_and_mirror_symmetry():
    permutation = patch_permutation("hflip", 2, 3)
    first, second = attention(seed=1), attention(seed=2)
    losses = consistency_losses(first, second, permutation)
    assert all(0 < loss <= 2 / 6 for loss in losses)
    torch.testing.assert_close(consistency_losses(second, first, permutation), losses)


def test_columns_to_the_class_token_do_not_count():
    permutation = patch_permutation("hflip", 2, 3)
    first, second = attention(seed=1), attention(seed=2)
    losses = consistency_losses(first, second, permutation)
    changed = first.clone()
    changed[..., 0] = 9.0
    assert consistency_losses(changed, second, permutation) == losses


def test_gradients_reach_both_views():
    first, second = attention(seed=1).requires_grad_(), attention(seed=2).requires_grad_()
    sum(consistency_losses(first, second, patch_permutation("hflip", 2, 3))).backward()
    assert first.grad.abs().sum() > 0 and second.grad.abs().sum() > 0


def test_splitting_every_patch_halves_both_losses():
    """So a weight that grows with the number of patches keeps the strength."""
    first, second = attention(seed=1).double(), attention(seed=2).double()

    def split(maps):
        index = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1, 7).repeat_interleave(2)])
        share = torch.where(index > 0, 0.5, 1.0)
        return maps[..., index, :][..., index] * share

    plain, halves = torch.arange(6), torch.arange(12)
    before, after = consistency_losses(first, second, plain), consistency_losses(split(first), split(second), halves)
    torch.testing.assert_close([2 * loss for loss in after], list(before))


def test_consistency_refuses_other_shapes():
    permutation = patch_permutation("hflip", 2, 3)
    with pytest.raises(ValueError, match="attention must be twice"):
        consistency_losses(attention(), attention(tokens=8), permutation)
    with pytest.raises(ValueError, match="attention must be twice"):
        consistency_losses(attention(), attention(), permutation, prefix_tokens=2)
    with pytest.raises(ValueError, match=r"each of 0\.\.5 once"):
        consistency_losses(attention(), attention(), torch.tensor([0, 0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match="at least 1"):
        consistency_losses(attention(tokens=6), attention(tokens=6), permutation, prefix_tokens=0)


def test_half_precision_is_compared_in_float32():
    first, second = attention(seed=1).bfloat16(), attention(seed=2).bfloat16()
    activation, _ = consistency_losses(first, second, patch_permutation("hflip", 2, 3))
    assert activation.dtype == torch.float32


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("grad", [0.1, 0.25, 0.2]),  # the positive part after the mean over heads would give 0, .2, .2
        ("cam_grad", [0.05, 0.125, 0.1]),
        ("grad_s", [0.01, 0.0625, 0.04]),
        ("cam_grad_s", [0.005, 0.03125, 0.02]),
    ],
)
@pytest.mark.parametrize("prefix_tokens", [1, 2])
def test_map_functions(mode, expected, prefix_tokens):
    gradient = torch.full((2, 3 + prefix_tokens, 3 + prefix_tokens), 7.0, dtype=torch.float64)
    gradient[:, 0, prefix_tokens:] = tensor([[0.2, -0.1, 0.3], [-0.4, 0.5, 0.1]], dtype=torch.float64)
    weights = torch.full_like(gradient, 0.5)
    found = class_token_map([weights], [gradient], mode, prefix_tokens)
    torch.testing.assert_close(found, tensor(expected, dtype=torch.float64))
    twice = class_token_map([weights, weights], [gradient, gradient], mode, prefix_tokens)
    torch.testing.assert_close(twice, 2 * found)


@pytest.mark.parametrize("mode", MAP_FUNCTIONS)
def test_map_of_a_batch_is_the_maps_of_its_images(mode):
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, 3, 4, 8, 8, generator=generator)  # blocks, images, heads
    weights = attention(6, 4, 8).view(2, 3, 4, 8, 8)
    batch = class_token_map(list(weights), list(gradients), mode, 2)
    assert batch.shape == (3, 6) and (batch >= 0).all()
    for image in range(3):
        alone = class_token_map(list(weights[:, image]), list(gradients[:, image]), mode, 2)
        torch.testing.assert_close(batch[image], alone)


def test_map_refuses():
    one = torch.zeros(2, 3, 3)
    with pytest.raises(ValueError, match="mode must be one of grad"):
        class_token_map([one], [one], "gradient")
    with pytest.raises(ValueError, match="one gradient for each"):
        class_token_map([one], [])
    with pytest.raises(ValueError, match="one gradient for each"):
        class_token_map([], [])
    with pytest.raises(ValueError, match="attention and gradient"):
        class_token_map([one], [torch.zeros(2, 4, 4)])
    with pytest.raises(ValueError, match="attention and gradient"):
        class_token_map([one[:, :2]], [one[:, :2]])
    with pytest.raises(ValueError, match="in all blocks"):
        class_token_map([one, torch.zeros(2, 4, 4)], [one, torch.zeros(2, 4, 4)])
    with pytest.raises(ValueError, match="attention and gradient"):
        class_token_map([one], [one], prefix_tokens=3)


def test_soft_margin_loss_at_zero_logits():
    """Two views of a zero head: what training starts from."""
    loss = nn.MultiLabelSoftMarginLoss()
    assert 2 * float(loss(torch.zeros(2, 3), torch.ones(2, 3))) == pytest.approx(2 * math.log(2))
