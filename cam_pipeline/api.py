"""A trained run from Python: class maps, scores and labels of one image, as arrays.

from cam_pipeline import open_run

run = open_run("outputs/demo")
found = run.annotate("photo.jpg")
print(found.names, found.labels.shape)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cam_pipeline.assembly.single_stage import trained_classifier, trained_segmenter
from cam_pipeline.cams.extraction import CamExtractor
from cam_pipeline.cams.image_classes import ImageClasses, classifier_file, with_threshold
from cam_pipeline.config import Config, RefineSettings, load_config, toml_value
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.digest import FileDigests
from cam_pipeline.data.grid import grid_size, resize_to_grid, to_tensor
from cam_pipeline.data.images import UInt8, read_image
from cam_pipeline.data.table import unknown_class
from cam_pipeline.errors import ConfigError, DataError, StageNotReady
from cam_pipeline.machine.device import pick_device
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.placing import image_batch, place
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.pipeline import Pipeline
from cam_pipeline.prediction.predictor import Predictor
from cam_pipeline.refinement.background import background_score
from cam_pipeline.refinement.labels import pseudo_labels
from cam_pipeline.refinement.merging import merged
from cam_pipeline.refinement.scores import class_scores, placed, refined
from cam_pipeline.store.cams import StoredCam
from cam_pipeline.store.checkpoints import load_metadata


@dataclass(frozen=True)
class Annotation:
    """Results for one image of H x W pixels that shows n classes.

    `names` and `class_ids` (1-based) of the n classes; `probabilities` (n,) in 0..1 of the classifier; `cams` (n, H, W)
    float32 in 0..1; `scores` (1 + n, H, W) float32, background first, summing to 1; `labels` (H, W) uint8: 0
    background, class ids, 255 undecided.
    """

    names: tuple[str, ...]
    class_ids: tuple[int, ...]
    probabilities: NDArray[np.float32]
    cams: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: UInt8


def without_classifier(config: Config) -> str:
    """The message about a run folder without a classifier."""
    return f"{config.folder} holds no classifier. Run: cam-pipeline {config.cam.network.replace('_', '-')}"


class MapReader:
    """The classifier of a run folder, and how its maps are read."""

    def __init__(self, config: Config) -> None:
        path = config.classifier_path
        if not path.is_file():
            raise StageNotReady(without_classifier(config))
        self.config = config
        self.device = pick_device(config.run)
        self.classes: tuple[str, ...] = tuple(load_metadata(path)["classes"])
        self.classifier = trained_classifier(config, path, self.classes)
        self._extractor = CamExtractor(self.classifier, config)
        place(self.classifier, self.device)

    def read(self, pixels: UInt8, class_ids: tuple[int, ...] | None) -> tuple[StoredCam, Tensor]:
        """Maps and class probabilities (C,) of an image (H, W, 3); `class_ids` None: they are predicted."""
        size = (pixels.shape[0], pixels.shape[1])
        stride = self.classifier.stride
        grid = grid_size(*size, stride, self.config.cam.max_side)
        batch = image_batch(resize_to_grid(to_tensor(pixels), grid, stride)[None], self.device)
        [found] = self._extractor.extract(batch, [""], [class_ids], [size])
        return found


class TrainedRun:
    """The networks of a run folder, without the data set of the training; `config` says how maps are made.

    `classes` are the class names without background, so that `classes[0]` is label 1. A run with `refine.merge_with`
    also needs the run folders of the other maps. One that learned from masks or scribbles may have a segmenter alone,
    which is enough for `segment`.
    """

    def __init__(self, config: Config) -> None:
        networks = [config.classifier_path, config.segmenter_path]
        trained = [path for path in networks if path.is_file()]
        if not trained:
            raise StageNotReady(without_classifier(config))
        self.classes: tuple[str, ...] = tuple(load_metadata(trained[0])["classes"])
        self._readers: list[MapReader] = []
        self.config = config
        if trained[0] == networks[0]:
            self.config = _settled(config)
            self._readers = [MapReader(config), *self._others(config)]

    def _others(self, config: Config) -> Iterator[MapReader]:
        """The classifiers of the runs whose maps are merged with this one's."""
        for path in config.refine.merge_with:
            other = MapReader(run_config(path.parent, config.run.device))
            if other.classes != self.classes or other.config.cam.calibration != "none":
                changed = f"{other.config.folder} has changed since it was merged with {config.folder}"
                raise ConfigError(f"{changed}; run cam-pipeline make-cams")
            yield other

    @property
    def classifier(self) -> Classifier:
        """The run's classifier. Raises StageNotReady if there is none."""
        return self._maps[0].classifier

    @property
    def _maps(self) -> list[MapReader]:
        """The run's own classifier, then those of merged runs. Raises StageNotReady if there is none."""
        if not self._readers:
            raise StageNotReady(without_classifier(self.config))
        return self._readers

    def annotate(self, image: Path | str | UInt8, classes: Sequence[str] | None = None) -> Annotation:
        """Class maps, refined scores and labels of an image file, or of an array (H, W, 3) uint8 RGB.

        `classes`: names of the classes that the image shows; None: those predicted (`cam.presence_threshold`), perhaps
        none; an empty list: only background. Raises DataError for an unknown class or an image that cannot be read,
        LibraryMissing if the config asks for a CRF backend that is not installed.
        """
        config = self.config
        pixels = _pixels(image, config.data.max_pixels)
        known = None if classes is None else tuple(sorted({self._class_id(name) for name in _listed(classes)}))
        own, *others = self._maps
        found, probabilities = own.read(pixels, known)
        stored = merged([found, *(other.read(pixels, found.class_ids)[0] for other in others)])
        rows = [class_id - 1 for class_id in stored.class_ids]
        refined_scores = refined(stored, lambda: pixels, *self._placed)
        return Annotation(
            names=tuple(self.classes[row] for row in rows),
            class_ids=stored.class_ids,
            probabilities=probabilities[rows].numpy(),
            cams=class_scores(stored, config.refine)[0].numpy(),
            scores=refined_scores.scores,
            labels=pseudo_labels(refined_scores, config.labels),
        )

    @overload
    def segment(self, image: Path | str | UInt8, probabilities: Literal[False] = ...) -> UInt8: ...
    @overload
    def segment(self, image: Path | str | UInt8, probabilities: Literal[True]) -> NDArray[np.float32]: ...
    def segment(self, image: Path | str | UInt8, probabilities: bool = False) -> UInt8 | NDArray[np.float32]:
        """Complete label map (H, W) uint8 of the trained segmenter, for an image as in `annotate`.

        With `probabilities` those of all labels (1 + C, H, W) float32, background first, summing to 1. `[predict]` of
        the folder's config.toml says whether the classifier has a say. Raises StageNotReady if there is no segmenter,
        and errors of `cams.image_classes.with_threshold`.
        """
        pixels = _pixels(image, self.config.data.max_pixels)
        if probabilities:
            return self._predictor.probabilities(pixels).cpu().numpy()
        return self._predictor.labels(pixels)[0].numpy()

    @cached_property
    def _predictor(self) -> Predictor:
        found = image_classes(self.config, self.classes, self._readers[0].classifier if self._readers else None)
        segmenter = stored_segmenter(self.config, self.classes)
        return Predictor(segmenter, self.config, presence=found.presence if found else None)

    @cached_property
    def _placed(self) -> tuple[RefineSettings, torch.device]:
        """The settings and the device that refine. Found out when they are needed: CRF backends may be timed."""
        return placed(self.config.refine, self.config.run, torch.get_num_threads())

    def _class_id(self, name: str) -> int:
        if name not in self.classes:
            raise DataError(unknown_class(str(name), self.classes))
        return self.classes.index(name) + 1


