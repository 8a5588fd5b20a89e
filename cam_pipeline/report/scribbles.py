"""Scribbles or clicks for many images, made from their masks, in a folder."""

import csv
import io
import json
import logging
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import delayed
from PIL import Image, PngImagePlugin

from cam_pipeline.data.digest import content_digest
from cam_pipeline.data.drawing import draw_clicks
from cam_pipeline.data.images import UInt8
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.scribbles import clicks_from_mask, s4_scribble_from_mask, scribble_from_mask
from cam_pipeline.data.strokes import PSEUDO, Click
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError, UserError
from cam_pipeline.machine.atomic import read_json, write_text, written_aside
from cam_pipeline.machine.interrupt import ignore_in_worker, raise_if_stopped
from cam_pipeline.machine.parallel import joblib_workers, results_of
from cam_pipeline.machine.progress import track
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.report.colors import class_color

logger = logging.getLogger(__name__)

CLICKS, RECORD = "clicks.csv", "clicks.json"
"""The clicks, and what is known of them while they are made."""
NOTE = "cam-pipeline scribble"
"""Name of the text in a PNG file that says how it was made; without it a file is a person's, and is left alone."""
VERSION = 1
"""Raise it whenever the same masks would give other marks."""
SECONDS_BETWEEN_RECORDS = 10.0


@dataclass(frozen=True)
class Manner:
    """How marks are made: `style` is strokes, s4 or clicks; the rest as in `data.scribbles`. `seed` is for clicks."""

    style: str = "strokes"
    width: int = 3
    keep: float = 0.9
    min_area: int = 20
    seed: int | None = None


@dataclass(frozen=True)
class Made:
    """Of one image: its pixels, those that are marked, and its clicks (x, y, label).

    `denied` are the classes that its mask shows, but its labels do not: they get no marks.
    """

    pixels: int
    marked: int
    clicks: tuple[tuple[int, int, int], ...] = ()
    denied: tuple[int, ...] = ()


def make_marks(
    samples: Sequence[Sample], classes: Sequence[str], folder: Path, manner: Manner, workers: int, force: bool = False
) -> tuple[dict[str, Made], list[str]]:
    """Write marks of the samples, by their masks, into a folder: `<id>.png` for `data.scribbles`, or `clicks.csv`.

    A PNG has the labels as numbers, 255 where nothing is said, and a palette. A class that the labels of an image do
    not name gets no marks there: they would contradict one another. What is there of the same mask in the same manner
    is not made again unless `force`. Gives what was made by id, and a line for each mask that cannot be used; the
    others are made all the same. Raises UserError for a file that was not made here and would be replaced.
    """
    _check_own(samples, folder, manner)
    known = {} if force else _known(samples, folder, manner)
    made, failed, recorded = dict[str, Made](), list[str](), time.monotonic()
    with track("make-scribbles", len(samples)) as progress:
        try:
            for sample, one in _each(samples, known, partial(_make, len(classes), folder, manner), workers):
                if isinstance(one, str):
                    failed.append(one)
                    logger.error("%s", one)
                else:
                    made[sample.id] = one
                if manner.style == "clicks" and time.monotonic() > recorded + SECONDS_BETWEEN_RECORDS:
                    _write_record(samples, made, folder, manner)
                    recorded = time.monotonic()
                progress.advance()
                raise_if_stopped()
        finally:
            if manner.style == "clicks":
                _write_record(samples, made, folder, manner)
    if manner.style == "clicks":
        _write_clicks(samples, made, folder, ("background", *classes))
    return made, failed


def _each(
    samples: Sequence[Sample], known: dict[str, Made], make: Any, workers: int
) -> Iterator[tuple[Sample, Made | str]]:
    """Every sample with what was made, or with what is wrong with its mask; worker processes make what is not known."""
    yield from ((sample, known[sample.id]) for sample in samples if sample.id in known)
    left = [sample for sample in samples if sample.id not in known]
    if not left:
        return
    with (
        joblib_workers("loky", workers) as parallel,
        results_of(parallel, (delayed(make)(sample) for sample in left)) as results,
    ):
        yield from zip(left, results, strict=True)


