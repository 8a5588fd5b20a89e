"""Label maps of image files, written into a folder as PNG files beside a table."""

import csv
import io
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from cam_pipeline.data.images import UInt8, read_image
from cam_pipeline.errors import DataError
from cam_pipeline.machine.atomic import write_text, written_aside
from cam_pipeline.machine.interrupt import raise_if_stopped
from cam_pipeline.machine.progress import track
from cam_pipeline.prediction.image_files import ImageFile
from cam_pipeline.prediction.predictor import Predictor
from cam_pipeline.report.colors import class_color
from cam_pipeline.report.contact_sheet import overlay

logger = logging.getLogger(__name__)

TABLE = "predictions.csv"
NOTE = "cam-pipeline"
"""Name of the text in a PNG file that says what made it; by it a file is known that need not be made again."""
AHEAD = 4
"""Images that are read while one is predicted."""


@dataclass(frozen=True)
class Prediction:
    """What is told of an image: mean probability of its labels, 0..1, and the share of pixels of every label there."""

    name: str
    source: str
    size: tuple[int, int]
    confidence: float
    shares: dict[int, float]


def predict_files(
    predictor: Predictor,
    files: Sequence[ImageFile],
    folder: Path,
    classes: Sequence[str],
    *,
    made_by: str,
    overlays: bool = False,
    force: bool = False,
    max_pixels: int,
) -> tuple[list[Prediction], list[str]]:
    """Write `<name>.png` for every file, an indexed PNG of its labels at its size, and the table of all.

    `classes` begins with the background. With `overlays` also `overlays/<name>.jpg`. `made_by` names the network and
    how it is used: a label map of the same, of a file that has not changed, is not made again unless `force`. Gives the
    predictions, and a line for each file that cannot be read; the others are made all the same.
    """
    found: list[Prediction] = []
    failed: list[str] = []
    with track("predict", len(files), "images") as progress, ThreadPoolExecutor(AHEAD) as pool:
        written: deque[Future[None]] = deque()
        for file, known, image in _read_ahead(files, folder, pool, made_by, overlays, force, max_pixels):
            raise_if_stopped()
            while len(written) > AHEAD:
                written.popleft().result()
            if known is not None:
                found.append(known)
            elif image is not None:
                try:
                    pixels = image.result()
                except DataError as error:
                    failed.append(str(error))
                    logger.error("%s", error)
                else:
                    labels, confidence = predictor.labels(pixels)
                    one = _told(file, labels.numpy(), confidence)
                    note = _note(file.path, made_by, one)
                    written.append(pool.submit(_write, folder, one, pixels, labels.numpy(), note, overlays))
                    found.append(one)
            progress.advance()
        for future in written:
            future.result()
    write_text(folder / TABLE, _table(found, classes))
    return found, failed


def _read_ahead(
    files: Sequence[ImageFile],
    folder: Path,
    pool: ThreadPoolExecutor,
    made_by: str,
    overlays: bool,
    force: bool,
    max_pixels: int,
) -> Iterator[tuple[ImageFile, Prediction | None, Future[UInt8] | None]]:
    """Every file with its prediction, if it is there already, else with its pixels, read some files ahead."""
    waiting: deque[tuple[ImageFile, Prediction | None, Future[UInt8] | None]] = deque()
    for file in files:
        known = None if force else _known(file, folder, made_by, overlays)
        waiting.append((file, known, None if known else pool.submit(read_image, file.path, max_pixels)))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _told(file: ImageFile, labels: UInt8, confidence: float) -> Prediction:
    counts = np.bincount(labels.ravel(), minlength=1)
    shares = {int(label): round(float(counts[label] / labels.size), 6) for label in counts.nonzero()[0]}
    height, width = labels.shape
    return Prediction(file.name, str(file.path), (height, width), round(confidence, 4), shares)


def _note(source: Path, made_by: str, one: Prediction) -> str:
    """What a PNG file says of itself."""
    state = source.stat()
    return json.dumps(
        {
            "made_by": made_by,
            "bytes": state.st_size,
            "changed": state.st_mtime_ns,
            "confidence": one.confidence,
            "shares": one.shares,
        }
    )


def _known(file: ImageFile, folder: Path, made_by: str, overlays: bool) -> Prediction | None:
    """The prediction of a file that was made before, in the same way, if the file has not changed since."""
    path = folder / f"{file.name}.png"
    if overlays and not _overlay_path(folder, file.name).is_file():
        return None
    try:
        with Image.open(path, formats=("PNG",)) as image:
            width, height = image.size
            told: Any = json.loads(image.info[NOTE])
        state = file.path.stat()
        if (told["made_by"], told["bytes"], told["changed"]) != (made_by, state.st_size, state.st_mtime_ns):
            return None
        shares = {int(label): float(share) for label, share in told["shares"].items()}
        return Prediction(file.name, str(file.path), (height, width), float(told["confidence"]), shares)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, SyntaxError):
        return None


def _write(folder: Path, one: Prediction, pixels: UInt8, labels: UInt8, note: str, overlays: bool) -> None:
    """Write the overlay, then the label map, whose note says that all is done."""
    if overlays:
        with written_aside(_overlay_path(folder, one.name)) as aside:
            Image.fromarray(overlay(pixels, labels)).save(aside, format="JPEG", quality=90)
    image = Image.fromarray(labels, mode="P")
    image.putpalette([level for label in range(256) for level in class_color(label)])
    text = PngImagePlugin.PngInfo()
    text.add_text(NOTE, note)
    with written_aside(folder / f"{one.name}.png") as aside:
        image.save(aside, format="PNG", pnginfo=text)


def _overlay_path(folder: Path, name: str) -> Path:
    return folder / "overlays" / f"{name}.jpg"


def _table(predictions: Sequence[Prediction], classes: Sequence[str]) -> str:
    """The predictions as CSV, the least confident first."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "labels", "height", "width", "confidence", "classes", "shares"])
    for one in sorted(predictions, key=lambda one: (one.confidence, one.name)):
        shown = sorted((label for label in one.shares if label), key=lambda label: -one.shares[label])
        names = ";".join(classes[label] for label in shown)
        shares = ";".join(f"{one.shares[label]:.4f}" for label in shown)
        rows.writerow([one.source, f"{one.name}.png", *one.size, f"{one.confidence:.4f}", names, shares])
    return text.getvalue()
