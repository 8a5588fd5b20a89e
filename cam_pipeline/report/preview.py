"""A first look at the labels: a few images, each labelled at several background scores, on one picture."""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cam_pipeline.api import MapReader
from cam_pipeline.config import Config, OutputSettings
from cam_pipeline.data.images import UInt8, sample_image
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import StageNotReady
from cam_pipeline.machine.atomic import written_aside
from cam_pipeline.machine.interrupt import raise_if_stopped
from cam_pipeline.machine.progress import track
from cam_pipeline.ops.labels import complete_labels
from cam_pipeline.pipeline import Pipeline
from cam_pipeline.refinement.scores import placed, refined_scores
from cam_pipeline.report.choice import Candidate, choose
from cam_pipeline.report.colors import class_color
from cam_pipeline.report.contact_sheet import INK, PALE_INK, PAPER, TEXT_SIZE, overlay, text_font

BACKGROUNDS = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Scores that are drawn, if the config leaves it open; else five around its own."""
STEP = 0.1
TILE = 200
"""Pixels of the longer side of a tile. Images are labelled at twice that, which is quick and shows enough."""
GAP, LINE = 10, 20


def backgrounds(config: Config) -> tuple[float, ...]:
    """The five background scores to draw, rising; the config's own in the middle, if it lies far from 0 and 1."""
    own = config.refine.background
    if isinstance(own, str):
        return BACKGROUNDS
    middle = min(max(own, 0.05 + 2 * STEP), 0.95 - 2 * STEP)
    return tuple(round(middle + STEP * place, 2) for place in range(-2, 3))


def preview(pipeline: Pipeline, path: Path, images: int, epochs: int | None) -> tuple[str, ...]:
    """Draw the picture; gives the ids on it. No result of the run is read but the classifier, and none is changed.

    `epochs`: train a classifier for so many in a folder of its own, which is removed. Raises StageNotReady if there is
    no current classifier and `epochs` is None.
    """
    if epochs is None:
        state = pipeline.states(["train_cls"])["train_cls"]
        if state.kind != "current":
            raise StageNotReady(
                f"{pipeline.folder} holds no current classifier; run cam-pipeline train-cls first, or add --epochs 1 "
                "to train one for this picture alone"
            )
        return _draw(pipeline.config, pipeline.dataset.table, path, images)
    with tempfile.TemporaryDirectory(prefix="cam-preview-") as folder:
        config = pipeline.config
        config = config.model_copy(
            update={
                "train_cls": config.train_cls.model_copy(update={"epochs": epochs}),
                "output": OutputSettings(dir=Path(folder)),
            }
        )
        scratch = Pipeline(config)
        scratch.run(["train_cls"])
        return _draw(config, scratch.dataset.table, path, images)


def _draw(config: Config, table: Table, path: Path, images: int) -> tuple[str, ...]:
    split = config.cam.splits[0]
    samples = table.split(split)
    classes = ("background", *table.classes)
    chosen = choose([Candidate(one.id, one.class_ids or (), None) for one in samples], classes, split, images)
    by_id = {sample.id: sample for sample in samples}
    some = [by_id[name] for name in chosen.reasons]
    scores = backgrounds(config)
    rows = list(_rows(config, some, scores))
    sheet = _sheet([sample.id for sample in some], rows, scores, classes)
    with written_aside(path) as aside:
        sheet.save(aside, format="PNG")
    return tuple(chosen.reasons)


def _rows(
    config: Config, samples: Sequence[Sample], scores: Sequence[float]
) -> Iterator[tuple[UInt8, list[UInt8], tuple[int, ...]]]:
    """Each image, small, its label maps (H, W) at the scores, and the classes of its maps."""
    reader = MapReader(config)
    settings, device = placed(config.refine, config.run)
    with track("preview", len(samples)) as progress:
        for sample in samples:
            raise_if_stopped()
            pixels = _small(sample_image(sample))
            cam, _ = reader.read(pixels, sample.class_ids)
            read = partial(np.asarray, pixels)
            at_scores = (refined_scores(cam, read, settings.at(score), device) for score in scores)
            yield pixels, [complete_labels(found, cam.class_ids) for found in at_scores], cam.class_ids
            progress.advance()


def _small(pixels: UInt8) -> UInt8:
    image = Image.fromarray(pixels)
    image.thumbnail((2 * TILE, 2 * TILE))
    return np.asarray(image)


def _sheet(
    names: Sequence[str],
    rows: Sequence[tuple[UInt8, list[UInt8], tuple[int, ...]]],
    scores: Sequence[float],
    classes: Sequence[str],
) -> Image.Image:
    """The picture: a row of tiles for each image, below its name and, in their colours, its classes."""
    font, bold = text_font(TEXT_SIZE), text_font(TEXT_SIZE, bold=True)
    tiles = [[_tile(pixels), *(_tile(overlay(pixels, labels)) for labels in maps)] for pixels, maps, _ in rows]
    heights = [LINE + row[0].height + GAP for row in tiles]
    sheet = Image.new("RGB", (GAP + (1 + len(scores)) * (TILE + GAP), GAP + LINE + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    titles = ["image", *(f"background {score:g}" for score in scores)]
    for place, title in enumerate(titles):
        draw.text((GAP + place * (TILE + GAP), GAP), title, INK, bold)
    y = GAP + LINE
    for name, row, (_, _, class_ids), height in zip(names, tiles, rows, heights, strict=True):
        x = GAP
        draw.text((x, y), name, PALE_INK, font)
        x += round(font.getlength(name)) + 2 * GAP
        for class_id in class_ids:
            draw.rectangle((x, y + 2, x + 12, y + 14), fill=class_color(class_id))
            draw.text((x + 17, y), classes[class_id], INK, font)
            x += 17 + round(font.getlength(classes[class_id])) + GAP
        for place, tile in enumerate(row):
            sheet.paste(tile, (GAP + place * (TILE + GAP), y + LINE))
        y += height
    return sheet


def _tile(pixels: UInt8) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = TILE / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