def _make(num_classes: int, folder: Path, manner: Manner, sample: Sample) -> Made | str:
    """Make the marks of one image, in a worker process."""
    ignore_in_worker()
    try:
        mask = sample_mask(sample, num_classes)
    except DataError as error:
        return str(error)
    mask, denied = _without_denied(mask, sample)
    if manner.style == "clicks":
        seed = None if manner.seed is None else (manner.seed, zlib.crc32(sample.id.encode()))
        clicks = clicks_from_mask(mask, manner.min_area, seed)
        origins = np.full(mask.shape, PSEUDO, np.uint8)
        draw_clicks([Click(*click) for click in clicks], np.empty_like(mask), origins)
        return Made(mask.size, int((origins != PSEUDO).sum()), tuple(clicks), denied)
    draw = s4_scribble_from_mask if manner.style == "s4" else scribble_from_mask
    scribble: UInt8 = draw(mask, manner.width, manner.keep, manner.min_area)
    made = Made(mask.size, int((scribble != IGNORE_INDEX).sum()), (), denied)
    image = Image.fromarray(scribble, mode="P")
    image.putpalette(_palette())
    text = PngImagePlugin.PngInfo()
    text.add_text(NOTE, json.dumps({**_origin(sample, manner), "marked": made.marked, "denied": denied}))
    with written_aside(_path(sample, folder)) as aside:
        image.save(aside, format="PNG", pnginfo=text)
    return made


def _without_denied(mask: UInt8, sample: Sample) -> tuple[UInt8, tuple[int, ...]]:
    """The mask without classes that the image's labels do not name, and these."""
    shown = {*np.unique(mask).tolist()} - {0, IGNORE_INDEX}
    denied = tuple(sorted(shown - {*sample.class_ids})) if sample.class_ids is not None else ()
    return (np.where(np.isin(mask, denied), np.uint8(IGNORE_INDEX), mask) if denied else mask), denied


@cache
def _palette() -> list[int]:
    return [level for label in range(256) for level in class_color(label)]


def _path(sample: Sample, folder: Path) -> Path:
    return folder / f"{sample.id}.png"


def _origin(sample: Sample, manner: Manner) -> dict[str, Any]:
    """What marks are made of, and how; as JSON gives it back. As long as it is the same, they are current."""
    state = ""
    if isinstance(sample.mask, Path):
        with suppress(OSError):
            state = f"{content_digest(sample.mask)} {sample.colors}"
    elif sample.mask is not None:
        state = sample.mask.digest()
    labels = None if sample.class_ids is None else [*sample.class_ids]
    return {"version": VERSION, "made_by": asdict(manner), "mask": state, "labels": labels}


def _note(path: Path) -> tuple[int, dict[str, Any]]:
    """The number of pixels of a PNG, and its note; an empty one if it was not made here."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            note = json.loads(image.info[NOTE])
            return image.width * image.height, note if isinstance(note, dict) else {}
    except (OSError, KeyError, ValueError, TypeError, SyntaxError):
        return 0, {}


def _check_own(samples: Sequence[Sample], folder: Path, manner: Manner) -> None:
    """Raise UserError if a file would be replaced that was not made here: it may be a person's work."""
    if manner.style == "clicks":
        taken = [folder / CLICKS] if (folder / CLICKS).exists() and not (folder / RECORD).is_file() else []
    else:
        paths = (_path(sample, folder) for sample in samples)
        taken = [path for path in paths if path.exists() and not _note(path)[1]]
    if taken:
        more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise UserError(f"{taken[0]}{more} was not made by make-scribbles and would be replaced; name another folder")


def _known(samples: Sequence[Sample], folder: Path, manner: Manner) -> dict[str, Made]:
    """What is there already of the same masks, in the same manner."""
    known = dict[str, Made]()
    recorded = read_json(folder / RECORD) if manner.style == "clicks" else {}
    for sample in samples:
        pixels, note = _note(_path(sample, folder)) if manner.style != "clicks" else (0, recorded.get(sample.id, {}))
        if isinstance(note, dict) and _origin(sample, manner).items() <= note.items():
            clicks = tuple((x, y, label) for x, y, label in note.get("clicks", ()))
            known[sample.id] = Made(pixels or note["pixels"], note["marked"], clicks, tuple(note["denied"]))
    return known


def _write_record(samples: Sequence[Sample], made: dict[str, Made], folder: Path, manner: Manner) -> None:
    entries = {sample.id: _origin(sample, manner) | asdict(made[sample.id]) for sample in samples if sample.id in made}
    write_text(folder / RECORD, json.dumps(entries))


def _write_clicks(samples: Sequence[Sample], made: dict[str, Made], folder: Path, names: Sequence[str]) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "x", "y", "class"])
    for sample in samples:
        if sample.id in made:
            rows.writerows((sample.id, x, y, names[label]) for x, y, label in made[sample.id].clicks)
    write_text(folder / CLICKS, text.getvalue())
