"""Read the attention of a vision transformer during a forward pass.

    with AttentionTap(network) as tap:
        network(images)
    first, *others = tap.take()     # (B, N, N) for each block, averaged over heads

Only the blocks that are read compute attention unfused, and they are put back afterwards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

AttentionHook = Callable[[int, Tensor], Tensor | None]


class NoAttention(ValueError):
    """The network has no blocks with attention between all tokens."""


def attention_modules(network: nn.Module) -> list[nn.Module]:
    """The attention module of every block of a timm ViT, in order; `network` is the ViT or has it as `backbone`.

    Raises NoAttention for other networks, such as a CNN or a Swin, whose attention is not between all tokens.
    """
    backbone: Any = getattr(network, "backbone", network)
    blocks: list[Any] = [getattr(block, "attn", None) for block in getattr(backbone, "blocks", ())]
    found: list[nn.Module] = [
        module for module in blocks if hasattr(module, "fused_attn") and hasattr(module, "attn_drop")
    ]
    # Attention without a fused form mixes heads after the softmax (CaiT); a temperature means attention over channels.
    other = len(found) != len(blocks) or any(
        hasattr(module, name) for module in found for name in ("temperature", "lambda_q1")
    )
    if not found or other or not hasattr(backbone, "num_prefix_tokens"):
        raise NoAttention(f"{type(backbone).__name__} has no blocks with attention between all tokens")
    return found


def block_indices(count: int, chosen: Sequence[int]) -> list[int]:
    """Sorted indices of the `chosen` among `count` blocks; negative numbers count from the end, none chosen: all.

    Raises ValueError for a number out of range.
    """
    for index in chosen:
        if not -count <= index < count:
            raise ValueError(f"there is no block {index}: the network has {count}, numbered 0 to {count - 1}")
    return sorted({index % count for index in chosen}) or list(range(count))


@contextmanager
def attention_hooked(network: nn.Module, blocks: Sequence[int], hook: AttentionHook) -> Iterator[None]:
    """Inside, `hook(block, attention)` gets the softmax (B, heads, N, N) of each of `blocks` as it is computed.

    A tensor that the hook returns replaces it. On leaving, hooks and fused attention are as they were. Raises
    NoAttention, and ValueError for a block that is not there.
    """
    modules: list[Any] = attention_modules(network)
    chosen = block_indices(len(modules), blocks)
    fused = [modules[index].fused_attn for index in chosen]
    handles: list[RemovableHandle] = []

    def hook_of(index: int) -> Callable[[nn.Module, tuple[Tensor]], Tensor | None]:
        return lambda module, inputs: hook(index, inputs[0])

    try:
        for index in chosen:
            modules[index].fused_attn = False  # the fused form never holds the softmax
            handles.append(modules[index].attn_drop.register_forward_pre_hook(hook_of(index)))
        yield
    finally:
        for index, setting in zip(chosen, fused, strict=True):
            modules[index].fused_attn = setting
        for handle in handles:
            handle.remove()


@torch.no_grad()
def attend_to_similar(network: nn.Module, strength: float) -> None:
    """Initialise queries and keys of every head as one random projection, so that tokens attend to similar tokens.

    The product of the two weights is `strength` times a projection onto the head's share of the dimensions; biases
    stay. Prefix tokens start at zero, so they attend uniformly; otherwise they attend to themselves and never learn.
    A variant of the mimetic initialisation of Trockman and Kolter 2023 (arXiv 2305.09828), whose product is the
    identity plus noise. Raises NoAttention, also for blocks without a common layer for queries, keys and values.
    """
    for attention in attention_modules(network):
        joint = getattr(attention, "qkv", None)
        heads = int(attention.num_heads)  # type: ignore[arg-type]
        if not isinstance(joint, nn.Linear) or joint.out_features % (3 * heads):
            raise NoAttention("its blocks have no common layer for queries, keys and values")
        side = joint.out_features // (3 * heads)
        for head in range(heads):
            columns = torch.linalg.qr(torch.randn(joint.in_features, side)).Q
            for first in (0, heads * side):
                joint.weight[first + head * side : first + (head + 1) * side] = strength**0.5 * columns.T
    backbone: Any = getattr(network, "backbone", network)
    for name in ("cls_token", "dist_token", "reg_token"):
        if isinstance(getattr(backbone, name, None), nn.Parameter):
            getattr(backbone, name).zero_()
    positions = getattr(backbone, "pos_embed", None)
    patches = backbone.patch_embed.num_patches
    if isinstance(positions, nn.Parameter) and positions.shape[1] > patches:
        positions[:, : backbone.num_prefix_tokens] = 0


class AttentionTap:
    """Collects the attention of each forward pass made inside `with`.

    `blocks` chooses some (negative: from the end; empty: all). Maps are (B, N, N), averaged over heads at once, or
    (B, heads, N, N) with `heads=True`. The N tokens are the prefix tokens, then the patches row by row. Rows sum to 1,
    as attention dropout comes later. Gradients flow through the maps if the forward pass records any.
    """

    def __init__(self, network: nn.Module, blocks: Sequence[int] = (), *, heads: bool = False) -> None:
        self.blocks = block_indices(len(attention_modules(network)), blocks)
        self._network = network
        self._heads = heads
        self._maps: dict[int, Tensor] = {}
        self._open: AbstractContextManager[None] | None = None

    def __enter__(self) -> Self:
        self._open = attention_hooked(self._network, self.blocks, self._collect)
        self._open.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._open is not None
        self._open.__exit__(kind, error, at)
        self._open = None

    def take(self) -> list[Tensor]:
        """The maps of the last forward pass, a tensor for each of `blocks`; the tap then forgets them.

        Raises RuntimeError if no forward pass was completed since the last call, so that maps are never those of
        another input.
        """
        maps = self._maps
        self._maps = {}
        if list(maps) != self.blocks:
            raise RuntimeError("no forward pass since the attention was last taken")
        return list(maps.values())

    def _collect(self, block: int, attention: Tensor) -> None:
        if block == self.blocks[0]:
            self._maps = {}
        self._maps[block] = attention if self._heads else attention.mean(dim=1)


class Affinity:
    """Mean over some blocks of the head-averaged attention between patches: (B, N, N), filled by `see`.

    Row i holds the weights with which patch i gathers from all patches; it sums to at most 1.
    """

    def __init__(self, prefix_tokens: int) -> None:
        self._prefix = prefix_tokens
        self._sum: Tensor | None = None
        self._blocks = 0

    def see(self, attention: Tensor) -> None:
        """Add the attention (B, heads, p + N, p + N) of one block."""
        with torch.no_grad():
            part = attention[:, :, self._prefix :, self._prefix :].mean(dim=1)
            part = part.to(torch.promote_types(part.dtype, torch.float32))
            self._sum = part if self._sum is None else self._sum.add_(part)
        self._blocks += 1

    @property
    def mean(self) -> Tensor:
        """The mean so far. Raises RuntimeError if no block was seen."""
        if self._sum is None:
            raise RuntimeError("no forward pass was seen")
        return self._sum / self._blocks
