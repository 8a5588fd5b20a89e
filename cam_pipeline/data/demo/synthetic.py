"""The demo's image set, drawn by `scenes`: a long tail of classes, several in an image; nothing is downloaded."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cam_pipeline.data.demo.scenes import CLASS_NAMES, Bytes, Range, Size, draw_scene
from cam_pipeline.errors import UserError
from cam_pipeline.machine.atomic import write_text, written_aside
from cam_pipeline.machine.interrupt import raise_if_stopped
from cam_pipeline.machine.progress import track

GENERATOR_VERSION = 1  # raise it whenever the same parameters would draw different pixels
BLOCK_COUNTS = (9, 7, 6, 5, 3, 2)
"""Images of each class among every 20: a long tail, from 45 % of the images to 10 %."""
BLOCK_SIZES = (1,) * 11 + (2,) * 6 + (3,) * 3
"""Number of classes in each of these 20 images; together as many as BLOCK_COUNTS has."""
SPLITS = ("train", "val")
PLAN_STREAM = 1  # fourth number of the seeds that plan labels; images have three, so they share no stream

ASPECTS = ((1.0, 1.0), (1.0, 1.0), (0.92, 1.1), (1.1, 0.86), (1.3, 0.76))
"""Factors on the requested (height, width): mixed sizes, wide and tall, so that nothing relies on one."""
PAIRS = 0.2  # share of the images of one class that show two objects of it, if both find a place

JPEG_QUALITY = 92
PALETTE = (0, 0, 0, 214, 69, 65, 65, 131, 215, 88, 166, 92, 232, 163, 61, 140, 98, 187, 60, 180, 190)
"""Colours of the labels 0..6 in the mask files, as R, G, B, R, ..."""


def draw_image(
    seed: int, split: str, index: int, class_ids: Sequence[int], size: Size, object_scale: Range
) -> tuple[Bytes, Bytes]:
    """Image `index` of a split: `draw_scene` in one of the ASPECTS of `size`, now and then with a pair."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    vertical, horizontal = ASPECTS[rng.integers(len(ASPECTS))]
    pair = len(class_ids) == 1 and rng.random() < PAIRS
    scene_size = round(size[0] * vertical), round(size[1] * horizontal)
    return draw_scene(rng, [*class_ids] * (1 + pair), scene_size, object_scale)


def plan_labels(seed: int, split: str, count: int) -> list[tuple[int, ...]]:
    """Class ids of `count` images. BLOCK_COUNTS of every 20 show each class; no image has a class twice."""
    tokens = np.repeat(np.arange(1, len(CLASS_NAMES) + 1), BLOCK_COUNTS)
    plan: list[tuple[int, ...]] = []
    while len(plan) < count:
        rng = np.random.default_rng([seed, SPLITS.index(split), len(plan), PLAN_STREAM])
        groups = [tokens]
        while any(len(set(group)) < len(group) for group in groups):
            groups = np.split(rng.permutation(tokens), np.cumsum(BLOCK_SIZES)[:-1])
        plan += [tuple(groups[i].tolist()) for i in rng.permutation(len(groups))]
    return plan[:count]


def generate(
    root: Path,
    *,
    train: int,
    val: int,
    size: Size = (96, 128),
    seed: int = 0,
    object_scale: Range = (0.45, 0.75),
) -> None:
    """Write a data set to `root`: images/, masks/, classes.txt and data.csv (image,labels,mask,split).

    `size` is the usual (height, width). Image k of a split depends on k and the last three arguments only.
    An interrupted call continues where it stopped; a finished folder is left as it is.
    Raises UserError if `root` holds anything else.
    """
    request = dict(train=train, val=val, size=size, seed=seed, object_scale=object_scale)
    if not _claim(root, json.dumps({"generator_version": GENERATOR_VERSION, **request}, indent=1) + "\n"):
        return
    write_text(root / "classes.txt", "".join(f"{name}\n" for name in CLASS_NAMES))
    lines = ["image,labels,mask,split\n"]
    with track("demo images", train + val) as tracker:
        for split, count in zip(SPLITS, (train, val), strict=True):
            for index, class_ids in enumerate(plan_labels(seed, split, count)):
                raise_if_stopped()
                image, mask = f"images/{split}_{index:05d}.jpg", f"masks/{split}_{index:05d}.png"
                if not ((root / image).is_file() and (root / mask).is_file()):
                    pixels, labels = draw_image(seed, split, index, class_ids, size, object_scale)
                    _save(root / image, pixels, "JPEG")
                    _save(root / mask, labels, "PNG")
                lines.append(f"{image},{';'.join(_classes_in(root / mask))},{mask},{split}\n")
                tracker.advance()
    write_text(root / "data.csv", "".join(lines))


def _claim(root: Path, request: str) -> bool:
    """Note the request in generator.json before anything else. Returns whether something is left to do."""
    note = root / "generator.json"
    if note.is_file():
        if note.read_text(encoding="utf-8") != request:
            raise UserError(f"{root} holds images generated with other settings; delete it, or name another folder")
        return not (root / "data.csv").is_file()
    if root.exists() and not (root.is_dir() and all(path.name.startswith(".") for path in root.iterdir())):
        raise UserError(f"{root} holds something that was not generated here; name a new or empty folder")
    write_text(note, request)
    return True


def _classes_in(mask: Path) -> list[str]:
    with Image.open(mask) as image:
        return [CLASS_NAMES[label - 1] for label in np.unique(np.asarray(image)) if label]


def _save(path: Path, pixels: Bytes, file_format: str) -> None:
    """Write an image file in one step: colour (H, W, 3) as it is, labels (H, W) with PALETTE."""
    image = Image.fromarray(pixels)
    if pixels.ndim == 2:
        image.putpalette(PALETTE)
    with written_aside(path) as aside:
        image.save(aside, file_format, quality=JPEG_QUALITY)
