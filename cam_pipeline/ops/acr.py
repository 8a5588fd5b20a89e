"""ACR: consistency of a transformer's attention between two views, and class maps from attention gradients.

Source: Sun et al., "All-pairs Consistency Learning for Weakly Supervised Semantic Segmentation", ICCV Workshops 2023
(arXiv 2308.04321); the gradient maps are variants of GETAM. Tokens: `prefix_tokens` (class, distillation, registers)
come first, then the patches row by row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32

TRANSFORMS = ("hflip", "vflip", "rot90")
MAP_FUNCTIONS = ("grad", "grad_s", "cam_grad", "cam_grad_s")


def patch_permutation(kind: str, height: int, width: int) -> Tensor:
    """Indices (height * width,) such that `tokens[..., indices, :]` are the patch tokens of the transformed image.

    `kind`: `hflip` (left to right), `vflip` (top to bottom) or `rot90` (a quarter turn counter-clockwise). Raises
    ValueError for another kind, an empty grid, or `rot90` of a grid that is not square.
    """
    if kind not in TRANSFORMS:
        raise ValueError(f"kind must be one of {', '.join(TRANSFORMS)}, not {kind!r}")
    if min(height, width) < 1:
        raise ValueError(f"the grid must not be empty, but is {height} x {width}")
    if kind == "rot90" and height != width:
        raise ValueError(f"rot90 needs a square grid, not {height} x {width}")
    grid = torch.arange(height * width).view(height, width)
    turned = {"hflip": grid.flip(1), "vflip": grid.flip(0), "rot90": grid.rot90()}[kind]
    return turned.reshape(-1)


def transform_images(images: Tensor, kind: str) -> Tensor:
    """Images (..., H, W) transformed as `patch_permutation` of the same kind does. Raises ValueError like it."""
    if kind not in TRANSFORMS:
        raise ValueError(f"kind must be one of {', '.join(TRANSFORMS)}, not {kind!r}")
    if kind == "rot90" and images.shape[-1] != images.shape[-2]:
        raise ValueError(f"rot90 needs square images, not {images.shape[-2]} x {images.shape[-1]}")
    return images.rot90(dims=(-2, -1)) if kind == "rot90" else images.flip(-1 if kind == "hflip" else -2)


def consistency_losses(
    attention_a: Tensor, attention_b: Tensor, permutation: Tensor, prefix_tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """Region activation and region affinity consistency: two scalars, 0 for attention that follows the transform.

    Attention of both views (B, L, p + N, p + N), head-averaged, rows summing to 1. The patch tokens of `attention_b`
    are `tokens[permutation]`, which is undone here, on rows and columns. Activation: mean |difference| of row 0 (the
    class token) over the patches; affinity: of the patch rows over the patch columns. Both are plain means over batch,
    layers and entries, so at most 2 / N: weigh them by a factor that grows with N. Columns of prefix tokens are left
    out. Gradients reach both views. Raises ValueError for other shapes, or a `permutation` that is none. Source:
    section 3.2 of the paper.
    """
    tokens = prefix_tokens + len(permutation)
    if attention_a.shape != attention_b.shape or attention_a.shape[-2:] != (tokens, tokens) or attention_a.ndim != 4:
        shapes = f"{tuple(attention_a.shape)} and {tuple(attention_b.shape)}"
        raise ValueError(f"attention must be twice (B, L, {tokens}, {tokens}) for this permutation, not {shapes}")
    if prefix_tokens < 1:
        raise ValueError("region activation is read from the class token: prefix_tokens must be at least 1")
    if permutation.sort().values.tolist() != list(range(len(permutation))):
        raise ValueError(f"permutation must hold each of 0..{len(permutation) - 1} once, not {permutation.tolist()}")
    inverse = torch.argsort(permutation).to(attention_b.device)
    first = at_least_float32(attention_a, "attention_a")[..., prefix_tokens:]
    second = at_least_float32(attention_b, "attention_b")[..., prefix_tokens:].index_select(-1, inverse)
    activation = (first[..., 0, :] - second[..., 0, :]).abs().mean()
    patches = second[..., prefix_tokens:, :].index_select(-2, inverse)
    return activation, (first[..., prefix_tokens:, :] - patches).abs().mean()


def class_token_map(
    attentions: Sequence[Tensor], gradients: Sequence[Tensor], mode: str = "grad", prefix_tokens: int = 1
) -> Tensor:
    """Map of one class over the patches: attention and gradient (heads, p + N, p + N) of each block -> (N,) >= 0.

    With A the attention of a block, G the gradient of the class's logit with respect to it, [.]+ the positive part and
    <.> the mean over heads, a block gives `grad` <[G]+>, `grad_s` <[G]+>^2, `cam_grad` <[G * A]+> or `cam_grad_s`
    <[G * A]+> * <[G]+>. The map is row 0 (class token) of the sum over blocks, at the patch columns. There may be
    leading dimensions before the heads. No affinity, no normalisation. Raises ValueError for another mode or shapes.
    """
    if mode not in MAP_FUNCTIONS:
        raise ValueError(f"mode must be one of {', '.join(MAP_FUNCTIONS)}, not {mode!r}")
    if not attentions or len(attentions) != len(gradients):
        raise ValueError(f"one gradient for each attention, not {len(gradients)} for {len(attentions)}")
    total: Tensor | None = None
    for attention, gradient in zip(attentions, gradients, strict=True):
        square = attention.ndim >= 3 and attention.shape[-1] == attention.shape[-2] > prefix_tokens >= 1
        if not square or gradient.shape != attention.shape or attention.shape != attentions[0].shape:
            shapes = f"{tuple(attention.shape)}, {tuple(gradient.shape)} with p = {prefix_tokens}"
            raise ValueError(f"attention and gradient must be (heads, p + N, p + N) in all blocks, not {shapes}")
        # Only the class token's row is kept, so only it is computed.
        weight = at_least_float32(attention[..., 0, prefix_tokens:], "attention")
        slope = at_least_float32(gradient[..., 0, prefix_tokens:], "gradient")
        block = _block_map(weight, slope, mode)
        total = block if total is None else total + block
    assert total is not None
    return total.relu()


def propagate_attention(maps: Tensor, affinity: Tensor, steps: int = 1, normalize: bool = False) -> Tensor:
    """Each patch gathers the maps of the patches it attends to: maps (B, K, N), affinity (B, N, N) -> (B, K, N).

    `steps` times m_i <- sum_j affinity_ij m_j; `normalize` first divides each row by its sum, so that a constant map
    stays constant. Raises ValueError for other shapes or negative `steps`. Source: section 3.3 of the paper.
    """
    if maps.ndim != 3 or affinity.shape != (len(maps), maps.shape[2], maps.shape[2]):
        raise ValueError(f"maps (B, K, N) and affinity (B, N, N) do not fit: {tuple(maps.shape)}, {affinity.shape}")
    if steps < 0:
        raise ValueError(f"steps must not be negative, but is {steps}")
    maps, affinity = at_least_float32(maps, "maps"), at_least_float32(affinity, "affinity")
    if normalize:
        affinity = affinity / affinity.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(affinity.dtype).tiny)
    with torch.autocast(maps.device.type, enabled=False):  # it would lower the product to half precision
        for _ in range(steps):
            maps = torch.einsum("bij,bkj->bki", affinity, maps)
    return maps


def _block_map(attention: Tensor, gradient: Tensor, mode: str) -> Tensor:
    """One block's map from the class token's rows (..., heads, N)."""
    positive = gradient.relu().mean(dim=-2)
    if mode == "grad":
        return positive
    if mode == "grad_s":
        return positive.square()
    product = (gradient * attention).relu().mean(dim=-2)
    return product if mode == "cam_grad" else product * positive
