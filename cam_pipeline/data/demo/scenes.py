"""Drawn objects whose classes differ in a small part, so that plain CAMs miss the body.

Three bodies times two parts make six classes. Twins (car and sledge, fish and duck, apple and balloon) have
bodies of one shape and one range of colours, so a classifier has to look at the part, about a fifth of the
object. That is the partial activation which the pipeline repairs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage import color, draw, filters

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Size = tuple[int, int]  # height, width
Range = tuple[float, float]  # least, greatest

CLASS_NAMES = ("car", "fish", "apple", "sledge", "duck", "balloon")
"""Ids 1..6 in this order, the most frequent first. Ids c and c + 3 are twins: they share a body."""

COLOURED_STONES = 1 / 3  # share of the stones with a body's colour, not grey: colour alone says nothing
EDGE_MARGIN = 0.18  # centres stay this share of the sides off the border: objects are cut by it, not lost
MIN_VISIBLE = 0.7  # share of every part and object that must be visible; with less a person could not name it
PLACEMENT_TRIES = 60  # random places tried for an object before it is left out
SUPERSAMPLING = 3  # outlines are filled on a finer canvas and averaged: smooth edges

BODY_TEXTURE, BACKGROUND_TEXTURE = 0.02, 0.055
"""Standard deviation of the grain, 1 is white: bodies are smooth enough for a CRF to follow their colour."""
SENSOR_NOISE = 0.008  # standard deviation of the noise of each pixel and channel
LIGHT = 0.06  # greatest change of brightness from side to side


def points(*corners: tuple[float, float]) -> Floats:
    """Outline (N, 2) through these (y, x)."""
    return np.array(corners)


def ellipse(y: float, x: float, height: float, width: float, tilt: float = 0.0) -> Floats:
    """Outline (32, 2) of an ellipse around (y, x) with these half axes, turned by `tilt` radians."""
    t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.array([y, x]) + turn(np.stack([height * np.sin(t), width * np.cos(t)], axis=1), tilt)


def turn(outline: Floats, angle: float) -> Floats:
    """Turn (y, x) points (N, 2) around the origin by `angle` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    turned: Floats = outline @ np.array([[cos, sin], [-sin, cos]])
    return turned


def hsv(hue: float, saturation: float, value: float) -> Floats:
    """RGB (3,) in 0..1; the hue wraps around at 1."""
    rgb: Floats = color.hsv2rgb(np.array([hue % 1.0, saturation, value]))
    return rgb


