"""Exits at several depths of a segmenter's encoder: they learn beside it, and are gone when it is used.

Source: Zhang et al., "Self-Regulation for Semantic Segmentation", ICCV 2021 (arXiv 2108.09702).
"""

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

LIGHT, RELEASED = 64, 256
"""Channels of a light head's features, and of a head's in the released code."""


class Exit(NamedTuple):
    """What an exit says: features (B, H, h, w), logits of labels (B, K, h, w) and of their presence (B, K)."""

    features: Tensor
    logits: Tensor
    presence: Tensor


class ExitHead(nn.Module):
    """Features of an encoder (B, D, h, w) -> Exit. `light`: see `self_regulation.heads`."""

    def __init__(self, width: int, num_labels: int, light: bool = True) -> None:
        super().__init__()
        self.body = light_layers(width) if light else released_layers(width)
        self.labels = nn.Conv2d(LIGHT if light else RELEASED, num_labels, 1)
        self.presence = nn.Linear(num_labels, num_labels)

    def forward(self, level: Tensor) -> Exit:
        features: Tensor = self.body(level)
        logits: Tensor = self.labels(features)
        return Exit(features, logits, self.presence(logits.mean(dim=(2, 3))))


def light_layers(width: int) -> nn.Sequential:
    """1 x 1, 3 x 3 depthwise, 1 x 1; the normalisation has no parameters of its own."""
    return nn.Sequential(
        nn.Conv2d(width, LIGHT, 1, bias=False),
        nn.BatchNorm2d(LIGHT, affine=False),
        nn.ReLU(),
        nn.Conv2d(LIGHT, LIGHT, 3, padding=1, groups=LIGHT, bias=False),
        nn.Conv2d(LIGHT, LIGHT, 1, bias=False),
        nn.BatchNorm2d(LIGHT, affine=False),
        nn.ReLU(),
    )


def released_layers(width: int) -> nn.Sequential:
    """Two 3 x 3, as in the released code."""
    layers: list[nn.Module] = []
    for given in (width, RELEASED):
        layers += [nn.Conv2d(given, RELEASED, 3, padding=1), nn.BatchNorm2d(RELEASED), nn.ReLU()]
    return nn.Sequential(*layers)


class Exits(nn.Module):
    """Heads on all levels but the last, whose exit is the segmenter's own answer.

    `widths`: channels of the levels, shallow to deep. The last one's features are made by a 1 x 1 convolution.
    """

    def __init__(self, widths: Sequence[int], num_labels: int, light: bool = True) -> None:
        super().__init__()
        self.heads = nn.ModuleList(ExitHead(width, num_labels, light) for width in widths[:-1])
        hidden = LIGHT if light else RELEASED
        self.deepest = nn.Sequential(nn.Conv2d(widths[-1], hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.presence = nn.Linear(num_labels, num_labels)

    def forward(self, levels: Sequence[Tensor], logits: Tensor) -> list[Exit]:
        """All exits, shallow to deep; `logits` (B, K, H, W) is the segmenter's answer."""
        shallow = [head(level) for head, level in zip(self.heads, levels[:-1], strict=True)]
        return [*shallow, Exit(self.deepest(levels[-1]), logits, self.presence(logits.mean(dim=(2, 3))))]


class PyramidTap:
    """Keeps the features of an encoder's last forward pass, those of `levels`, while it is open.

    with PyramidTap(encoder, [1, 2, 4]) as tap:
        logits = segmenter(images)
    levels = tap.take()   # (B, D_l, h_l, w_l) each, with a graph
    """

    def __init__(self, encoder: nn.Module, levels: Sequence[int]) -> None:
        self.encoder, self.levels = encoder, levels
        self._seen: list[Tensor] = []
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> Self:
        def keep(module: nn.Module, inputs: object, output: Sequence[Tensor]) -> None:
            self._seen = [output[level] for level in self.levels]

        self._handle = self.encoder.register_forward_hook(keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()
        if kind is not None:
            self._seen = []

    def take(self) -> list[Tensor]:
        """The features, which are then forgotten."""
        seen, self._seen = self._seen, []
        return seen


def exit_levels(reductions: Sequence[int], shallowest: int) -> list[int]:
    """The levels of an encoder that have exits: those of a stride of `shallowest` or more, by their strides.

    Raises ValueError if the last one alone is left.
    """
    last = len(reductions) - 1
    levels = [level for level, stride in enumerate(reductions[:-1]) if stride >= shallowest]
    if not levels:
        raise ValueError(f"no level but the last has a stride of {shallowest} or more: {list(reductions)}")
    return [*levels, last]
