"""The settings: every key with its type, range, default and meaning."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from cam_pipeline.config.acr import AcrSettings
from cam_pipeline.config.cams import CamSettings
from cam_pipeline.config.classifier import ClassifierSettings, ObjectiveSettings
from cam_pipeline.config.data import DataSettings
from cam_pipeline.config.refinement import LabelSettings, RefineSettings
from cam_pipeline.config.run import OutputSettings, RunSettings
from cam_pipeline.config.section import FILES, Section
from cam_pipeline.config.segmenter import SegmenterSettings
from cam_pipeline.config.sfc import SfcSettings
from cam_pipeline.config.training import TrainSegSettings, TrainSettings
from cam_pipeline.errors import ConfigError


class Config(Section):
    """All settings of a run."""

    data: DataSettings = DataSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    objectives: ObjectiveSettings = ObjectiveSettings()
    acr: AcrSettings = AcrSettings()
    sfc: SfcSettings = SfcSettings()
    train_cls: TrainSettings = TrainSettings()
    cam: CamSettings = CamSettings()
    refine: RefineSettings = RefineSettings()
    labels: LabelSettings = LabelSettings()
    segmenter: SegmenterSettings = SegmenterSettings()
    train_seg: TrainSegSettings = TrainSegSettings()
    run: RunSettings = RunSettings()
    output: OutputSettings = OutputSettings()

    @model_validator(mode="after")
    def fitting(self) -> Self:
        if self.labels.undecided == "backgrounds" and not self.refine.band:
            raise ValueError("labels.undecided = 'backgrounds' needs refine.band above 0, say 0.1")
        if self.refine.background == "from-split" and self.refine.background_split not in self.cam.splits:
            split, splits = self.refine.background_split, [*self.cam.splits, self.refine.background_split]
            raise ValueError(
                f"refine.background = 'from-split' needs maps of split '{split}': set cam.splits = {splits}"
            )
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        if self.output.dir is None:
            raise ConfigError("output.dir is not set")
        return self.output.dir

    def _without_effect(self) -> list[str]:
        """Sections and keys of parts that are off."""
        idle = [name for name, on in self.objectives if not on]
        if not self.sfc.draws:
            idle.append("sfc.blank_slots")
        if not self.sfc.compares_maps:
            idle += ["sfc.ramp", "sfc.background_over", "sfc.distribution_weights", "sfc.extra"]
        elif not self.sfc.distribution_weights:
            idle.append("sfc.extra")
        if self.cam.source != "class_token_gradient":
            idle += ["cam.map_function", "cam.start_layer"]
        if self.cam.propagate != "attention":
            idle += ["cam.attention_layers", "cam.attention_steps", "cam.attention_normalize"]
        if self.cam.propagate != "features":
            idle += ["cam.walk_radius", "cam.walk_power", "cam.walk_steps"]
        if not self.cam.border:
            idle += ["cam.border_power", "cam.border_steps"]
            if self.cam.propagate != "features":
                idle.append("cam.walk_levels")
        if self.cam.calibration == "none":
            idle += ["refine.prototype_share", "refine.background_map", "cam.correlation_steps"]
            idle += ["cam.background_over", "cam.seed_background"]
        if self.refine.background != "from-split":
            idle.append("refine.background_split")
        if self.refine.background not in ("auto", "from-split"):
            idle.append("refine.background_images")
        idle.append("refine.normalize" if self.refine.merge_with else "refine.merge_with")
        if self.labels.undecided != "scores":
            idle += ["labels.low", "labels.high"]
        if self.refine.kernel == "none":
            idle += ["refine.kernel_iterations", "refine.kernel_guide", "refine.kernel_sigma_floor"]
        if not self.classifier.trunk:
            idle += ["classifier.trunk_args", "classifier.trunk_weights"]
        return idle

    def pick(self, paths: Iterable[str], without: Iterable[str] = ()) -> dict[str, Any]:
        """The named sections or keys (`"refine"`, `"run.seed"`), less the keys `without`, as plain data.

        Settings of a part that is off are left out: they change nothing.
        """
        everything = self.model_dump(mode="json")
        for path in self._without_effect():
            section, _, key = path.partition(".")
            if key:
                everything[section].pop(key, None)
            else:
                everything[section] = {}
        for path in without:
            section, key = path.split(".")
            everything[section].pop(key, None)
        for section, settings in everything.items():
            everything[section] = {key: _without_place(key, value) for key, value in settings.items()}
        picked: dict[str, Any] = {}
        for path in paths:
            value: Any = everything
            for part in path.split("."):
                value = value[part]
            picked[path] = value
        return picked


def _without_place(key: str, value: Any) -> Any:
    """A setting that names files as what counts of it here: whether, or how many; their contents are in the data."""
    if key not in FILES or value in ("pretrained", "none"):
        return value
    return len(value) if isinstance(value, list) else "file"