# Outlines are in object units, about -1..1, y downwards. Class id c has body (c - 1) % 3 and part c - 1.
# fmt: off
BODIES = (  # vehicle, oval animal, round thing
    points((0.35, -0.95), (0.35, 0.95), (-0.05, 0.9), (-0.2, 0.5), (-0.55, 0.3), (-0.55, -0.6), (-0.1, -0.9)),
    ellipse(0, -0.12, 0.48, 0.75),
    ellipse(0, 0, 0.72, 0.72),
)
BLACK, GREY, WHITE = hsv(0, 0, 0.1), hsv(0, 0, 0.8), hsv(0, 0, 1)
MAROON, NAVY = hsv(0, 0.9, 0.6), hsv(0.6, 0.9, 0.3)
PARTS: tuple[tuple[tuple[Floats, Floats], ...], ...] = (
    (  # car: two wheels with hubs
        (ellipse(0.4, -0.52, 0.25, 0.25), BLACK), (ellipse(0.4, -0.52, 0.1, 0.1), GREY),
        (ellipse(0.4, 0.52, 0.25, 0.25), BLACK), (ellipse(0.4, 0.52, 0.1, 0.1), GREY),
    ),
    (  # fish: an orange forked tail with a stripe
        (points((0, 0.5), (-0.5, 1.0), (0, 0.85), (0.5, 1.0)), hsv(0.07, 0.95, 0.95)),
        (points((-0.2, 0.7), (0.2, 0.7), (0.28, 0.78), (-0.28, 0.78)), WHITE),
    ),
    (  # apple: two green leaves on a stalk
        (points((-0.55, -0.04), (-1.0, 0.02), (-1.0, 0.1), (-0.55, 0.04)), hsv(0.08, 0.7, 0.3)),
        (ellipse(-0.85, 0.32, 0.15, 0.34, 0.3), hsv(0.33, 0.9, 0.65)),
        (ellipse(-0.85, -0.3, 0.13, 0.3, -0.3), hsv(0.33, 0.9, 0.5)),
    ),
    (  # sledge: a red runner, curled up in front, on two posts
        (points((0.3, -0.6), (0.3, -0.48), (0.6, -0.48), (0.6, -0.6)), MAROON),
        (points((0.3, 0.4), (0.3, 0.52), (0.6, 0.52), (0.6, 0.4)), MAROON),
        (points((0.55, -0.95), (0.55, 0.75), (0.4, 0.95), (0.5, 1.08), (0.72, 0.85), (0.72, -0.95)),
         hsv(0.98, 0.9, 0.85)),
    ),
    (  # duck: a yellow head with an eye and a red beak
        (points((-0.5, 0.85), (-0.42, 1.12), (-0.28, 0.85)), hsv(0.02, 0.95, 0.85)),
        (ellipse(-0.42, 0.62, 0.27, 0.27), hsv(0.15, 0.9, 0.95)), (ellipse(-0.48, 0.7, 0.06, 0.06), BLACK),
    ),
    (  # balloon: a blue basket on two ropes
        (points((0.6, -0.35), (0.6, -0.28), (0.85, -0.2), (0.85, -0.27)), NAVY),
        (points((0.6, 0.35), (0.6, 0.28), (0.85, 0.2), (0.85, 0.27)), NAVY),
        (points((0.8, -0.35), (0.8, 0.35), (1.2, 0.26), (1.2, -0.26)), hsv(0.62, 0.9, 0.75)),
    ),
)
"""(outline, RGB) of the shapes that tell the classes apart: over the body, later shapes on top."""
# fmt: on


def texture(rng: np.random.Generator, size: Size, sigma: float, strength: float) -> Floats:
    """Noise (H, W, 1) with standard deviation `strength` and grains of about `sigma` pixels."""
    noise: Floats = filters.gaussian(rng.standard_normal(size), sigma, mode="wrap")
    scaled: Floats = noise[..., None] * (strength / noise.std())
    return scaled


