"""What was made of single images, as small pictures for a page: image, maps, label, mask."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cam_pipeline.config import Config
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.marks import marks_to_draw
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.table import Table
from cam_pipeline.refinement.scores import class_scores
from cam_pipeline.report.contact_sheet import SheetRow, tiles
from cam_pipeline.report.page import Picture, thumbnail
from cam_pipeline.store.cams import CamStore
from cam_pipeline.store.labels import LabelStore


@dataclass(frozen=True)
class Shown:
    """An image, a figure of it, and its pictures under their titles."""

    image: str
    value: float
    steps: tuple[tuple[str, Picture], ...]


def shown(
    config: Config, table: Table, results: Mapping[str, Path], images: Sequence[tuple[str, float]]
) -> list[Shown]:
    """The steps of each of the images (id, figure); a step without a result, or without a mask, is left out."""
    if not images:
        return []
    by_id = {sample.id: sample for sample in table.samples}
    with ExitStack() as opened:
        maps = labels = None
        if config.refine.maps_from in results:
            maps = opened.enter_context(CamStore.open(results[config.refine.maps_from]))
        if config.labels_stage in results:
            labels = opened.enter_context(LabelStore.open(results[config.labels_stage]))
        mapped, labelled = set(maps.names if maps else ()), set(labels.names if labels else ())

        def steps(name: str) -> tuple[tuple[str, Picture], ...]:
            sample = by_id[name]
            stored = maps.read(name) if maps and name in mapped else None
            row = SheetRow(
                name=name,
                image=sample_image(sample),
                cam=class_scores(stored, config.refine)[0].numpy() if stored else None,
                class_ids=stored.class_ids if stored else sample.class_ids or (),
                pseudo_label=labels.read(name) if labels and name in labelled else None,
                truth=sample_mask(sample, len(table.classes)) if sample.mask else None,
                marks=marks_to_draw(sample, len(table.classes)),
            )
            classes = ", ".join(table.classes[class_id - 1] for class_id in row.class_ids) or "no class"
            return tuple(
                (title, thumbnail(pixels, f"{title} of {name} ({classes})")) for title, pixels in tiles(row).items()
            )

        return [Shown(name, value, steps(name)) for name, value in images]
