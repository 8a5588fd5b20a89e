"""SFC's image bank: in every step some images are seen again, drawn evenly over classes instead of over images.

What is drawn is the very view that last showed a class. As views follow from (seed, epoch, image), the bank holds which
view it was, not its pixels, and needs no place in a checkpoint (docs/decisions/0007).
"""

from collections.abc import Sequence

import numpy as np

Key = tuple[int, int]
BLANK = -1
"""In place of an image's index: an empty view, which shows no class."""


class ImageBank:
    """One slot for each class: the view (epoch, index) that last showed it. `class_ids` are 1-based, of every image.

    With `blank`, slots that were never written can be drawn, as in the released code: an empty view without labels.
    """

    def __init__(
        self, class_ids: Sequence[tuple[int, ...]], num_classes: int, draws: int, seed: int, blank: bool = False
    ) -> None:
        self.class_ids, self.num_classes, self.draws, self.seed, self.blank = class_ids, num_classes, draws, seed, blank
        self.slots: dict[int, Key] = {}

    def clear(self) -> None:
        """As before the first step."""
        self.slots.clear()

    def update(self, views: Sequence[Key]) -> None:
        """Write every view into the slots of all classes it shows; later ones win."""
        for view in views:
            for class_id in self.class_ids[view[1]]:
                self.slots[class_id] = view

    def draw(self, step: int) -> list[Key]:
        """`draws` views, slots drawn evenly and with replacement from (seed, step); none while no slot is written."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step,)))
        if self.blank:
            drawn = rng.integers(1, self.num_classes + 1, self.draws)
            return [self.slots.get(int(class_id), (0, BLANK)) for class_id in drawn]
        written = sorted(self.slots)
        return [self.slots[written[number]] for number in rng.integers(0, len(written), self.draws)] if written else []