def stored_segmenter(config: Config, classes: tuple[str, ...]) -> Segmenter:
    """The trained segmenter in the config's run folder, on its device.

    Raises StageNotReady if there is none, and a UserError if it was trained for other classes.
    """
    segmenter = trained_segmenter(config, segmenter_file(config), classes)
    place(segmenter, pick_device(config.run))
    return segmenter


def image_classes(
    config: Config, classes: tuple[str, ...], classifier: Classifier | None = None
) -> ImageClasses | None:
    """Which classes an image shows, by the classifier in the config's run folder; None with `predict.classes = "all"`.

    `classifier`: the same, if it is loaded already. Raises StageNotReady if there is none, and errors of
    `cams.image_classes.with_threshold`.
    """
    if config.predict.classes == "all":
        return None
    path = classifier_file(config)
    found = trained_classifier(config, path, classes) if classifier is None else classifier
    place(found, pick_device(config.run))
    dataset = Dataset(config.data, FileDigests(config.folder / "digests.json"))
    return ImageClasses(found, with_threshold(config, dataset, lambda: found))


def segmenter_file(config: Config) -> Path:
    """The trained segmenter's file. Raises StageNotReady if there is none."""
    path = config.segmenter_path
    if not path.is_file():
        command = config.predict.network.replace("_", "-")
        raise StageNotReady(f"{config.folder} holds no segmenter. Run: cam-pipeline {command}")
    return path


def open_run(folder: Path | str, device: str = "auto") -> TrainedRun:
    """Open a run folder, such as `outputs/demo`. Raises ConfigError or StageNotReady if nothing was trained there."""
    return TrainedRun(run_config(Path(folder), device))


def run_config(folder: Path, device: str) -> Config:
    """The config that the results in a run folder were made with. Errors as `open_run`."""
    path = folder / "config.toml"
    if not path.is_file():
        raise StageNotReady(f"{folder} is no run folder: it has no config.toml. Run: cam-pipeline train-cls")
    here = {"output.dir": str(folder), "run.device": device}  # the folder may have been moved since
    config = load_config(path, [f"{key}={toml_value(value)}" for key, value in here.items()])
    return Pipeline(config).made_with()  # a command that failed may have left another config there


def _settled(config: Config) -> Config:
    """The config, with the background score of the run's scores in place of `auto` or `from-split`."""
    scores = config.folder / "scores.h5"
    background = background_score(config.refine, scores if scores.is_file() else None)
    if background is None:
        raise StageNotReady(f"{config.folder} has no background score yet. Run: cam-pipeline make-cams")
    return config.model_copy(update={"refine": config.refine.at(background)})


def _listed(classes: Sequence[str]) -> Sequence[str]:
    if isinstance(classes, str):
        raise DataError(f"classes must be a list of names; write ['{classes}']")
    return classes


def _pixels(image: Path | str | UInt8, max_pixels: int) -> UInt8:
    if isinstance(image, str | Path):
        return read_image(Path(image), max_pixels)
    if not isinstance(image, np.ndarray):
        raise DataError(f"an image is a path or an array (H, W, 3) uint8 RGB, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"an image array must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    return image