def coverage(corners: Floats, size: Size) -> Floats:
    """Share of every pixel (H, W) inside the polygon with these corners (N, 2), in 0..1."""
    fine = np.zeros((size[0], SUPERSAMPLING, size[1], SUPERSAMPLING))
    canvas = fine.reshape(size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    canvas[draw.polygon(*(corners * SUPERSAMPLING - 0.5).T, canvas.shape)] = 1
    share: Floats = fine.mean(axis=(1, 3))
    return share


def paint(image: Floats, share: Floats, colour: Floats) -> Floats:
    """Lay a colour, (3,) or (H, W, 3), over `image` (H, W, 3) where `share` (H, W) is positive."""
    return image + share[..., None] * (colour - image)


def object_colour(rng: np.random.Generator, background_hue: float) -> Floats:
    """A body's RGB, whatever its class: a quarter turn of hue or more away from the background."""
    return hsv(background_hue + rng.uniform(0.25, 0.75), rng.uniform(0.55, 0.85), rng.uniform(0.6, 0.95))


def draw_background(rng: np.random.Generator, size: Size, hue: float) -> Floats:
    """Two rough, pale zones with stones on them: (H, W, 3), about 0..1."""
    values = rng.uniform((0.6, 0.4), (0.9, 0.7))
    upper, lower = (hsv(hue + rng.uniform(-0.05, 0.05), rng.uniform(0.15, 0.4), value) for value in values)
    horizon = size[0] * rng.uniform(0.25, 0.75) + texture(rng, size, 8, 3.0)  # waves of about 3 pixels
    image = np.where(np.indices(size)[0][..., None] < horizon, upper, lower)
    image = image + texture(rng, size, 1, BACKGROUND_TEXTURE) + texture(rng, size, 4, BACKGROUND_TEXTURE)
    for _ in range(rng.integers(1, 5)):
        coloured = rng.random() < COLOURED_STONES
        colour = object_colour(rng, hue) if coloured else hsv(hue, 0.05, rng.uniform(0.3, 0.8))
        stone = ellipse(0, 0, 0.8, 1)[::4] * rng.uniform(0.7, 1.2, (8, 1))
        corners = rng.uniform(0, size) + min(size) * rng.uniform(0.04, 0.11) * stone
        image = paint(image, coverage(corners, size), colour + texture(rng, size, 1, BODY_TEXTURE))
    return image


def place_object(
    rng: np.random.Generator, class_id: int, size: Size, object_scale: Range, taken: Sequence[Floats]
) -> list[Floats] | None:
    """Coverages (H, W) of a body and the shapes of its part, somewhere in the image; None if there is no room.

    At least MIN_VISIBLE of the part's corners lie in the image, and at least as much of every region in `taken` stays
    visible. These are maps (H, W) of visible pixels, divided by the region's first size, so their sum is at most 1.
    """
    outlines = [BODIES[(class_id - 1) % len(BODIES)], *(outline for outline, _ in PARTS[class_id - 1])]
    for _ in range(PLACEMENT_TRIES):
        centre = np.array(size) * rng.uniform(EDGE_MARGIN, 1 - EDGE_MARGIN, 2)
        half_length = min(size) * rng.uniform(*object_scale) / 2
        angle = rng.normal(0, 0.2)
        mirror = rng.choice([-1, 1])
        placed = [centre + half_length * turn(outline * (1, mirror), angle) for outline in outlines]
        corners = np.concatenate(placed[1:])
        in_image = ((corners >= 0) & (corners < size)).all(axis=1).mean()
        layers = [coverage(outline, size) for outline in placed]
        free = np.max(layers, axis=0) <= 0.5
        if min([in_image, *((region * free).sum() for region in taken)]) >= MIN_VISIBLE:
            return layers
    return None


def draw_scene(
    rng: np.random.Generator, class_ids: Sequence[int], size: Size, object_scale: Range = (0.45, 0.75)
) -> tuple[Bytes, Bytes]:
    """Draw one object for each of `class_ids` (1..6) into an image of `size` (height, width).

    Returns the image (H, W, 3) and its labels (H, W), 0 background. `object_scale` bounds the length of an
    object as a share of the short side. An object that would hide another is left out of image and labels.
    """
    hue = rng.random()
    image, labels = draw_background(rng, size, hue), np.zeros(size, np.uint8)
    taken: list[Floats] = []
    for class_id in class_ids:
        colours = [object_colour(rng, hue), *(colour for _, colour in PARTS[class_id - 1])]
        grain = texture(rng, size, 1, BODY_TEXTURE)
        layers = place_object(rng, class_id, size, object_scale, taken)
        if layers is None:
            continue
        for layer, colour in zip(layers, colours, strict=True):
            image = paint(image, layer, colour + grain)
        solid, part = np.max(layers, axis=0) > 0.5, np.max(layers[1:], axis=0) > 0.5
        labels[solid] = class_id
        taken = [region * ~solid for region in taken] + [solid / solid.sum(), part / part.sum()]
    light = np.tensordot(rng.uniform(-LIGHT, LIGHT, 2) / size, np.indices(size), 1)[..., None]
    image = image + light + SENSOR_NOISE * rng.standard_normal(image.shape)
    return np.round(255 * image.clip(0, 1)).astype(np.uint8), labels
