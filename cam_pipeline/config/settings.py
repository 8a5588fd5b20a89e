"""The settings: every key with its type, range, default and meaning."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import model_validator

from cam_pipeline.config.acr import AcrSettings
from cam_pipeline.config.cams import CamSettings
from cam_pipeline.config.classifier import ClassifierSettings, ObjectiveSettings
from cam_pipeline.config.conditions import If, conditions_of
from cam_pipeline.config.data import DataSettings
from cam_pipeline.config.dfr import DfrSettings
from cam_pipeline.config.prediction import PredictSettings
from cam_pipeline.config.refinement import LabelSettings, RefineSettings
from cam_pipeline.config.run import OutputSettings, RunSettings
from cam_pipeline.config.section import FILES, Section
from cam_pipeline.config.segmenter import SegmenterSettings
from cam_pipeline.config.self_regulation import SelfRegulationSettings
from cam_pipeline.config.sfc import SfcSettings
from cam_pipeline.config.teacher import TeacherSettings
from cam_pipeline.config.toml import toml_value
from cam_pipeline.config.training import TrainE2eSettings, TrainSegSettings, TrainSettings
from cam_pipeline.config.tscd import TscdSettings
from cam_pipeline.errors import ConfigError


class Config(Section):
    """All settings of a run."""

    data: DataSettings = DataSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    objectives: ObjectiveSettings = ObjectiveSettings()
    acr: Annotated[AcrSettings, If("objectives.acr", True)] = AcrSettings()
    sfc: Annotated[SfcSettings, If("objectives.sfc", True)] = SfcSettings()
    train_cls: TrainSettings = TrainSettings()
    cam: CamSettings = CamSettings()
    refine: RefineSettings = RefineSettings()
    labels: LabelSettings = LabelSettings()
    segmenter: SegmenterSettings = SegmenterSettings()
    self_regulation: Annotated[SelfRegulationSettings, If("segmenter.self_regulation", True)] = SelfRegulationSettings()
    dfr: Annotated[DfrSettings, If("segmenter.regularizer", "dfr")] = DfrSettings()
    train_e2e: TrainE2eSettings = TrainE2eSettings()
    tscd: TscdSettings = TscdSettings()
    train_seg: TrainSegSettings = TrainSegSettings()
    teacher: Annotated[TeacherSettings, If("train_seg.teacher", True)] = TeacherSettings()
    predict: PredictSettings = PredictSettings()
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
        if self.train_seg.by_agreement and not self.refine.merge_with:
            raise ValueError("train_seg.agreement_power needs maps of other networks: name them in refine.merge_with")
        if self.objectives.sfc and self.sfc.draws and self.train_cls.accumulate > 1:
            raise ValueError(
                "train_cls.accumulate: SFC's image bank adds views to whole batches; set train_cls.accumulate = 1, or "
                "sfc.draws = 0"
            )
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        if self.output.dir is None:
            raise ConfigError("output.dir is not set")
        return self.output.dir

    @property
    def single_stage(self) -> bool:
        """Whether a run with this config ends with the single stage of train-e2e, in place of train-seg."""
        return self.predict.network == "train_e2e"

    @property
    def classifier_path(self) -> Path:
        """The file in the run folder of the network whose maps are read (`cam.network`)."""
        return self.folder / ("e2e.safetensors" if self.cam.network == "train_e2e" else "classifier.safetensors")

    @property
    def segmenter_path(self) -> Path:
        """The file in the run folder of the network that segments (`predict.network`)."""
        return self.folder / ("e2e.safetensors" if self.single_stage else "segmenter.safetensors")

    @property
    def labels_stage(self) -> str:
        """The stage that makes the labels of such a run."""
        return "label_e2e" if self.single_stage else "make_labels"

    def why_idle(self, path: str) -> str:
        """Why a key (`"refine.crf_iterations"`) has no effect beside the others; empty if it has one."""
        name, _, key = path.partition(".")
        section: Section = getattr(self, name)
        fields = (type(self).model_fields[name], type(section).model_fields[key])
        reasons = (condition.why_not(self) for field in fields for condition in conditions_of(field))
        return next(filter(None, reasons), "")

    def idle(self) -> dict[str, str]:
        """The keys that have no effect beside the others, and why."""
        paths = [f"{name}.{key}" for name, section in self for key in type(section).model_fields]
        return {path: reason for path in paths if (reason := self.why_idle(path))}

    def in_vain(self) -> list[str]:
        """A line for each key that somebody set, as it is not the default, and that has no effect."""
        lines = []
        for path, reason in self.idle().items():
            name, _, key = path.partition(".")
            section: Section = getattr(self, name)
            value = getattr(section, key)
            if value != getattr(type(section)(), key):
                lines.append(f"{path} = {toml_value(value)} has no effect because {reason}")
        return lines

    def pick(self, paths: Iterable[str], without: Iterable[str] = ()) -> dict[str, Any]:
        """The named sections or keys (`"refine"`, `"run.seed"`), less the keys `without`, as plain data.

        Keys and sections that have no effect are left out, and so is an empty list of files. A file is stated without
        its path, a list of files by their number.
        """
        everything, left_out = self.model_dump(mode="json"), {*without, *self.idle()}
        for name, settings in everything.items():
            for key in FILES & settings.keys():
                settings[key] = _nameless(settings[key])
                if settings[key] == 0:
                    left_out.add(f"{name}.{key}")
            everything[name] = {key: value for key, value in settings.items() if f"{name}.{key}" not in left_out}
        picked: dict[str, Any] = {}
        for path in paths:
            name, _, key = path.partition(".")
            if path not in left_out and everything[name]:
                picked[path] = everything[name][key] if key else everything[name]
        return picked


def _nameless(files: Any) -> Any:
    """A setting that names files, without their paths: their number, or that there is one."""
    if isinstance(files, list):
        return len(files)
    return files if files in ("pretrained", "none") else "file"
