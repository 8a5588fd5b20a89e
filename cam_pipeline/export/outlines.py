"""Outlines of regions along the edges of their pixels, holes included."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import ndimage

Corner = tuple[int, int]
"""x, y of a corner of pixels."""


def outlines(region: Any) -> Iterator[list[Corner]]:
    """A polygon for each 4-connected part of a region (H, W) of truth values, which fills just its pixels.

    A hole is joined to the outline by a line that is walked there and back; a filler that counts crossings (even-odd)
    leaves it open.
    """
    parts, _ = ndimage.label(region)
    for number, place in enumerate(ndimage.find_objects(parts), 1):
        top, left = place[0].start, place[1].start
        yield [(x + left, y + top) for x, y in _polygon(parts[place] == number)]


def _polygon(part: Any) -> list[Corner]:
    """The outline of one part (h, w), the outer loop and those of its holes as one."""
    loops = sorted(_loops(part), key=min)
    attached: dict[Corner, list[list[Corner]]] = {}
    walls = _walls(part)
    for loop in loops[1:]:
        x, y = start = min(loop)
        while not walls[y, x - 1]:  # to the left there is the outer loop, or a hole that comes before this one
            x -= 1
        turn = loop.index(start)
        attached.setdefault((x - 1, y), []).append([*loop[turn:], *loop[:turn]])
    return _without_straight(_walked(loops[0], attached))


def _walls(part: Any) -> Any:
    """(h, w + 1): whether a pixel's left edge, the last one's right edge included, is an edge of the part."""
    wide = np.pad(part, ((0, 0), (1, 1)))
    walls = wide[:, 1:] != wide[:, :-1]
    return np.pad(walls, ((0, 1), (0, 0)))


def _walked(loop: list[Corner], attached: dict[Corner, list[list[Corner]]]) -> list[Corner]:
    """The corners of a loop, with the loops attached to them as detours. A detour is made once."""
    found: list[Corner] = []
    waiting = [iter(loop)]
    back: list[Corner | None] = [None]
    while waiting:
        corner = next(waiting[-1], None)
        if corner is None:
            waiting.pop()
            place = back.pop()
            found += [] if place is None else [place]
            continue
        found.append(corner)
        for detour in attached.pop(corner, ()):
            waiting.append(iter([*detour, detour[0]]))
            back.append(corner)
    return found


def _loops(part: Any) -> Iterator[list[Corner]]:
    """Closed walks along all edges between the part and what is outside, the part to the right."""
    wide = np.pad(part, 1)
    middle = wide[1:-1, 1:-1]
    following: dict[Corner, list[Corner]] = {}
    for dy, dx, first, second in (
        (-1, 0, (0, 0), (1, 0)),
        (0, 1, (1, 0), (1, 1)),
        (1, 0, (1, 1), (0, 1)),
        (0, -1, (0, 1), (0, 0)),
    ):
        beside = wide[1 + dy : wide.shape[0] - 1 + dy, 1 + dx : wide.shape[1] - 1 + dx]
        for y, x in np.argwhere(middle & ~beside).tolist():
            following.setdefault((x + first[0], y + first[1]), []).append((x + second[0], y + second[1]))
    while following:
        start = corner = next(iter(following))
        loop = []
        while corner in following:
            loop.append(corner)
            ways = following[corner]
            here, corner = corner, ways.pop()
            if not ways:
                del following[here]
        assert corner == start
        yield loop


def _without_straight(corners: list[Corner]) -> list[Corner]:
    """The corners at which a closed walk turns."""
    before = [corners[-1], *corners[:-1]]
    after = [*corners[1:], corners[0]]
    return [
        here
        for last, here, coming in zip(before, corners, after, strict=True)
        if (here[0] - last[0], here[1] - last[1]) != (coming[0] - here[0], coming[1] - here[1])
    ]
