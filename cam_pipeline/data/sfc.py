"""SFC's image bank: every step shows some images again, drawn evenly over classes instead of over images.

The bank draws exactly the view that last showed a class. A view follows from (seed, epoch, image), so the bank keeps
the view's key, not its pixels, and a checkpoint need not hold it (docs/decisions/0007).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cam_pipeline.data.views import BLANK, Key


@dataclass(frozen=True)
class ImageBank:
    """One slot for each class: the view that last showed it. Every step draws `draws` slots, with replacement.

    `class_ids` holds the 1-based classes of every image. With `blank`, empty slots can be drawn too, as in the released
    code: they give an empty view without labels.
    """

    class_ids: Sequence[tuple[int, ...]]
    num_classes: int
    draws: int
    seed: int
    blank: bool = False

    def __call__(self, steps: Iterator[list[Key]], start: int = 0) -> Iterator[list[Key]]:
        """The views drawn in each step from `start` on. `steps` has the views of every step, from the first one."""
        slots: dict[int, Key] = {}
        for step, views in enumerate(steps):
            slots |= self.shown(views)
            if step >= start:
                yield self.draw(slots, step)

    def shown(self, views: Sequence[Key]) -> dict[int, Key]:
        """The last of the views that shows each class."""
        return {class_id: view for view in views for class_id in self.class_ids[view[1]]}

    def draw(self, slots: Mapping[int, Key], step: int) -> list[Key]:
        """Views from evenly drawn slots; they follow from (seed, step). None while all slots are empty."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step,)))
        if self.blank:
            drawn = rng.integers(1, self.num_classes + 1, self.draws)
            return [slots.get(int(class_id), (0, BLANK)) for class_id in drawn]
        written = sorted(slots)
        return [slots[written[number]] for number in rng.integers(0, len(written), self.draws)] if written else []
