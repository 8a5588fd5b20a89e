"""What an objective is: something a network is trained for, which adds named terms to the loss.

In each step the network sees the images of a batch and, behind them, the views that objectives add. Then every
objective gives its terms, and the trainer minimises the sum of all terms. A method for the classifier is an objective
in a file of its own, with a line in `OBJECTIVES` (training/objectives/__init__.py). A minimal one:

    class ToyObjective(Objective):
        def __init__(self, classifier: Classifier, config: Config, labels: Tensor) -> None:
            self.settings = config.toy

        def terms(self, seen: ForwardPass) -> list[Terms]:
            features, logits = seen.output
            return [Terms({"toy.size": logits.square().mean()}, rise(seen.progress, self.settings.ramp))]
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cam_pipeline.data.batches import MoreViews

Batch = dict[str, Any]
"""Collated items of `TrainingViews`, tensors on the network's device."""


@dataclass(frozen=True)
class Terms:
    """Terms of the loss that share a weight. Together they add `weight` times their sum.

    `values` maps the name of each term to a scalar, or to (B,) with a value for each image, whose mean then counts. The
    history shows `weight` times the term under this name, which begins with the method's, as in "toy.size". What weighs
    one term alone is already in its value; `weight` is for what the terms share, such as a ramp.
    `items` is the number of items, in this process, that the values are means over. Unset: the images of the batch.
    `shown`: these items are pixels that show an image, labelled or not; else they are about labelled ones.
    `figures` are scalars that the history shows as they are; they are no part of the loss.
    All processes must give the same names in the same order.
    """

    values: Mapping[str, Tensor]
    weight: float = 1.0
    items: Tensor | None = None
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    shown: bool = False


@dataclass(frozen=True)
class ForwardPass:
    """What the network saw in a step and what it returned, as one objective is shown it.

    `batch` has "image" (B, 3, H, W) uint8, "index" (B,), "box" (B, 4), and "labels" (B, C) or "mask" (B, H, W).
    `output` is what the network returned for all views: the images, then the views that objectives added.
    `progress` is the share of all training steps that are done.
    `sizes` has the number of images, then the number of views of each objective that added some; `own` is this
    objective's place in it.
    """

    batch: Batch
    output: Any
    progress: float
    sizes: tuple[int, ...]
    own: int

    def of_images(self, values: Tensor) -> Tensor:
        """The part of `values`, which has a row for each view, that belongs to the images of the batch."""
        return values if len(self.sizes) == 1 else values.split(self.sizes)[0]

    def of_images_and_views(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The parts that belong to the images and to the views that this objective added."""
        parts = values.split(self.sizes)
        return parts[0], parts[self.own]


class Objective(ABC):
    """Something a network is trained for.

    An objective is made before the network is placed on its device and before its optimiser. It may then give the
    network layers of its own. What must survive a restart, such as a moving average of weights, belongs in the network
    too, as a buffer or as a module without gradients: checkpoints hold the network, not the objectives.
    """

    taps: Sequence[AbstractContextManager[object]] = ()
    """Are open while the network sees the views, and keep what it does not return (AttentionTap, LevelTap)."""

    more_views: MoreViews | None = None
    """Views that the sampler puts into every batch beside its own (an image bank)."""

    main_weight: float = 1.0
    """Weight of the classification of the images beside this objective, such as 1/2 for a mean over two scales."""

    def before_pass(self, progress: float) -> None:
        """Called before every forward pass, before `added_views`; `progress` as in ForwardPass."""
        return None

    def added_views(self, images: Tensor) -> Tensor | None:
        """Views of the size of the images (B, 3, H, W) that join them in the same forward pass. None: no views.

        Random numbers drawn here, such as a transform, are the same in all processes, and follow from the seed and the
        step; in `terms` they are not the same. An objective that needs a pass of another size runs the network again in
        `terms`.
        """
        return None

    @abstractmethod
    def terms(self, seen: ForwardPass) -> list[Terms]:
        """The terms that the objective adds to the loss of a batch, with gradients."""

    def after_step(self) -> None:
        """Called after every optimiser step, for a moving average of the weights, say."""
        return None


def rise(progress: float, ramp: float) -> float:
    """A weight's share that rises evenly from 0 to 1 over the first `ramp` of the training; 1 without a ramp."""
    return min(1.0, progress / ramp) if ramp else 1.0


def rise_after(start: float, progress: float, ramp: float) -> float:
    """A weight's share that is 0 up to `start` and then rises evenly to 1 over `ramp`, all shares of the training."""
    return rise(progress - start, ramp) if progress >= start else 0.0
