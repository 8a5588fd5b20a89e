"""Layers of TSCD beside a classifier: a decoder that segments, and a head that reads affinity from attention.

Sources: the decoder of SegFormer, Xie et al., NeurIPS 2021 (arXiv 2105.15203); affinity from attention of AFA, Ru et
al., CVPR 2022 (arXiv 2203.02664); both as TSCD (Xu et al., AAAI 2023, arXiv 2302.13765) uses them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cam_pipeline.models.attention import attention_modules
from cam_pipeline.models.dfr import resized
from cam_pipeline.models.hybrid import TrunkFeatures, trunk_of
from cam_pipeline.models.levels import Level, feature_levels, stages
from cam_pipeline.ops.dtypes import at_least_float32

FINEST = 4
"""Stride of the decoder's answer, if the network has a level of it. Source: SegFormer."""
OF_TRUNK = 3
"""Levels that the decoder reads from a trunk: the transformer's output is the fourth."""
LEAST_ATTENTION = 1e-6
"""Attention below it, as a multiple of even attention, counts as it."""


def decoder_levels(backbone: nn.Module) -> list[Level]:
    """The levels that a decoder reads, shallow to deep: for `LevelTap(..., levels=..., graph=True)`.

    CNN or hierarchical transformer: the last four stages, but none finer than stride 4. Hybrid: the first three stages
    of its trunk from stride 4 on, and the transformer's last block, which sees what the trunk's last stage saw. A plain
    ViT has one stride: four evenly spaced blocks up to the last, all on its own grid, so that the answer is on it, too.
    Raises NoLevels for a model whose stages timm does not name.
    """
    trunk = trunk_of(backbone)
    if trunk is None:
        return [level for level in feature_levels(backbone) if not 0 < level.stride < FINEST]
    cnn = trunk.network if isinstance(trunk, TrunkFeatures) else trunk
    return [level for level in stages(cnn) if not 0 < level.stride < FINEST][:OF_TRUNK] + stages(backbone)[-1:]


class MlpDecoder(nn.Module):
    """Levels (B, D_l, h_l, w_l), shallow to deep -> logits (B, num_labels, h, w) on the finest of their grids.

    `widths`: channels of the levels. Each is normalised over its channels and brought to `width` of them; resized to
    the finest grid (bilinear, align_corners=False) and concatenated, the deepest first, they are mixed by a 1 x 1
    convolution with BatchNorm and ReLU; after a Dropout2d another gives the logits.
    """

    def __init__(self, widths: Sequence[int], num_labels: int, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(one) for one in widths)  # not all encoders end their stages with one
        self.levels = nn.ModuleList(nn.Conv2d(one, width, 1) for one in widths)
        self.mix = nn.Conv2d(width * len(widths), width, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(dropout)
        self.labels = nn.Conv2d(width, num_labels, 1)
        for layer in [*self.levels, self.mix]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        for layer in [*self.levels, self.labels]:
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.labels.weight, std=0.01)  # the first answers are unsure

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Raises ValueError for another number of levels."""
        if len(levels) != len(self.levels):
            raise ValueError(f"the decoder reads {len(self.levels)} levels, not {len(levels)}")
        size = max((level.shape[-2:] for level in levels), key=math.prod)
        shares = self.mix.weight.chunk(len(levels), dim=1)
        # A level's share of the mixing convolution commutes with resizing: on its own grid it costs less, and nothing
        # needs to be concatenated.
        parts = [
            resized(F.conv2d(layer(norm(level)), share), (size[0], size[1]))
            for layer, norm, level, share in zip(self.levels, self.norms, levels, reversed(shares), strict=True)
        ]
        mixed = self.batch_norm(sum(parts[1:], start=parts[0])).relu()
        logits: Tensor = self.labels(self.dropout(mixed))
        return logits


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps (B, D, h, w)."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class AffinityHead(nn.Module):
    """Attention of some blocks, (B, heads_l, p + N, p + N) each after the softmax -> affinity (B, N, N) in 0..1.

    `heads`: sum over the blocks. Affinity is the sigmoid of a weighted sum over all heads of log(N * attention),
    symmetrised as A + A^T unless `symmetric` is False, as TSCD's released code has it. The sources read the scores
    before the softmax, from which the logarithm differs by a constant for each row; it is 0 where attention is even.
    `prefix_tokens`: p tokens before the patches are left out.
    """

    def __init__(self, heads: int, symmetric: bool = True, prefix_tokens: int = 0) -> None:
        super().__init__()
        self.symmetric, self.prefix_tokens = symmetric, prefix_tokens
        self.sum = nn.Conv2d(heads, 1, 1, bias=False)
        nn.init.kaiming_normal_(self.sum.weight, a=math.sqrt(5), mode="fan_out")
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, attentions: Sequence[Tensor]) -> Tensor:
        """Raises ValueError unless the blocks have so many heads."""
        counts = [attention.shape[1] for attention in attentions]
        if sum(counts) != self.sum.in_channels:
            raise ValueError(f"the head reads {self.sum.in_channels} heads, not {sum(counts)}")
        with torch.autocast(self.sum.weight.device.type, enabled=False):
            parts = []  # block by block, and symmetrised after the sum over heads: no copy of all attention is made
            for attention, weights in zip(attentions, self.sum.weight.split(counts, dim=1), strict=True):
                between = at_least_float32(attention, "attention")[:, :, self.prefix_tokens :, self.prefix_tokens :]
                between = (between * between.shape[-1]).clamp_min(LEAST_ATTENTION).log()
                parts.append(torch.einsum("bhij,h->bij", between, weights[0, :, 0, 0]))
            scores = sum(parts[1:], start=parts[0])
            scores = (scores + scores.transpose(1, 2) if self.symmetric else scores) + self.bias
        return scores.sigmoid()


def affinity_blocks(network: nn.Module, count: int = 2) -> tuple[list[int], int]:
    """The last `count` blocks of a timm ViT, for `AttentionTap(..., heads=True)`, and the heads they have together.

    All blocks, if it has fewer. Raises NoAttention for a network without attention between all tokens.
    """
    modules: list[Any] = attention_modules(network)
    blocks = list(range(len(modules)))[-count:]
    return blocks, sum(int(modules[block].num_heads) for block in blocks)
