"""Dense energy: where labels are unsure, pixels of one colour that are near each other should get the same answer.

Sources: the dense energy loss of RRM, Zhang et al., AAAI 2020 (arXiv 1911.08039), which AFA and TSCD use, too. Theirs
counts all pairs of an image; ours counts those of a window that may have gaps, by the code of the regularised loss in
the style of DFR. Their released gradient is not that of their value; ours is, with a constant gate.
"""

import torch
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32
from cam_pipeline.ops.pairs import Kernel, Quadratic, Weigh, check_maps, ends, offsets_within


def dense_energy_loss(
    probabilities: Tensor,
    image: Tensor,
    labels: Tensor,
    roi: Tensor | None = None,
    radius: int = 5,
    dilation: int = 4,
    sigma_xy: float = 25.0,
    sigma_rgb: float = 15 / 255,
    ignore_index: int = 255,
) -> Tensor:
    """Sum over pairs i != j of g_i * w_ij * (1 - <p_i, p_j>), divided by the number of pixels in `roi`.

    `probabilities` (B, K, h, w); `image` (B, 3, h, w) in 0..1, or in the unit of `sigma_rgb`; `labels` (B, h, w);
    `roi` (B, 1, h, w) of 0 and 1: pixels at 0, such as padding, have no pairs and do not count. All on one grid.
    w_ij = exp(-|xy_i - xy_j|^2 / (2 sigma_xy^2) - |rgb_i - rgb_j|^2 / (2 sigma_rgb^2)). The gate g_i is
    `doubt(probabilities, labels)`, a constant. Pairs lie at most `radius` steps of `dilation` pixels apart in rows and
    columns; each counts in both directions. No pair gives 0, with a graph; no gradient reaches the image.

    In logits the gradient is that of -sum g_i * w_ij * <p_i, p_j>, the form of the sources, which also divide by the
    number of images and multiply by 1e-7. The sigmas are theirs: 100 pixels and 15 of 255 grey levels, on a grid of
    stride 4, where the default window reaches 80 pixels. Raises ValueError for other shapes or ranges.
    """
    probabilities, image = at_least_float32(probabilities, "probabilities"), at_least_float32(image, "image")
    check_maps(probabilities, image, roi)
    _check_choices(probabilities, labels, radius, dilation, sigma_xy, sigma_rgb)
    inside = torch.ones_like(probabilities[:, :1]) if roi is None else roi.to(probabilities.dtype)
    gate = doubt(probabilities, labels, ignore_index)
    with torch.autocast(probabilities.device.type, enabled=False):
        weigh = gated(Kernel(image.detach(), None, 0.0, sigma_xy, sigma_rgb, inside), gate)
        offsets = offsets_within(radius, probabilities.shape[2], probabilities.shape[3], dilation)
        energy: Tensor = Quadratic.apply(probabilities, weigh, offsets)[0]
    return energy / inside.sum().clamp(min=1)


@torch.no_grad()
def doubt(probabilities: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """How much each pixel (B, h, w) counts: 1 without a label, else what its best probability lacks to 1.

    The sources subtract from `roi` instead of 1; outside of it no pair counts here.
    """
    lacking = (1 - probabilities.amax(dim=1)).clamp(min=0)
    return torch.where(labels == ignore_index, 1, lacking)


def gated(weigh: Weigh, gate: Tensor) -> Weigh:
    """Weights of pairs of which the first pixel counts as much as its `gate` (B, h, w): the same for (i, j) and (j, i).

    The energy depends on the sum of both directions alone, (g_i + g_j) * w_ij, so each gets half of it. This makes the
    weights symmetric, and the gradient -2 W p of such an energy the exact one: -(g (W p) + W (g p)).
    """

    def weights(dy: int, dx: int) -> Tensor:
        first, second = ends(gate, dy, dx)
        return weigh(dy, dx) * ((first + second) / 2)

    return weights


def _check_choices(
    probabilities: Tensor, labels: Tensor, radius: int, dilation: int, sigma_xy: float, sigma_rgb: float
) -> None:
    """Raise ValueError for labels of another shape or type, or numbers out of range."""
    expected = (len(probabilities), *probabilities.shape[2:])
    if labels.shape != expected or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers {expected}, not {labels.dtype} {tuple(labels.shape)}")
    if radius < 1 or dilation < 1:
        raise ValueError(f"radius and dilation must be 1 or more, but they are {radius} and {dilation}")
    if not (sigma_xy > 0 and sigma_rgb > 0):
        raise ValueError(f"sigma_xy and sigma_rgb must be above 0, but they are {sigma_xy} and {sigma_rgb}")
